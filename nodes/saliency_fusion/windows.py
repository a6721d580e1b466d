"""When a fusion acts, in ComfyUI's sampling percent."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher

TOLERANCE = 1e-4  # relative; a step at a border keeps its side under the rounding of a schedule's float32


@dataclass(frozen=True)
class Window:
    """Levels with end < sigma <= start: those of the published code's t <= threshold and t > threshold."""

    start: float
    end: float

    @classmethod
    def of(cls, start_percent: float, end_percent: float, model: ModelPatcher) -> Window:
        if start_percent > end_percent:
            raise ValueError(
                f"start_percent: expected at most end_percent, got {start_percent:g} after {end_percent:g}. "
                "Swap them, or make them equal for no fusion at all."
            )
        sampling = model.get_model_object("model_sampling")
        start, end = (float(sampling.percent_to_sigma(percent)) for percent in (start_percent, end_percent))
        return cls(start, end if start_percent < end_percent else math.inf)

    def holds(self, sigma: float) -> bool:
        return not self.is_over_at(sigma) and sigma <= self.start * (1.0 + TOLERANCE)

    def is_over_at(self, sigma: float) -> bool:
        return sigma <= self.end * (1.0 + TOLERANCE)

    def among(self, sigmas: torch.Tensor) -> tuple[float, float] | None:
        """The lowest and highest level between those of a sampler at which the fusion acts, None where it never does.

        A sampler may evaluate the model between two of its steps, but never at the last level.
        """
        low, high = max(self.end, float(sigmas.min())), min(self.start, float(sigmas.max()))
        return (low, high) if low < high and not self.is_over_at(high) else None


ALWAYS = Window(math.inf, 0.0)
