"""The kinds of model that a workflow is described for: the nodes that load one, and the settings that suit it."""

from __future__ import annotations

from dataclasses import dataclass, field

from workflows.description import Group, NodeSpec
from workflows.files_and_colours import (
    AE,
    BLUE,
    CHECKPOINT,
    FLOW_CHECKPOINT,
    FLUX,
    FLUX_CLIP_L,
    QWEN_IMAGE,
    QWEN_IMAGE_TEXT,
    QWEN_IMAGE_VAE,
    T5XXL,
    Z_IMAGE,
    Z_IMAGE_TEXT,
)

Links = list[tuple[str, str | int, str, str]]

NOT_RUN = "Not yet run by us on full-size weights."


@dataclass(frozen=True)
class Family:
    """What a workflow is called after the comma, the nodes that load the model, and how they are wired to the rest.

    model, clip, vae: (key of a loader, its output). guidance: of models that take it as an input; their cfg is 1.
    files, change, strength: what notes say of the files, of the model to choose, and of the widget that sets the guidance.
    top: where the notes begin, beside the highest node.
    """

    suffix: str
    nodes: list[NodeSpec]
    files: str = ""
    change: str = ""
    links: Links = field(default_factory=list)
    groups: list[Group] = field(default_factory=list)
    top: int = 0
    model: tuple[str, str] = ("model", "MODEL")
    clip: tuple[str, str] = ("model", "CLIP")
    vae: tuple[str, str] = ("model", "VAE")
    size: int = 1024
    scheduler: str = "simple"
    inpaint_scheduler: str = "simple"
    steps: int = 28
    iterations: int = 3
    cfg: float = 1.0
    guidance: float | None = None
    strength: str = "*cfg* of the sampler"
    cross_end: float = 0.35
    self_end: float = 0.2
    feature_end: float = 0.1
    attention_end: float = 0.2


def checkpoint(name: str) -> list[NodeSpec]:
    return [NodeSpec("model", "CheckpointLoaderSimple", (0, 0), {"ckpt_name": name}, size=(300, 100))]


def in_three_files(unet: str, clip: NodeSpec, vae: str) -> list[NodeSpec]:
    """A row above the columns."""
    return [
        NodeSpec("unet", "UNETLoader", (0, -340), {"unet_name": unet, "weight_dtype": "default"}, size=(300, 90)),
        clip,
        NodeSpec("vae", "VAELoader", (780, -340), {"vae_name": vae}, size=(320, 60)),
    ]


def clip_loader(name: str, kind: str) -> NodeSpec:
    return NodeSpec("clip", "CLIPLoader", (380, -340), {"clip_name": name, "type": kind}, size=(320, 110))


def files_note(unet: str, texts: list[str], vae: str) -> str:
    encoders = "\n".join(f"- `{name}` in **models/text_encoders**" for name in texts)
    return f"""### Files
- `{unet}` in **models/diffusion_models**
{encoders}
- `{vae}` in **models/vae**

{NOT_RUN}

"""


SD15 = Family(
    "",
    checkpoint(CHECKPOINT),
    change="- the **checkpoint**: any SD1.5 model\n",
    size=512,
    scheduler="ddim_uniform",
    inpaint_scheduler="normal",
    steps=50,
    iterations=5,
    cfg=7.5,
    cross_end=0.8,
    self_end=0.4,
    feature_end=0.8,
    attention_end=0.5,
)
SD35 = Family(
    ", SD3.5",
    checkpoint(FLOW_CHECKPOINT),
    files=f"### Files\n- `{FLOW_CHECKPOINT}` in **models/checkpoints**\n\n{NOT_RUN}\n\n",
    cfg=4.5,
)
APART = {"model": ("unet", "MODEL"), "clip": ("clip", "CLIP"), "vae": ("vae", "VAE"), "top": -410}
SHIFTED = {**APART, "model": ("shift", "MODEL"), "links": [("unet", "MODEL", "shift", "model")]}
ROW = [Group("The files of the model", (-20, -410), (1140, 230), BLUE)]
WIDE_ROW = [Group("The files of the model", (-20, -410), (1520, 230), BLUE)]
FLUX1 = Family(
    ", Flux",
    in_three_files(
        FLUX,
        NodeSpec(
            "clip",
            "DualCLIPLoader",
            (380, -340),
            {"clip_name1": FLUX_CLIP_L, "clip_name2": T5XXL, "type": "flux"},
            size=(320, 130),
        ),
        AE,
    ),
    files=files_note(FLUX, [FLUX_CLIP_L, T5XXL], AE),
    groups=ROW,
    guidance=3.5,
    strength="*guidance* in FluxGuidance",
    **APART,
)


def shift(value: float) -> NodeSpec:
    return NodeSpec("shift", "ModelSamplingAuraFlow", (1180, -340), {"shift": value}, size=(300, 60))


QWEN = Family(
    ", Qwen-Image",
    [*in_three_files(QWEN_IMAGE, clip_loader(QWEN_IMAGE_TEXT, "qwen_image"), QWEN_IMAGE_VAE), shift(3.1)],
    files=files_note(QWEN_IMAGE, [QWEN_IMAGE_TEXT], QWEN_IMAGE_VAE),
    groups=WIDE_ROW,
    steps=20,
    cfg=2.5,
    **SHIFTED,
)
Z = Family(
    ", Z-Image",
    [*in_three_files(Z_IMAGE, clip_loader(Z_IMAGE_TEXT, "lumina2"), AE), shift(3.0)],
    files=files_note(Z_IMAGE, [Z_IMAGE_TEXT], AE),
    groups=WIDE_ROW,
    steps=25,
    cfg=4.0,
    **SHIFTED,
)
