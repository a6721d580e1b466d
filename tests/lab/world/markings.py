"""Markings: a white or black pattern on the body of a thing, which lies, turns and shrinks with it.

The scenes of `scenes.sample_scenes` have none. They are what an expert knows beyond the general model, and, with its colour, what makes
one thing of a kind an individual.
"""

from __future__ import annotations

import itertools
from functools import cache

import torch
from lab.world.kinds import REACH, TEXELS
from lab.world.outlines import RGB
from torch import Tensor

INKS: dict[str, RGB] = {"white": (0.98, 0.97, 0.94), "black": (0.11, 0.10, 0.14)}
PATTERNS = ("stripes", "spots", "band")
MARKINGS = tuple(f"{ink} {pattern}" for pattern, ink in itertools.product(PATTERNS, INKS))
EDGE = 0.03  # of the outlines' units, over which a pattern begins
# All are the same in a mirror: of some kinds one cannot tell which side one sees.
STRIPES, STRIPE = 0.48, 0.20  # the distance of stripes and their width
SPOTS, SPOT = 0.46, 0.145  # the distance of spots and their radius
BAND = (-0.1, 0.3)  # from where to where it lies on a thing


@cache
def textures() -> Tensor:
    """[1 + PATTERNS, 1, TEXELS, TEXELS] in 0..1, where a pattern covers a body; the first is none."""
    along = (torch.arange(TEXELS) + 0.5) / TEXELS * 2 * REACH - REACH
    y, x = torch.meshgrid(along, along, indexing="ij")
    stripes = (x / STRIPES - (x / STRIPES).round()).abs() * STRIPES - STRIPE / 2
    across = SPOTS * 3**0.5 / 2
    row = (y / across).round()
    column = x / SPOTS - 0.5 * (row % 2)
    spots = torch.hypot((column - column.round()) * SPOTS, y - row * across) - SPOT
    band = (y - sum(BAND) / 2).abs() - (BAND[1] - BAND[0]) / 2
    cover = [(0.5 - distance / EDGE).clamp(0, 1) for distance in (stripes, spots, band)]
    return torch.stack([torch.zeros_like(x), *cover])[:, None]


def looks() -> tuple[Tensor, Tensor]:
    """Of no marking and then of each of MARKINGS, the number of its texture and its ink [*, 3]."""
    parts = [marking.split() for marking in MARKINGS]
    inks = torch.tensor([INKS["white"], *(INKS[ink] for ink, _ in parts)])
    return torch.tensor([0, *(1 + PATTERNS.index(pattern) for _, pattern in parts)]), inks
