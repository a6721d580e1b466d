"""Steps of a sampling schedule: how many a share of them is, and the levels that each owns."""

from __future__ import annotations

import math
from typing import Any

import torch

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


def require_whole_picture(conds: dict[str, list[dict[str, Any]]]) -> None:
    """Raise ValueError where per-step entries of the negative meet a positive prompt with an area.

    Core gives every area an opposite one: for all steps at once, with the text of the negative's first entry.
    conds: a guider's by prompt, after convert_cond.
    """
    made_for = any(MADE_FOR in cond for cond in conds.get("negative", ()))
    if made_for and any("area" in cond or cond.get("set_area_to_bounds") for cond in conds.get("positive", ())):
        raise ValueError(
            "positive: expected a prompt for the whole picture, because the negative is from Null-Text "
            "Optimize, got one with an area: there ComfyUI would use the first step's negative at every "
            "step. Use Conditioning (Set Mask) with set_cond_area default."
        )


def first_steps(share: float, steps: int) -> int:
    """How many of `steps` a share of them is, from the noisy end and exclusive: 0.8 of 50 means steps 0..39."""
    return math.floor(share * steps + 1e-6)  # 0.29 * 100 is 28.999999999999996


def window_steps(share: float, steps: int) -> int:
    """As `first_steps`, but at least one step unless the share is 0."""
    return max(first_steps(share, steps), 1 if share > 0 else 0)


def require_descending_to_zero(sigmas: torch.Tensor, socket: str = "sigmas") -> None:
    """Raise ValueError unless `sigmas` is a schedule a whole trajectory can have: finite, strictly descending, ending at 0."""
    if sigmas.ndim != 1 or len(sigmas) < 2:
        raise ValueError(f"{socket}: expected at least one step (two values), got {tuple(sigmas.shape)}.")
    if not bool(torch.isfinite(sigmas).all()):
        raise ValueError(f"{socket}: expected finite values, got {sigmas.tolist()}.")
    if not bool((sigmas[1:] < sigmas[:-1]).all()):
        raise ValueError(
            f"{socket}: expected strictly descending values, as a scheduler gives them, got {_short(sigmas)}. "
            "Do not flip them: the node runs the schedule backwards by itself."
        )
    if float(sigmas[-1]) != 0.0:
        raise ValueError(
            f"{socket}: expected the schedule to end at 0, where the picture is, got {float(sigmas[-1]):.4g} at the end. "
            "When you split the sigmas, connect the low part."
        )


def _short(sigmas: torch.Tensor) -> str:
    values = [f"{float(s):.4g}" for s in sigmas]
    return ", ".join(values if len(values) <= 6 else [*values[:3], "...", *values[-2:]])
