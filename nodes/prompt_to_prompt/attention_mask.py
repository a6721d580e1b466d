"""Where a prompt's words are in a picture: cross-attention along its trajectory, as a map and as a mask.

The model is evaluated at the trajectory's own latents (no sampling is watched), and read at the layers that the local blend
reads. Each layer's map is divided by its mean over the picture, so that layers and steps count alike, whatever share of their
attention they spend on the words.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from ..attention.calls import ModelOptions
from ..attention.cross_attention import CrossCall, on_cross_attention
from ..attention.unet_layers import Layer, attention_layers
from ..diffusion.conditioning import Conditioning
from ..diffusion.source import visit
from ..diffusion.trajectory import Trajectory
from .local_blend import blend_layers

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher

BINS = 256


def word_maps(
    model: ModelPatcher,
    trajectory: Trajectory,
    source: Conditioning,
    words: Sequence[Sequence[int]],
    prompt_columns: int,
    steps: range,
) -> torch.Tensor:
    """[B, words, h, w] at the layers' size: attention to the columns of each word, as a multiple of its mean over the picture."""
    size = tuple(trajectory.latents.shape[-2:])
    total = _WordMaps(blend_layers(attention_layers(model), size), words, prompt_columns)
    visit(model, trajectory, source, steps, lambda step, options: total.read(options))
    return total.sum.cpu() / total.count


def stretched(maps: torch.Tensor) -> torch.Tensor:
    """Maps [B, h, w], each from 0 at its lowest to 1 at its highest."""
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    return (maps - low) / (high - low).clamp_min(1e-12)


class _WordMaps:
    """Sums over steps and layers of maps [B, words, h, w], each relative to its mean."""

    def __init__(self, layers: tuple[Layer, ...], words: Sequence[Sequence[int]], prompt_columns: int):
        self.layers = layers
        self.members = torch.zeros(prompt_columns, len(words))  # 1 where a column is of a word
        for number, columns in enumerate(words):
            self.members[list(columns), number] = 1.0
        self.prompt_columns = prompt_columns
        self.sum: torch.Tensor | float = 0.0
        self.count = 0

    def read(self, model_options: ModelOptions) -> None:
        on_cross_attention(model_options, self.layers, self._add)

    def _add(self, call: CrossCall) -> torch.Tensor:
        attention = call.probabilities(slice(None), self.prompt_columns).sum(1)
        maps = (attention @ self.members.to(attention)).mT
        maps = maps / maps.mean(-1, keepdim=True).clamp_min(1e-12)
        self.sum = self.sum + maps.unflatten(-1, call.size)
        self.count += 1
        return call.output


def enlarged(maps: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """[B, H, W] in 0..1."""
    return F.interpolate(maps[:, None], size, mode="bicubic", align_corners=False)[:, 0].clamp(0.0, 1.0)


def otsu(maps: torch.Tensor) -> torch.Tensor:
    """[B], the level that parts each map's values into the two classes furthest apart (Otsu 1979)."""
    levels = (torch.arange(BINS) + 0.5) / BINS
    thresholds = []
    for values in maps.flatten(1):
        share = torch.histc(values, BINS, 0.0, 1.0).double() / len(values)
        below = share.cumsum(0)
        mean_below = (share * levels).cumsum(0)
        between = (mean_below[-1] * below - mean_below) ** 2 / (below * (1.0 - below)).clamp_min(1e-12)
        best = between[:-1] >= between[:-1].max() * (1.0 - 1e-9)
        thresholds.append(float(levels[:-1][best].mean()) + 0.5 / BINS)
    return torch.tensor(thresholds)


def mask_of(maps: torch.Tensor, threshold: float) -> torch.Tensor:
    """[B, H, W] of 0 and 1: above `threshold` times the map's highest value, or above Otsu's level when it is 0."""
    levels = otsu(maps) if threshold == 0.0 else threshold * maps.amax((1, 2))
    return (maps > levels.view(-1, 1, 1)).float()
