"""Plug-and-Play's negative prompting (2211.12572): eps~ = a_i eps(empty) + (1 - a_i) eps(P_n), as core conditioning entries."""

from __future__ import annotations

import math
from itertools import groupby

import torch

from ..diffusion.trajectory import Conditioning, require_descending_to_zero

SCHEDULES = ("linear", "constant", "exp")
OWN_TIMES = ("start_percent", "end_percent", "clip_start_percent", "timestep_start", "timestep_end")


def weights(steps: int, alpha: float, schedule: str) -> list[float]:
    """a_i, the weight of the empty prompt in step i of `steps`, as make_negative_prompt_schedule of the published code."""
    progress = [i / max(steps - 1, 1) for i in range(steps)]
    if schedule == "linear":
        return [alpha * (1.0 - p) for p in progress]
    if schedule == "exp":
        return [alpha * math.exp(-6.0 * p) for p in progress]
    return [alpha] * steps


def negative_schedule(
    negative: Conditioning, negative_source: Conditioning, sigmas: torch.Tensor, alpha: float, schedule: str
) -> Conditioning:
    """negative: P_n; negative_source: the empty prompt; sigmas: the sampler's, descending to 0."""
    require_descending_to_zero(sigmas)
    for socket, conditioning in (("negative", negative), ("negative_source", negative_source)):
        _require_timeless(conditioning, socket)
    entries: Conditioning = []
    steps = enumerate(weights(len(sigmas) - 1, alpha, schedule))
    for weight, group in groupby(steps, key=lambda step: step[1]):
        indices = [i for i, _ in group]
        interval = _interval(sigmas, indices[0], indices[-1])
        entries += _weighted(negative_source, weight, interval) + _weighted(negative, 1.0 - weight, interval)
    return entries


def _interval(sigmas: torch.Tensor, first: int, last: int) -> dict[str, float]:
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


def _weighted(conditioning: Conditioning, weight: float, interval: dict[str, float]) -> Conditioning:
    """Entries whose strengths add up to `weight`, in the proportion they had."""
    strengths = [options.get("strength", 1.0) for _, options in conditioning]
    total = sum(strengths)
    return [
        [embedding, {**options, **interval, "strength": weight * strength / total}]
        for (embedding, options), strength in zip(conditioning, strengths, strict=True)
        if weight * strength > 0.0
    ]


def _require_timeless(conditioning: Conditioning, socket: str) -> None:
    timed = next((key for _, options in conditioning for key in OWN_TIMES if key in options), None)
    if timed is not None:
        raise ValueError(
            f"{socket}: expected conditioning without a time range, because the schedule sets one for every step, got some "
            f"with {timed}. Connect it from before the node that set the range."
        )
