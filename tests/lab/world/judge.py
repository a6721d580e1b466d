"""Reads a picture back by drawing it: what it shows is what explains it best, or none of what the world has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from lab.world import styles
from lab.world.backdrop import Backdrop, backdrops
from lab.world.backgrounds import SIZE
from lab.world.edges import STRIDE, edges, likeness
from lab.world.fit import Fit, Shown, fitted
from lab.world.kinds import COLOURS, EVERY_COLOUR, KINDS
from lab.world.render import Poses, lighting, sampled
from lab.world.scenes import Thing
from lab.world.search import Candidates, candidates, unexplained
from torch import Tensor

CANDIDATES = 6  # at first; where they explain too little, every kind and side is tried
EVERY = 2 * len(KINDS)
CHUNK = 32
# Set on renders, foreign pictures and samples of the general model; docs/judge.md says what they let through of others.
PICTURE = 0.40  # the least share of a picture that must be explained
ALIKE = 0.83  # the least likeness of the edges of a thing as it is seen and as it is drawn
THING = 0.15  # the least share of what a thing's area shows that must be explained
VISIBLE = 0.5  # the least share of a thing that nothing may stand before; in the world hardly anything does
DOUBTFUL = 0.95  # a likeness below which things are searched once more
NOISE = 0.012  # the most squared error of a pixel, all colours together, that may be the whole picture's noise
LEAST = 90.0  # pixels of what the background does not explain, where a thing is looked for
LEAST_LINES = 40.0  # the same of thin lines
SPECK = 1  # pixels, half of the widest that is no thing
EDGE = 2  # pixels around a thing that are still its own


@dataclass(frozen=True)
class Seen:
    """A thing that is seen, but for its lift."""

    thing: Thing
    explained: float  # the share of what its area shows, 1 if all
    alike: float  # how alike the edges run there, as it is seen and as it is drawn, 1 if they are the same
    mask: Tensor  # [SIZE, SIZE], what is visible of it
    whole: Tensor  # [SIZE, SIZE]


@dataclass(frozen=True)
class Reading:
    """`things` from the farthest to the nearest; no style and background if the picture is none of the world's."""

    things: tuple[Seen, ...]
    style: str | None
    background: str | None
    backdrop: Backdrop  # the nearest, known or not
    explained: float  # the share of the picture, 1 if all
    unknown: int  # things that are none of the world's
    seen: tuple[Seen, ...]  # all things, known or not, from the farthest to the nearest

    @property
    def is_known(self) -> bool:
        return self.style is not None and bool(self.things) and not self.unknown

    @property
    def alike(self) -> list[float]:
        return [thing.alike for thing in self.seen]


@torch.inference_mode()
def judge(pictures: Tensor, natural: bool = False) -> list[Reading]:
    """Of pictures [B, 3, SIZE, SIZE] in 0..1. `natural`: things may have one of the NATURAL colours as well."""
    palette = torch.tensor(list((EVERY_COLOUR if natural else COLOURS).values()))
    return [reading for chunk in pictures.float().split(CHUNK) for reading in _judged(chunk, palette)]


def mask_iou(a: Tensor, b: Tensor) -> Tensor:
    """Soft intersection over union of masks [..., H, W]."""
    return torch.minimum(a, b).sum((-2, -1)) / torch.maximum(a, b).sum((-2, -1)).clamp(min=1e-6)


@dataclass(frozen=True)
class _Views:
    """Pictures of one style, and what is known of them before things are looked for."""

    style: str
    backdrops: Sequence[Backdrop]
    pictures: Tensor  # [B, 3, SIZE, SIZE]
    under: Tensor  # the backgrounds
    ground: Tensor  # with the shadows that things throw on them
    left: Tensor  # [B, SIZE, SIZE], what neither explains
    light: Tensor  # [B]
    edges: Tensor  # of the pictures
    palette: Tensor  # [colours, 3]

    def at(self, rows: list[int]) -> _Views:
        tensors = (self.pictures, self.under, self.ground, self.left, self.light, self.edges)
        return _Views(self.style, [self.backdrops[i] for i in rows], *(part[rows] for part in tensors), self.palette)


def _judged(pictures: Tensor, palette: Tensor) -> list[Reading]:
    found = backdrops(pictures)
    readings: dict[int, Reading] = {}
    for style in styles.STYLES:
        rows = [i for i, backdrop in enumerate(found) if backdrop.style == style]
        if rows:
            readings.update(zip(rows, _of_style(pictures[rows], [found[i] for i in rows], style, palette), strict=True))
    return [readings[i] for i in range(len(pictures))]


