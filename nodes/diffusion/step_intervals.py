"""Conditioning entries that each belong to some steps of a schedule, in core's own terms."""

from __future__ import annotations

import math
from typing import Any

import torch

from .trajectory import Conditioning

OWN_TIMES = ("start_percent", "end_percent", "clip_start_percent", "timestep_start", "timestep_end")
MADE_FOR = (
    "palimpsest.made_for"  # {"sigmas": tensor [T+1], "cfg": float} in the dict of entries that hold for these only
)


def step_interval(sigmas: torch.Tensor, first: int, last: int) -> dict[str, float]:
    """The levels that steps first..last own.

    Core keeps an entry while timestep_end <= sigma <= timestep_start, in float32. Borders lie just above a level, so that
    rounding moves none of them to the step before, and no sigma belongs to two steps.
    """
    border = sigmas.float() * (1.0 + 1e-4)
    above = torch.nextafter(border, torch.tensor(math.inf))
    return {
        "timestep_start": math.inf if first == 0 else float(border[first]),
        "timestep_end": 0.0 if last == len(sigmas) - 2 else float(above[last + 1]),
    }


def require_timeless(conditioning: Conditioning, socket: str) -> None:
    timed = next((key for _, options in conditioning for key in OWN_TIMES if key in options), None)
    if timed is not None:
        raise ValueError(
            f"{socket}: expected conditioning without a time range, because every step gets one of its own, got some "
            f"with {timed}. Connect it from before the node that set the range."
        )


def schedule_mismatch(conds: list[dict[str, Any]], sigmas: torch.Tensor, cfg: float) -> str | None:
    """What sets a sampling apart from the one that per-step entries among `conds` were made for, None when nothing does.

    conds: a guider's, after convert_cond. Core keeps what it does not know in an entry's dict, so nodes of this pack that
    meet the entries again can say that they do not fit; a stock sampler cannot, and takes for each sigma the entry whose
    step that sigma lies in.
    """
    made_for = next((cond[MADE_FOR] for cond in conds if MADE_FOR in cond), None)
    if made_for is None:
        return None
    wanted, got = made_for["sigmas"], sigmas.float().cpu()
    if not math.isclose(made_for["cfg"], cfg, rel_tol=1e-3):
        return f"negative: was optimised for cfg {made_for['cfg']:g}, not {cfg:g}. Use that cfg, or optimise again."
    if len(wanted) != len(got) or not torch.allclose(wanted, got, rtol=1e-3, atol=1e-4):
        return (
            f"negative: was optimised for {len(wanted) - 1} steps from sigma {float(wanted[0]):.4g}, the sampler has "
            f"{len(got) - 1} from {float(got[0]):.4g}, or another scheduler. Use the trajectory's schedule."
        )
    return None
