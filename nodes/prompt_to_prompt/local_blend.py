"""Prompt-to-prompt's local blend: outside the words' own place the picture stays the source's.

After each step the published code sets x = x_src + mask (x - x_src). Here the guided prediction is changed instead, so that
x - (x - denoised) (sigma - sigma_next) / sigma, the step that Euler and DDIM take, ends exactly there, and the sampler's own x is
left alone: denoised' = mask denoised + (1 - mask) (x_src_next - r x) / (1 - r) with r = sigma_next / sigma.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F

from ..attention.unet_layers import Layer
from ..diffusion.trajectory import Trajectory

FACTOR = 4  # of the published layers, 16 x 16 at a latent of 64 x 64
MAP = 16  # pixels along the longer side that a map has at least, where the model has such layers


def blend_layers(layers: Mapping[Layer, int], latent: tuple[int, int]) -> tuple[Layer, ...]:
    """The layers whose maps place the words: of encoder and decoder, at a quarter of the latent's resolution.

    A latent below 64 pixels takes the next finer ones, down to full resolution, so that maps keep 16 pixels. Where a model has
    no layers of that resolution, those of the nearest one it has.
    """
    factor = FACTOR
    while factor > 1 and max(latent) < MAP * factor:
        factor //= 2
    sides = {layer: own for layer, own in layers.items() if layer[0] != "middle"}
    nearest = min(sides.values(), key=lambda own: (abs(own / factor - 1.0), own))
    return tuple(layer for layer, own in sides.items() if own == nearest)


class Maps:
    """One evaluation's attention to the blend words of source and target [B, h, w], summed over layers, heads and tokens."""

    def __init__(self):
        self.source: torch.Tensor | float = 0.0
        self.target: torch.Tensor | float = 0.0

    def add(self, size: tuple[int, int], source: torch.Tensor, target: torch.Tensor) -> None:
        """source, target: [B, heads, N, tokens]."""
        self.source = self.source + source.sum((1, 3)).unflatten(-1, size)
        self.target = self.target + target.sum((1, 3)).unflatten(-1, size)


class LocalBlend:
    """One sampling run."""

    def __init__(self, trajectory: Trajectory, sigmas: torch.Tensor, start: int, threshold: float):
        self.trajectory = trajectory
        self.sigmas = sigmas
        self.start = start
        self.threshold = threshold
        self.evaluated: list[tuple[int, Maps]] = []  # since the last prediction
        self.latest: tuple[int, Maps] = (-1, Maps())
        self.before = Maps()  # of the steps before the latest

    def new_maps(self, step: int) -> Maps:
        maps = Maps()
        self.evaluated.append((step, maps))
        return maps

    def post_cfg(self, args: dict) -> torch.Tensor:
        denoised, x = args["denoised"], args["input"]
        if not self.evaluated:
            return denoised
        # Later evaluations for one prediction, such as PAG's, are of a UNet that others have disturbed.
        step, maps = self.evaluated[0]
        self.evaluated.clear()
        if step != self.latest[0]:
            self.before.source = self.before.source + self.latest[1].source
            self.before.target = self.before.target + self.latest[1].target
        self.latest = step, maps
        source, target = self.before.source + maps.source, self.before.target + maps.target
        i = int((self.sigmas - args["sigma"][0].cpu()).abs().argmin())
        # The positive may rest at these levels (a time range of its own), and a schedule may stop early.
        if step < self.start or not isinstance(target, torch.Tensor) or i == len(self.sigmas) - 1:
            return denoised
        mask = self._mask(target, x) | self._mask(source, x)
        source = self.trajectory.latents[self.trajectory.step_of(float(self.sigmas[i + 1]))].to(x)
        source = source.repeat(len(x) // len(source), 1, 1, 1)
        ratio = float(self.sigmas[i + 1] / self.sigmas[i])
        return torch.where(mask, denoised, (source - ratio * x) / (1.0 - ratio))

    def _mask(self, maps: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        maps = F.max_pool2d(maps[:, None], 3, stride=1, padding=1)
        maps = F.interpolate(maps, size=x.shape[-2:])
        return maps > self.threshold * maps.amax((2, 3), keepdim=True)