def _of_style(pictures: Tensor, found: Sequence[Backdrop], style: str, palette: Tensor) -> list[Reading]:
    under = torch.stack([backdrop.picture for backdrop in found])
    left = unexplained(pictures, under, style == "neon")
    # Shadows are let pass: they belong to the ground that a thing stands on.
    ground = torch.minimum(under, torch.maximum(pictures, under * 0.45)).lerp(under, left[:, None])
    light = torch.tensor([-1.0 if backdrop.lit_from_left else 1.0 for backdrop in found])
    views = _Views(style, found, pictures, under, ground, left, light, edges(pictures), palette)
    fits, present = _searched(views)
    readings = _composed(views, fits, present)
    for search in (_searched_thoroughly, _searched_beside):
        rows = [i for i, reading in enumerate(readings) if min(reading.alike, default=1.0) < DOUBTFUL]
        if not rows:
            break
        some = views.at(rows)
        found, there = search(some, [fit.at(rows) for fit in fits], [part[rows] for part in present])
        for k, (i, reading) in enumerate(zip(rows, _composed(some, found, there), strict=True)):
            if sum(reading.alike) > sum(readings[i].alike):
                readings[i] = reading
                for old, new in zip(fits, found, strict=True):
                    old.put(i, new, k)
                for old, new in zip(present, there, strict=True):
                    old[i] = new[k]
    return readings


def _grown(field: Tensor, pixels: int) -> Tensor:
    """[B, SIZE, SIZE], the most within that distance."""
    return F.max_pool2d(field[:, None], 2 * pixels + 1, 1, pixels)[:, 0]


def _searched(views: _Views, thorough: bool = False) -> tuple[list[Fit], list[Tensor]]:
    """The thing that is plainest, then the other in what is left; and whether there is enough left for one, [B] each."""
    fits: list[Fit] = []
    present: list[Tensor] = []
    taken = torch.zeros_like(views.left)
    shown = _shown(views, views.ground)
    for _ in range(2):
        free = views.left * (1 - _grown(taken, EDGE))
        present.append(free.sum((1, 2)) >= LEAST)
        found = candidates(free, views.style == "neon", EVERY if thorough else CANDIDATES, thorough=thorough)
        fits.append(fitted(shown, 1 - taken, found))
        taken = torch.maximum(taken, _mask(views, fits[-1]))
    fits = _polished(views, fits, present)
    # What was left for a second thing may have been the edge of the first, before that was fitted well, and specks.
    free = views.left * (1 - _grown(_mask(views, fits[0]), EDGE))
    if views.style == "neon":  # whose things are thin lines
        present[1] &= free.sum((1, 2)) >= LEAST_LINES
    else:
        present[1] &= _grown(-_grown(-free, SPECK), SPECK).sum((1, 2)) >= LEAST
    return fits, present


def _mask(views: _Views, fit: Fit) -> Tensor:
    """[B, SIZE, SIZE], as if nothing stood before it."""
    return sampled(_pose(fit, views.light), slice(0, 1))[:, 0].clamp(0, 1)


def _searched_thoroughly(views: _Views, _fits: list[Fit], _present: list[Tensor]) -> tuple[list[Fit], list[Tensor]]:
    return _searched(views, thorough=True)


def _searched_beside(views: _Views, fits: list[Fit], present: list[Tensor]) -> tuple[list[Fit], list[Tensor]]:
    """With the other thing drawn beneath; first the one that fits less well."""
    fits = list(fits)
    for k in sorted((0, 1), key=lambda k: -float(fits[k].cost.sum())):
        beneath, other = _beneath(views, fits[1 - k], present[1 - k])
        found = candidates(views.left * (1 - other), views.style == "neon", EVERY, thorough=True)
        fits[k] = fitted(_shown(views, beneath), 1 - 0.5 * other, found)
    return _polished(views, fits, present), present


def _polished(views: _Views, fits: list[Fit], present: list[Tensor]) -> list[Fit]:
    """Each thing once more, with the other one drawn beneath it."""
    fits = list(fits)
    for k in (0, 1):
        beneath, other = _beneath(views, fits[1 - k], present[1 - k])
        alone = Candidates(*(getattr(fits[k], field.name)[:, None] for field in fields(Candidates)))
        fits[k] = fitted(_shown(views, beneath), 1 - 0.5 * other, alone, polish=True)
    return fits


def _shown(views: _Views, under: Tensor) -> Shown:
    return Shown(views.pictures, under, views.style, views.light, views.palette)


def _beneath(views: _Views, fit: Fit, present: Tensor) -> tuple[Tensor, Tensor]:
    """The ground with a thing on it, and the thing's mask, where it is present."""
    add, cover, alpha = _drawn(views, fit)
    there = present.float()[:, None, None, None]
    return views.ground * (1 - cover * there) + add * there, alpha * there[:, 0]


def _pose(fit: Fit, light: Tensor) -> Poses:
    return Poses(fit.kind, fit.x, fit.y, fit.radius, fit.turn, fit.mirrored, torch.zeros_like(fit.x), light)


def _drawn(views: _Views, fit: Fit) -> tuple[Tensor, Tensor, Tensor]:
    """What a thing adds, its cover, and its mask."""
    pose = _pose(fit, views.light)
    maps, along = sampled(pose), torch.arange(SIZE) + 0.5
    light = lighting(pose, along[None, None], along[None, :, None])
    paint, cover = styles.drawn(maps, light, views.style, styles.patterns())
    return paint[:, 1:] + paint[:, :1] * views.palette[fit.colour][..., None, None], cover, maps[:, 0].clamp(0, 1)


