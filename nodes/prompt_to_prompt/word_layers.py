"""Which layers of a UNet say where words are, and how clearly a map does."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from ..attention.unet_layers import Layer

FACTOR = 4  # of the published layers, 16 x 16 at a latent of 64 x 64
MAP = 16  # pixels along the longer side that a map has at least, where the model has such layers
Size = tuple[int, int]


def blend_layers(layers: Mapping[Layer, int], latent: Size) -> tuple[Layer, ...]:
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


def map_size(latent: Size, factor: int) -> Size:
    """Of a layer that works this many times coarser than the latent."""
    return tuple(-(-side // factor) for side in latent)


def variation(maps: torch.Tensor) -> float:
    """Of maps [B, ...] over the picture: standard deviation by mean, on average. It is high where words stand out."""
    flat = maps.flatten(1).float()
    return float((flat.std(1) / flat.mean(1).abs().clamp_min(1e-12)).mean())


def clearest(variations: Mapping) -> list:
    """The places whose variation is at least half of the highest."""
    least = max(variations.values()) / 2.0
    return [place for place, value in variations.items() if value >= least]
