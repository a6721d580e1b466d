"""The drawing styles. What a thing adds to a picture is linear in its colour: picture * (1 - cover) + fixed + share * colour.

Paper, strokes and tiles lie still, as if all pictures of a style were made on one sheet.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from lab.world.backgrounds import SIZE
from scipy.ndimage import gaussian_filter
from scipy.spatial import cKDTree
from torch import Tensor

STYLES = ("flat", "pencil", "mosaic", "neon")
PAPER = (0.97, 0.95, 0.90)
GRAPHITE = (0.26, 0.25, 0.29)
GROUT = (0.90, 0.87, 0.81)
DUSK = (0.035, 0.03, 0.10)
TILE = 5.2  # pixels


def background(view: Tensor, style: str, *, even: bool = False) -> Tensor:
    """[B, 3, H, W] of the channels of `backgrounds.panoramas`, [B, 5, H, W].

    `even`: with the mean of the strokes and tiles, as seen from afar, and of any size.
    """
    colour, line, glow = view[:, :3], view[:, 3:4], view[:, 4:5]
    if style == "pencil":
        _, strokes, grain = hatching().mean((1, 2)) if even else hatching()
        paper = torch.lerp(_even(PAPER), colour, 0.50 + 0.16 * strokes)
        return torch.lerp(paper, _even(GRAPHITE), line * (0.30 + 0.40 * grain))
    if style == "mosaic":
        centre, tone, grout = tiles()
        spread = 5 if even else 3  # pixels that a tile takes its colour from
        colour = F.avg_pool2d(colour, spread, 1, spread // 2, count_include_pad=False)
        tiled = colour if even else colour.flatten(2)[:, :, centre] * tone
        return torch.lerp(tiled, _even(GROUT) * (0.5 + 0.5 * tiled), 0.6 * (grout.mean() if even else grout))
    if style == "neon":
        bright = (colour / colour.amax(1, keepdim=True).clamp(min=0.15)).pow(1.7)
        lit = _even(DUSK) + 0.13 * colour + 0.36 * glow * bright
        return torch.lerp(lit, 0.8 * bright + 0.1, 0.7 * line)
    return colour


def shaded(pictures: Tensor, depth: Tensor, style: str) -> Tensor:
    """With shadows [B, SIZE, SIZE] on the ground."""
    strength = {"flat": 0.36, "pencil": 0.30, "mosaic": 0.36, "neon": 0.55}[style] * depth[:, None]
    if style == "pencil":
        strength = strength * (0.4 + 0.6 * hatching()[1])
    return pictures * (1 - strength * _even((1.0, 0.9, 0.72)))


def drawn(maps: Tensor, light: Tensor, style: str, patterns: Tensor) -> tuple[Tensor, Tensor]:
    """What sprites' channels [N, 8, H, W] add: share and fixed colour [N, 4, H, W], and the cover [N, 1, H, W].

    `light` [N, H, W] is as of `render.lighting`; `patterns` [4, H, W] or [N, 4, H, W] is the part of `patterns()` they lie at.
    """
    alpha, line, glow = maps[:, :1], maps[:, 5:6], maps[:, 6:7]
    paint = maps[:, 1:5] * (1 + 0.13 * light[:, None])
    strokes, grain, tone, grout = patterns.split(1, -3)
    if style == "flat":
        return _over(paint, alpha, 0.9 * line, 0.34, (0.03, 0.02, 0.05))
    if style == "pencil":
        strength = 0.74 + 0.26 * strokes
        paper = _even((0.0, *PAPER))
        pencilled = paint * strength + paper * alpha * (1 - strength)
        return _over(pencilled, alpha, line * (0.5 + 0.45 * grain), 0.10, tuple(0.9 * c for c in GRAPHITE))
    if style == "mosaic":
        tiled = _over(paint * tone, alpha, grout * 0.55 * alpha, 0.45, tuple(0.46 * c for c in GROUT))
        return _over(*tiled, 0.8 * line, 0.12, tuple(0.96 * c for c in GROUT))
    dark = torch.cat([maps[:, 1:2] * 0.20, maps[:, 2:5] * 0.26], 1) + _even((0.0, *(0.6 * c for c in DUSK))) * alpha
    glowing = _over(dark, alpha * 0.94, 0.62 * glow, 0.95, (0.0, 0.0, 0.02))
    return _over(*glowing, 0.92 * line, 0.62, (0.38, 0.38, 0.38))


def _over(
    paint: Tensor, cover: Tensor, amount: Tensor, own: float, rgb: tuple[float, float, float]
) -> tuple[Tensor, Tensor]:
    """With an ink over it that is `own` times the thing's colour plus `rgb`."""
    return torch.lerp(paint, _even((own, *rgb)), amount), torch.lerp(cover, torch.ones(()), amount)


@cache
def patterns() -> Tensor:
    """[4, SIZE, SIZE]: strokes and grain of the pencil, tone and grout of the tiles."""
    strokes, _, grain = hatching()
    _, tone, grout = tiles()
    return torch.stack([strokes, grain, tone, grout])


@cache
def hatching() -> Tensor:
    """[3, SIZE, SIZE] in 0..1: a pencil's strokes, strokes of another direction, the paper's grain."""
    chance = np.random.default_rng(1)
    y, x = np.mgrid[:SIZE, :SIZE] + 0.5
    wobble = gaussian_filter(chance.standard_normal((SIZE, SIZE)), 9) * 22
    strokes = []
    for angle, period in ((-0.9, 4.3), (0.55, 5.1)):
        phase = (x * np.cos(angle) - y * np.sin(angle) + wobble) * 2 * np.pi / period
        pressure = gaussian_filter(chance.standard_normal((SIZE, SIZE)), 5) * 4
        strokes.append(np.clip(0.58 + 0.42 * np.sin(phase) + 0.14 * pressure, 0, 1))
    grain = gaussian_filter(chance.standard_normal((SIZE, SIZE)), 0.8)
    return torch.from_numpy(np.stack([*strokes, np.clip(0.5 + 1.1 * grain, 0, 1)])).float()


@cache
def tiles() -> tuple[Tensor, Tensor, Tensor]:
    """The pixel at each tile's centre (an index of the flat picture), each tile's tone, and the grout between; [SIZE, SIZE]."""
    chance = np.random.default_rng(2)
    rows = np.arange(-TILE, SIZE + TILE, TILE)
    grid = np.stack(np.meshgrid(rows, rows), -1)
    grid[1::2, :, 0] += TILE / 2
    seeds = grid.reshape(-1, 2) + chance.uniform(-0.2, 0.2, (grid.size // 2, 2)) * TILE
    y, x = np.mgrid[:SIZE, :SIZE] + 0.5
    distance, nearest = cKDTree(seeds).query(np.stack([x, y], -1), k=2)
    centres = seeds[nearest[..., 0]].clip(0, SIZE - 1).astype(int)
    # The distance from the border between a pixel's tile and the next.
    between = np.linalg.norm(seeds[nearest[..., 0]] - seeds[nearest[..., 1]], axis=-1)
    border = (distance[..., 1] ** 2 - distance[..., 0] ** 2) / (2 * between)
    tone = 1 + 0.07 * chance.uniform(-1, 1, len(seeds))[nearest[..., 0]]
    centre = torch.from_numpy(centres[..., 1] * SIZE + centres[..., 0])
    return centre, torch.from_numpy(tone).float(), torch.from_numpy(np.clip(1.0 - border, 0, 1)).float()


def _even(colour: tuple[float, ...]) -> Tensor:
    return torch.tensor(colour)[:, None, None]
