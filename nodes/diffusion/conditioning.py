"""Core's CONDITIONING, as the pack's nodes take it apart."""

from __future__ import annotations

import copy
from typing import Any

Conditioning = list[list[Any]]  # [[cross_attn tensor, dict], ...]
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


def require_timeless(conditioning: Conditioning, socket: str) -> None:
    timed = next((key for _, options in conditioning for key in OWN_TIMES if key in options), None)
    if timed is not None:
        raise ValueError(
            f"{socket}: expected conditioning without a time range, because every step gets one of its own, got some "
            f"with {timed}. Connect it from before the node that set the range."
        )
