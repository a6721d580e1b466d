"""Plug-and-Play's negative prompting (2211.12572): eps~ = a_i eps(empty) + (1 - a_i) eps(P_n), as core conditioning entries."""

from __future__ import annotations

import math
from itertools import groupby

import torch

from ..diffusion.conditioning import Conditioning, require_timeless
from ..diffusion.schedule import require_descending_to_zero, step_interval

SCHEDULES = ("linear", "constant", "exp")


def weights(steps: int, empty_weight: float, schedule: str) -> list[float]:
    """a_i, the weight of the empty prompt in step i of `steps`, as make_negative_prompt_schedule of the published code."""
    progress = [i / max(steps - 1, 1) for i in range(steps)]
    if schedule == "linear":
        return [empty_weight * (1.0 - p) for p in progress]
    if schedule == "exp":
        return [empty_weight * math.exp(-6.0 * p) for p in progress]
    return [empty_weight] * steps


def negative_schedule(
    negative: Conditioning, empty: Conditioning, sigmas: torch.Tensor, empty_weight: float, schedule: str
) -> Conditioning:
    """negative: P_n; empty: the empty prompt; sigmas: the sampler's, descending to 0."""
    require_descending_to_zero(sigmas)
    for socket, conditioning in (("negative", negative), ("empty", empty)):
        require_timeless(conditioning, socket)
        if not any(options.get("strength", 1.0) > 0.0 for _, options in conditioning):
            raise ValueError(
                f"{socket}: expected a prompt with a strength above 0, got none. Connect a prompt, or raise its strength."
            )
    entries: Conditioning = []
    steps = enumerate(weights(len(sigmas) - 1, empty_weight, schedule))
    for weight, group in groupby(steps, key=lambda step: step[1]):
        indices = [i for i, _ in group]
        interval = step_interval(sigmas, indices[0], indices[-1])
        entries += _weighted(empty, weight, interval) + _weighted(negative, 1.0 - weight, interval)
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
