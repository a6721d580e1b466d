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

COARSE, FINER = 8, (4, 2, 1)  # pixels averaged in the first search, and in those after it
KEPT = (4, 2, 1)  # candidates that these begin with
LIKE = 0.03  # of a distance, within which two styles may be taken for each other from afar
CAP = 0.30  # what a pixel may add to a distance: things stand before the background


Place = tuple[int, int, int]  # number in `_even`, pan, tilt


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
    kept = distance.topk(KEPT[0], dim=1, largest=False).indices
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
def _coarse() -> tuple[Tensor, list[Place]]:
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
def _finer() -> dict[int, Tensor]:
    return {step: F.avg_pool2d(_even(), step) for step in FINER}


def _finest(picture: Tensor, places: list[Place]) -> Backdrop:
    """The best part near the places, to the pixel, and then the best style of it."""
    for step, kept in zip(FINER, KEPT, strict=True):
        near = sorted({place for start in places[:kept] for place in _around(start, step)})
        seen = F.avg_pool2d(picture, step).flatten(1)
        distances = _distance(torch.stack([_part(place, step) for place in near]).flatten(2), seen)
        places = [near[i] for i in distances.argsort().tolist()]
    number, pan, tilt = places[0]
    side = number % (2 * len(BACKGROUNDS))
    from_afar = torch.stack([_part((side + k * 2 * len(BACKGROUNDS), pan, tilt), 2) for k in range(len(STYLES))])
    afar = _distance(from_afar.flatten(2), F.avg_pool2d(picture, 2).flatten(1))
    likely = [style for style, far in zip(STYLES, afar, strict=True) if far < afar.min() + LIKE]
    distances = [_distance(_drawn(side, [(pan, tilt)], style).flatten(2), picture.flatten(1)) for style in likely]
    style = likely[int(torch.cat(distances).argmin())]
    # Tiles and strokes show the last pixel that the view from afar may have missed.
    near = [(x, y) for _, x, y in _around(places[0], 1) if abs(x - pan) + abs(y - tilt) <= 1]
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


def _around(place: Place, step: int) -> list[Place]:
    number, pan, tilt = place
    along, down = ((at - step, at, at + step) for at in (pan, tilt))
    return [(number, x, y) for y in down for x in along if 0 <= x <= PAN and 0 <= y <= TILT]


def _part(place: Place, step: int) -> Tensor:
    number, pan, tilt = place
    size = SIZE // step
    x, y = pan // step, tilt // step
    return _finer()[step][number, :, y : y + size, x : x + size]


def _drawn(side: int, places: list[tuple[int, int]], style: str) -> Tensor:
    wide = panoramas().flatten(0, 1)[side]
    return styles.background(torch.stack([wide[:, y : y + SIZE, x : x + SIZE] for x, y in places]), style)
