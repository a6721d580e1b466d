"""The slice's own socket type, and the inputs that several of its nodes have."""

from __future__ import annotations

from comfy_api.latest import io

from .blending import MASK_USES
from .expert import Expert
from .saliency import Sharpness

SHARPNESS = {"general": 1.0, "expert": 3.0, "scene": 1.0, "subject": 3.0}
HIGHER = {
    "general": "Higher leaves the expert more.",
    "expert": "Higher gives the expert fewer places, those where it has most to say.",
    "scene": "Higher leaves the subject more.",
    "subject": "Higher gives the subject fewer places, those where it has most to say.",
}


@io.comfytype(io_type="PAL_FUSION_EXPERT")
class FusionExpertIO(io.ComfyTypeIO):
    Type = Expert


def cfg_input(name: str, tooltip: str, default: float = 7.5) -> io.Input:
    return io.Float.Input(name, default=default, min=0.0, max=100.0, step=0.1, round=0.01, tooltip=tooltip)


def saliency_input(*whose: str) -> io.Input:
    """For each of these models a number: of a sharpness, or of the published k."""

    def numbers(name: str, defaults: dict[str, float], tooltip: str) -> list[io.Input]:
        limits = {"min": 0.01, "max": 1000.0, "step": 0.1, "round": 0.01}
        return [
            io.Float.Input(f"{name}_{model}", default=defaults[model], tooltip=f"{tooltip} {HIGHER[model]}", **limits)
            for model in whose
        ]

    published = dict.fromkeys(SHARPNESS, 1.0)
    return io.DynamicCombo.Input(
        "saliency",
        options=[
            io.DynamicCombo.Option(
                "sharpness",
                numbers(
                    "sharpness",
                    SHARPNESS,
                    "How far the model's saliency stands out from its mean. Guidance does not change it.",
                ),
            ),
            io.DynamicCombo.Option(
                "published", numbers("k", published, "The published constant; the saliency is k x cfg x response.")
            ),
        ],
        tooltip="How a model's saliency is counted. sharpness: in multiples of its mean over the picture. published: times k, so that "
        "each change of guidance asks for another k.",
    )


def sharpness_of(saliency: dict | None, model: str) -> Sharpness:
    if saliency is None:  # ComfyUI does not miss a choice that a script leaves out
        raise ValueError(
            f"saliency: expected sharpness or published, got nothing. Write saliency: 'sharpness' and 'saliency.sharpness_{model}': "
            f"{SHARPNESS[model]} into the prompt."
        )
    relative = saliency["saliency"] == "sharpness"
    return Sharpness(saliency[f"{'sharpness' if relative else 'k'}_{model}"], relative)


def expert_inputs() -> list[io.Input]:
    return [
        io.Model.Input(
            "model_expert",
            tooltip="A model for the same latents that knows something the general one does not: a fine-tune, or the same checkpoint "
            "with a LoRA. It takes its own memory, also as a LoRA variant.",
        ),
        io.Conditioning.Input(
            "positive_expert",
            tooltip="What the expert is to paint, encoded by its own CLIP. Usually the same words as for the general model.",
        ),
        io.Conditioning.Input("negative_expert", tooltip="The expert's negative prompt, encoded by its own CLIP."),
        cfg_input("cfg_expert", "The expert's guidance."),
        *(
            io.Float.Input(name, default=default, min=0.0, max=1.0, step=0.001, round=0.0001, tooltip=tooltip)
            for name, default, tooltip in (
                (
                    "start_percent",
                    0.0,
                    "When the expert begins to take part, in sampling percent. Before that the general model samples alone and the "
                    "expert is not evaluated.",
                ),
                (
                    "end_percent",
                    1.0,
                    "When the expert stops taking part. Equal to start_percent: never.",
                ),
            )
        ),
    ]


def mask_inputs() -> list[io.Input]:
    return [
        io.Mask.Input("mask", optional=True, tooltip="Where mask_use says something about the expert. Any size."),
        io.Combo.Input(
            "mask_use",
            options=list(MASK_USES),
            default="restrict",
            optional=True,
            tooltip="restrict: the expert may only act inside the mask. force: inside the mask it always acts, outside saliency "
            "decides. decide: the mask alone decides.",
        ),
    ]
