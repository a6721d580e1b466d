"""How long features and self-attention are injected."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..diffusion.unet_sites import Sites


@dataclass(frozen=True)
class Windows:
    """Steps from the noisy end, exclusive: feature 40 means steps 0..39, as pnp-diffusers counts them."""

    feature: int
    attention: int

    @classmethod
    def of(cls, feature_end: float, attention_end: float, steps: int) -> Windows:
        # 0.29 * 100 is 28.999999999999996.
        return cls(*(math.floor(end * steps + 1e-6) for end in (feature_end, attention_end)))

    @property
    def last(self) -> int:
        return max(self.feature, self.attention)

    def active(self, sites: Sites, step: int) -> Sites:
        return Sites(
            features=sites.features if step < self.feature else (),
            attention=sites.attention if step < self.attention else (),
        )
