"""Core's CONDITIONING, as the pack's nodes take it apart."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher

Conditioning = list[list[Any]]  # [[cross_attn tensor, dict], ...]
GUIDANCE = "guidance"  # the number that FluxGuidance sets
READ_BESIDE_TEXT = ("reference_latents", "reference_latents_method", GUIDANCE)
OWN_TIMES = ("start_percent", "end_percent", "clip_start_percent", "timestep_start", "timestep_end")


def with_own_controls(conditioning: Conditioning) -> Conditioning:
    """The conditioning with copies of its ControlNets, which cache their hints for the rows of one run."""
    copies: dict[int, Any] = {}

    def copied(control):
        if control is None:
            return None
        if id(control) not in copies:
            copies[id(control)] = control.copy().set_previous_controlnet(copied(control.previous_controlnet))
        return copies[id(control)]

    return [
        [text, {**options, "control": copied(options["control"])} if "control" in options else copy.copy(options)]
        for text, options in conditioning
    ]


def read_beside_text(conditioning: Conditioning) -> dict[str, Any]:
    """Reference pictures and guidance that a model was given beside a prompt, where the prompt is one for the whole picture."""
    options = conditioning[0][1] if len(conditioning) == 1 else {}
    return {key: options[key] for key in READ_BESIDE_TEXT if key in options}


def is_guidance_distilled(model: ModelPatcher) -> bool:
    """Whether it reads its guidance as a number beside the prompt, as Flux.1 dev and Flux.2 dev do."""
    return bool(model.model.model_config.unet_config.get("guidance_embed"))


def at_guidance_1(conditioning: Conditioning) -> Conditioning:
    return [[text, {**options, GUIDANCE: 1.0}] for text, options in conditioning]


def require_timeless(conditioning: Conditioning, socket: str) -> None:
    timed = next((key for _, options in conditioning for key in OWN_TIMES if key in options), None)
    if timed is not None:
        raise ValueError(
            f"{socket}: expected conditioning without a time range, because every step gets one of its own, got some "
            f"with {timed}. Connect it from before the node that set the range."
        )
