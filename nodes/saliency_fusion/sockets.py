"""The slice's own socket type, and the inputs that several of its nodes have."""

from __future__ import annotations

from comfy_api.latest import io

from .blending import MASK_USES
from .expert import Expert
from .saliency import Sharpness

SHARPNESS = {"general": 1.0, "expert": 3.0, "scene": 1.0, "subject": 3.0}
HIGHER = {
    "general": "Higher gives the expert a larger area.",
    "expert": "Higher gives the expert a smaller area, where its guidance is strongest.",
    "scene": "Higher gives the subject a larger area.",
    "subject": "Higher gives the subject a smaller area, where its guidance is strongest.",
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
                    "How sharply this model's saliency is concentrated. It does not depend on guidance.",
                ),
            ),
            io.DynamicCombo.Option(
                "published",
                numbers("k", published, "The published constant k: the saliency is computed from k x cfg x response."),
            ),
        ],
        tooltip="How saliency is measured. sharpness: relative to its mean over the picture, so that guidance does not change it. "
        "published: multiplied by k and guidance, so that k has to be adjusted when guidance changes.",
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
            tooltip="The expert: a model with the same latents that knows something the general model does not, such as a fine-tune, or "
            "the same checkpoint with a LoRA. It needs as much memory as a second checkpoint.",
        ),
        io.Conditioning.Input(
            "positive_expert",
            tooltip="What the expert should draw, encoded by its own CLIP. Usually the same words as for the general model.",
        ),
        io.Conditioning.Input("negative_expert", tooltip="The expert's negative prompt, encoded by its own CLIP."),
        cfg_input("cfg_expert", "The expert's guidance."),
        *(
            io.Float.Input(name, default=default, min=0.0, max=1.0, step=0.001, round=0.0001, tooltip=tooltip)
            for name, default, tooltip in (
                (
                    "start_percent",
                    0.0,
                    (
                        "When the expert begins to take part, as a fraction of the sampling. Before that the general model samples "
                        "alone and the expert costs nothing."
                    ),
                ),
                (
                    "end_percent",
                    1.0,
                    "When the expert stops taking part. If equal to start_percent, it never takes part.",
                ),
            )
        ),
    ]


def mask_inputs() -> list[io.Input]:
    return [
        io.Mask.Input("mask", optional=True, tooltip="The area that mask_use refers to. Any size."),
        io.Combo.Input(
            "mask_use",
            options=list(MASK_USES),
            default="restrict",
            optional=True,
            tooltip="restrict: the expert draws only inside the mask. force: it always draws inside the mask; outside, saliency "
            "decides. decide: the mask alone decides.",
        ),
    ]
