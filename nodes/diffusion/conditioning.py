"""Core's CONDITIONING, as the pack's nodes take it apart."""

from __future__ import annotations

import copy
from typing import Any

Conditioning = list[list[Any]]  # [[cross_attn tensor, dict], ...]
REFERENCES = ("reference_latents", "reference_latents_method")
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


def references_of(conditioning: Conditioning) -> dict[str, Any]:
    """The reference pictures that an edit model was given beside a prompt, where the prompt is one for the whole picture."""
    options = conditioning[0][1] if len(conditioning) == 1 else {}
    return {key: options[key] for key in REFERENCES if key in options}


def require_timeless(conditioning: Conditioning, socket: str) -> None:
    timed = next((key for _, options in conditioning for key in OWN_TIMES if key in options), None)
    if timed is not None:
        raise ValueError(
            f"{socket}: expected conditioning without a time range, because every step gets one of its own, got some "
            f"with {timed}. Connect it from before the node that set the range."
        )
