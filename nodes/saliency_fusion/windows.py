"""When a fusion acts, in ComfyUI's sampling percent."""

from __future__ import annotations

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
        return cls(*(float(sampling.percent_to_sigma(percent)) for percent in (start_percent, end_percent)))

    @classmethod
    def around(cls, sigma: float) -> Window:
        """That level alone."""
        return cls(sigma, sigma * (1.0 - 4.0 * TOLERANCE))

    def holds(self, sigma: float) -> bool:
        return not self.is_over_at(sigma) and sigma <= self.start * (1.0 + TOLERANCE)

    def is_over_at(self, sigma: float) -> bool:
        return sigma <= self.end * (1.0 + TOLERANCE)

    def meets(self, sigmas: torch.Tensor) -> bool:
        """Whether a sampler of these sigmas, which may evaluate a model between two of them, has a level in the window."""
        low, high = max(self.end, float(sigmas.min())), min(self.start, float(sigmas.max()))
        return low < high and not self.is_over_at(high)
