"""Finds the background of a picture: its style, scenery, light and part of the wide picture, whatever stands before it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from lab.world import styles
from lab.world.backgrounds import BACKGROUNDS, PAN, SIZE, TILT, panoramas
from lab.world.styles import STYLES
from torch import Tensor

COARSE, FINE = 8, 2  # pixels averaged in the first and in the second search
KEPT = 4  # candidates of the first search
CAP = 0.30  # what a pixel may add to a distance: things stand before the background


@dataclass(frozen=True)
class Backdrop:
    style: str
    background: str
    lit_from_left: bool
    pan: int
    tilt: int
    picture: Tensor  # [3, SIZE, SIZE]


def backdrops(pictures: Tensor) -> list[Backdrop]:
    """Of pictures [B, 3, SIZE, SIZE]."""
    templates, places = _coarse()
    seen = F.avg_pool2d(pictures, COARSE).flatten(2)  # B x 3 x pixels
    distance = torch.stack([_distance(templates, one) for one in seen])
    kept = distance.topk(KEPT, dim=1, largest=False).indices
    return [_finest(picture, [places[i] for i in row]) for picture, row in zip(pictures, kept.tolist(), strict=True)]


def _distance(a: Tensor, b: Tensor) -> Tensor:
    """Over [..., 3, pixels]."""
    return (a - b).abs().mean(-2).clamp(max=CAP).mean(-1)


@cache
def _even() -> Tensor:
    """[STYLES * BACKGROUNDS * 2, 3, HEIGHT, WIDTH], seen from afar."""
    wide = panoramas().flatten(0, 1)
    return torch.cat([styles.background(wide, style, even=True) for style in STYLES])


@cache
def _coarse() -> tuple[Tensor, list[tuple[int, int, int]]]:
    """Templates [N, 3, pixels], and what each shows: (number in `_even`, pan, tilt)."""
    averaged = F.avg_pool2d(_even(), COARSE)
    cells = SIZE // COARSE
    parts, places = [], []
    for tilt in range(TILT // COARSE + 1):
        for pan in range(PAN // COARSE + 1):
            parts.append(averaged[:, :, tilt : tilt + cells, pan : pan + cells])
            places += [(number, pan * COARSE, tilt * COARSE) for number in range(len(averaged))]
    return torch.cat(parts).flatten(2), places


@cache
def _fine() -> Tensor:
    return F.avg_pool2d(_even(), FINE)


def _finest(picture: Tensor, places: list[tuple[int, int, int]]) -> Backdrop:
    """The best part near the places, to the pixel, and then the best style of it."""
    averaged = F.avg_pool2d(picture, FINE).flatten(1)
    cells, reach = SIZE // FINE, COARSE // FINE // 2
    tried: dict[tuple[int, int, int], float] = {}
    for number, pan, tilt in places:
        near = [
            (number, x, y)
            for y in range(max(tilt // FINE - reach, 0), min(tilt // FINE + reach, TILT // FINE) + 1)
            for x in range(max(pan // FINE - reach, 0), min(pan // FINE + reach, PAN // FINE) + 1)
        ]
        near = [place for place in near if place not in tried]
        if near:
            parts = torch.stack([_fine()[n, :, y : y + cells, x : x + cells] for n, x, y in near])
            tried.update(zip(near, _distance(parts.flatten(2), averaged).tolist(), strict=True))
    number, x, y = min(tried, key=tried.__getitem__)
    side = number % (2 * len(BACKGROUNDS))
    whole = [
        (px, py)
        for py in range(max(y * FINE - 1, 0), min(y * FINE + 1, TILT) + 1)
        for px in range(max(x * FINE - 1, 0), min(x * FINE + 1, PAN) + 1)
    ]
    parts = torch.stack([_even()[number, :, py : py + SIZE, px : px + SIZE] for px, py in whole])
    pan, tilt = whole[int(_distance(parts.flatten(2), picture.flatten(1)).argmin())]
    distances = [_distance(_drawn(side, [(pan, tilt)], style).flatten(2), picture.flatten(1)) for style in STYLES]
    style = STYLES[int(torch.cat(distances).argmin())]
    # Tiles and strokes show the last pixel that the view from afar may have missed.
    near = [(px, py) for px, py in whole if abs(px - pan) + abs(py - tilt) <= 1]
    drawn = _drawn(side, near, style)
    best = int(_distance(drawn.flatten(2), picture.flatten(1)).argmin())
    pan, tilt = near[best]
    return Backdrop(
        style=style,
        background=list(BACKGROUNDS)[side // 2],
        lit_from_left=bool(side % 2),
        pan=pan,
        tilt=tilt,
        picture=drawn[best],
    )


def _drawn(side: int, places: list[tuple[int, int]], style: str) -> Tensor:
    wide = panoramas().flatten(0, 1)[side]
    return styles.background(torch.stack([wide[:, y : y + SIZE, x : x + SIZE] for x, y in places]), style)
