"""Where the source's structure is read and injected, and for how long."""

from __future__ import annotations

from dataclasses import dataclass

from ..attention.unet_sites import Sites
from ..diffusion.schedule import window_steps


@dataclass(frozen=True)
class Windows:
    """Counts of steps from the noisy end, exclusive: feature 40 means steps 0..39, as pnp-diffusers counts them."""

    sites: Sites
    feature: int
    attention: int

    @classmethod
    def of(cls, sites: Sites, feature_end: float, attention_end: float, steps: int) -> Windows:
        """Windows of `steps` steps; a kind without sites has none."""
        return cls(
            sites,
            feature=window_steps(feature_end, steps) if sites.features else 0,
            attention=window_steps(attention_end, steps) if sites.attention else 0,
        )

    @property
    def last(self) -> int:
        return max(self.feature, self.attention)

    def __str__(self) -> str:
        return f"features in {self.feature} steps, attention in {self.attention}"

    def at(self, step: int) -> Sites:
        return Sites(
            features=self.sites.features if step < self.feature else (),
            attention=self.sites.attention if step < self.attention else (),
        )
