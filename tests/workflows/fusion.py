"""The shipped workflows that draw one picture with two models."""

from __future__ import annotations

from workflows.description import Group, NodeSpec, Note, Workflow
from workflows.files_and_colours import (
    BLUE,
    CHECKPOINT,
    EXPERT,
    GOLD,
    GREEN,
    LORA,
    NEGATIVE,
    POSITIVE,
    RED,
    SECOND_LORA,
)
from workflows.fusion_notes import (
    FUSION_MAP_NOTE,
    FUSION_TUNING_NOTE,
    LORA_NOTE,
    TWO_CHECKPOINTS_NOTE,
    TWO_LORAS_NOTE,
)
from workflows.shared_columns import Links, draw, fused_row

UNWANTED = "blurry, low quality"


def two_checkpoints() -> Workflow:
    scene = "a knight in silver armour on a crowded market square, rainy evening"
    expert = NodeSpec(
        "expert", "CheckpointLoaderSimple", (0, 290), {"ckpt_name": EXPERT}, (300, 100), "Expert: the second model"
    )
    return _fused("Two checkpoints, one picture", "two_models", scene, [(expert, scene)], TWO_CHECKPOINTS_NOTE)


def checkpoint_and_lora() -> Workflow:
    scene = "a girl in a yellow raincoat on a street in Tokyo, evening, shop signs"
    experts = [(_lora("expert", LORA, 290, "Expert: a LoRA on it"), f"{scene}, chibi, toy figure")]
    return _fused("A checkpoint and its LoRA, one picture", "lora", scene, experts, LORA_NOTE)


def two_loras() -> Workflow:
    scene = "a girl in a yellow raincoat and a castle on a hill behind her"
    experts = [
        (_lora("expert", LORA, 290, "Expert 1: a LoRA on it"), f"{scene}, chibi, toy figure"),
        (_lora("expert_2", SECOND_LORA, 580, "Expert 2: another LoRA on it"), f"{scene}, pixel art"),
    ]
    return _fused("Two LoRAs, each in its place", "two_loras", scene, experts, TWO_LORAS_NOTE)


def _lora(key: str, file: str, y: int, title: str) -> NodeSpec:
    widgets = {"lora_name": file, "strength_model": 1.0, "strength_clip": 1.0}
    return NodeSpec(key, "LoraLoader", (0, y), widgets, (300, 140), title)


def _fused(name: str, file: str, scene: str, experts: list[tuple[NodeSpec, str]], note: str) -> Workflow:
    """A general model and one or two experts, each with the prompt given for it."""
    general = NodeSpec(
        "model", "CheckpointLoaderSimple", (0, 0), {"ckpt_name": CHECKPOINT}, (300, 100), "General model"
    )
    nodes, links = [general], []
    for i, (model, text) in enumerate([(general, scene), *experts]):
        nodes += [*([model] if i else []), *_prompts(model, text, 290 * i)]
        links += _prompt_links(model.key)
        if model.type == "LoraLoader":
            links += [("model", "MODEL", model.key, "model"), ("model", "CLIP", model.key, "clip")]
    drawn, drawn_links = draw(1180)
    row, row_links, row_groups = fused_row(20, file, "general model", "expert")
    if len(experts) > 1:
        nodes.append(NodeSpec("second", "PAL_FusionExpert", (780, 640), size=(320, 300), title="Fusion Expert 2"))
        links += [*_expert_links("expert_2", "second"), ("second", "expert", "guider", "experts.expert0")]
    return Workflow(
        name,
        nodes=[
            *nodes,
            NodeSpec("guider", "PAL_SaliencyFusionGuider", (780, 0), size=(320, 560)),
            *drawn,
            *row,
        ],
        links=[
            *links,
            ("model", "MODEL", "guider", "model"),
            ("model_positive", "CONDITIONING", "guider", "positive"),
            ("model_negative", "CONDITIONING", "guider", "negative"),
            *_expert_links("expert", "guider"),
            *drawn_links,
            *row_links,
        ],
        notes=[
            Note(note, (-440, 0), (380, 580), "Read me"),
            Note(FUSION_TUNING_NOTE, (-440, 630), (380, 250), "When the expert takes too little or too much"),
            Note(FUSION_MAP_NOTE, (-440, 930), (380, 130), "Which model drew what"),
        ],
        groups=[
            Group("1  Load", (-20, -70), (340, 1130), BLUE),
            Group("2  Prompts for each model", (360, -70), (360, 1130), GOLD),
            Group("3  Fuse", (760, -70), (360, 1130), RED),
            Group("4  Sample", (1160, -70), (340, 1130), GREEN),
            *row_groups,
        ],
    )


def _prompts(model: NodeSpec, text: str, y: int) -> list[NodeSpec]:
    who = (model.title or "").split(":")[0]
    return [
        NodeSpec(
            f"{model.key}_positive", "CLIPTextEncode", (380, y), {"text": text}, (320, 100), f"{who}: prompt", POSITIVE
        ),
        NodeSpec(
            f"{model.key}_negative", "CLIPTextEncode", (380, y + 150), {"text": UNWANTED}, (320, 80),
            f"{who}: negative prompt", NEGATIVE,
        ),
    ]  # fmt: skip


def _prompt_links(model: str) -> Links:
    return [(model, "CLIP", f"{model}_{kind}", "clip") for kind in ("positive", "negative")]


def _expert_links(model: str, to: str) -> Links:
    return [
        (model, "MODEL", to, "model_expert"),
        (f"{model}_positive", "CONDITIONING", to, "positive_expert"),
        (f"{model}_negative", "CONDITIONING", to, "negative_expert"),
    ]