def _composed(views: _Views, fits: list[Fit], present: list[Tensor]) -> list[Reading]:
    """Draws both things, the one in front that explains more so, and measures what is explained."""
    parts = [_drawn(views, fit) for fit in fits]
    orders = []
    for order in ((0, 1), (1, 0)):
        picture = views.ground
        for k in order:
            add, cover, _ = parts[k]
            there = present[k].float()[:, None, None, None]
            picture = picture * (1 - cover * there) + add * there
        orders.append(picture)
    errors = torch.stack([(picture - views.pictures).square().sum((1, 2, 3)) for picture in orders])
    second_in_front = errors[0] <= errors[1]
    shown = torch.where(second_in_front[:, None, None, None], *orders)
    shares = _share(views.pictures, shown).tolist()
    drawn_edges = edges(shown)
    noise = _noise(views, shown, [part[2] * there[:, None, None] for part, there in zip(parts, present, strict=True)])
    readings = []
    for row, (backdrop, share) in enumerate(zip(views.backdrops, shares, strict=True)):
        order = (0, 1) if second_in_front[row] else (1, 0)
        whole = [parts[k][2][row] * present[k][row] for k in order]
        masks = [whole[0] * (1 - whole[1]), whole[1]]
        seen = []
        for k, mask, full, other in zip(order, masks, whole, reversed(masks), strict=True):
            if present[k][row]:
                area = _area(views, row, mask, other, fits[k])
                around = F.max_pool2d(area[None], 2 * EDGE + 1, STRIDE, EDGE)[0]
                alike = float(likeness(views.edges[row], drawn_edges[row], around))
                explained = _share_of_thing(views, row, shown[row], noise[row], area)
                seen.append(Seen(_thing(fits[k], row), explained, alike, mask, full))
        known = [thing for thing in seen if _is_known(thing)]
        is_known = share >= PICTURE
        readings.append(
            Reading(
                things=tuple(known) if is_known else (),
                style=views.style if is_known else None,
                background=backdrop.background if is_known else None,
                backdrop=backdrop,
                explained=share,
                unknown=len(seen) - len(known),
                seen=tuple(seen),
            )
        )
    return readings


def _is_known(seen: Seen) -> bool:
    return seen.explained >= THING and seen.alike >= ALIKE and bool(seen.mask.sum() >= VISIBLE * seen.whole.sum())


def _share(pictures: Tensor, shown: Tensor) -> Tensor:
    """[B], of what sets a picture apart from its mean colour, seen from afar where noise is even."""
    seen, drawn = F.avg_pool2d(pictures, 4), F.avg_pool2d(shown, 4)
    spread = (seen - seen.mean((2, 3), keepdim=True)).square().mean((1, 2, 3))
    return 1 - (seen - drawn).square().mean((1, 2, 3)) / (spread + 1e-4)


def _noise(views: _Views, shown: Tensor, masks: list[Tensor]) -> Tensor:
    """[B]: the squared error of a pixel that the whole picture has, as measured where its background shows."""
    free = (1 - masks[0]) * (1 - masks[1]) * (views.left < 0.1)
    errors = (views.pictures - shown).square().sum(1).clamp(max=5 * NOISE) * free
    return (errors.sum((1, 2)) / free.sum((1, 2)).clamp(min=1.0)).clamp(max=NOISE)


def _area(views: _Views, row: int, mask: Tensor, other: Tensor, fit: Fit) -> Tensor:
    """A thing's mask, and around it where neither the background nor the other thing shows."""
    along, reach = torch.arange(SIZE) + 0.5, 1.35 * fit.radius[row]
    near = ((along[None] - fit.x[row]).abs() < reach) & ((along[:, None] - fit.y[row]).abs() < reach)
    return torch.maximum(mask, views.left[row] * (1 - other) * near)


def _share_of_thing(views: _Views, row: int, shown: Tensor, noise: Tensor, area: Tensor) -> float:
    """But for the noise of the whole picture."""
    picture = views.pictures[row]
    wrong = (((picture - shown).square().sum(0) - noise) * area).sum().clamp(min=0)
    wanted = ((picture - views.under[row]).square().sum(0) * area).sum() + 0.02 * area.sum()
    return float(1 - wrong / wanted.clamp(min=1e-6))


def _thing(fit: Fit, row: int) -> Thing:
    return Thing(
        kind=list(KINDS)[int(fit.kind[row])],
        colour=list(EVERY_COLOUR)[int(fit.colour[row])],
        x=float(fit.x[row]),
        y=float(fit.y[row]),
        radius=float(fit.radius[row]),
        turn=float(fit.turn[row].rad2deg()),
        mirrored=bool(fit.mirrored[row] < 0),
    )
