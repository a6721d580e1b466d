"""Plug-and-Play's negative prompting (2211.12572): eps~ = a_i eps(empty) + (1 - a_i) eps(P_n), as core conditioning entries."""

from __future__ import annotations

import math
from itertools import groupby

import torch

from ..diffusion.conditioning import Conditioning, require_timeless
from ..diffusion.schedule import require_descending_to_zero, step_interval

SCHEDULES = ("linear", "constant", "exp")


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
        require_timeless(conditioning, socket)
    entries: Conditioning = []
    steps = enumerate(weights(len(sigmas) - 1, alpha, schedule))
    for weight, group in groupby(steps, key=lambda step: step[1]):
        indices = [i for i, _ in group]
        interval = step_interval(sigmas, indices[0], indices[-1])
        entries += _weighted(negative_source, weight, interval) + _weighted(negative, 1.0 - weight, interval)
    return entries


def _weighted(conditioning: Conditioning, weight: float, interval: dict[str, float]) -> Conditioning:
    """Entries whose strengths add up to `weight`, in the proportion they had."""
    strengths = [options.get("strength", 1.0) for _, options in conditioning]
    total = sum(strengths)
    return [
        [embedding, {**options, **interval, "strength": weight * strength / total}]
        for (embedding, options), strength in zip(conditioning, strengths, strict=True)
        if weight * strength > 0.0
    ]
