"""Reads a picture back by drawing it: what it shows is what explains it best, or none of what the world has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from lab.world import styles
from lab.world.backdrop import Backdrop, backdrops
from lab.world.backgrounds import SIZE
from lab.world.fit import Fit, fitted
from lab.world.kinds import COLOURS, KINDS
from lab.world.render import Poses, lighting, sampled
from lab.world.scenes import Thing
from lab.world.search import Candidates, candidates, unexplained
from torch import Tensor

CANDIDATES, AGAIN = 6, 24  # at first, and where the first search explains too little
CHUNK = 16
# Set on held-out renders; docs/judge.md says what they let through.
PICTURE = 0.80  # the least share of a picture that must be explained
THING = 0.90  # the least share of what a thing's area shows that must be explained
DOUBTFUL = 0.95  # a share below which a thing is searched once more
LEAST = 90.0  # pixels of what the background does not explain, where a thing is looked for


@dataclass(frozen=True)
class Seen:
    """A thing that is seen; `explained`: the share of what its area shows, 1 if all."""

    thing: Thing
    explained: float
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
    shares: tuple[float, ...]  # what is explained of each thing, known or not

    @property
    def is_known(self) -> bool:
        return self.style is not None and bool(self.things) and not self.unknown


@torch.inference_mode()
def judge(pictures: Tensor) -> list[Reading]:
    """Of pictures [B, 3, SIZE, SIZE] in 0..1."""
    return [reading for chunk in pictures.float().split(CHUNK) for reading in _judged(chunk)]


def mask_iou(a: Tensor, b: Tensor) -> Tensor:
    """Soft intersection over union of masks [..., H, W]."""
    return torch.minimum(a, b).sum((-2, -1)) / torch.maximum(a, b).sum((-2, -1)).clamp(min=1e-6)


def _judged(pictures: Tensor) -> list[Reading]:
    found = backdrops(pictures)
    readings: dict[int, Reading] = {}
    for style in styles.STYLES:
        rows = [i for i, backdrop in enumerate(found) if backdrop.style == style]
        if rows:
            readings.update(zip(rows, _of_style(pictures[rows], [found[i] for i in rows], style), strict=True))
    return [readings[i] for i in range(len(pictures))]


def _of_style(pictures: Tensor, found: Sequence[Backdrop], style: str) -> list[Reading]:
    under = torch.stack([backdrop.picture for backdrop in found])
    light = torch.tensor([-1.0 if backdrop.lit_from_left else 1.0 for backdrop in found])
    left = unexplained(pictures, under, style == "neon")
    # Shadows are let pass: they belong to the ground that a thing stands on.
    ground = torch.minimum(under, torch.maximum(pictures, under * 0.45)).lerp(under, left[:, None])
    fits: list[Fit] = []
    present: list[Tensor] = []
    taken = torch.zeros_like(left)
    for _ in range(2):
        free = left * (1 - taken)
        present.append(free.sum((1, 2)) >= LEAST)
        fits.append(fitted(pictures, ground, 1 - taken, candidates(free, style == "neon", CANDIDATES), style, light))
        taken = torch.maximum(taken, sampled(_pose(fits[-1], light), slice(0, 1))[:, 0].clamp(0, 1))
    fits = _polished(pictures, ground, fits, present, style, light)
    readings = _composed(pictures, under, ground, left, found, fits, present, style, light)
    again = [i for i, reading in enumerate(readings) if min(reading.shares, default=1.0) < DOUBTFUL]
    if again:
        some = _again(
            pictures[again],
            ground[again],
            left[again],
            [_rows(fit, again) for fit in fits],
            [p[again] for p in present],
            style,
            light[again],
        )
        second = _composed(
            pictures[again],
            under[again],
            ground[again],
            left[again],
            [found[i] for i in again],
            some,
            [p[again] for p in present],
            style,
            light[again],
        )
        for i, reading in zip(again, second, strict=True):
            if sum(reading.shares) > sum(readings[i].shares):
                readings[i] = reading
    return readings


def _again(
    pictures: Tensor, ground: Tensor, left: Tensor, fits: list[Fit], present: list[Tensor], style: str, light: Tensor
) -> list[Fit]:
    """Both things searched anew with the other one drawn beneath it, the worse one first."""
    order = sorted((0, 1), key=lambda k: -float(fits[k].cost.sum()))
    fits = list(fits)
    for k in order:
        add, cover, alpha = _drawn(fits[1 - k], light, style)
        there = present[1 - k].float()[:, None, None, None]
        beneath = ground * (1 - cover * there) + add * there
        free = left * (1 - alpha * there[:, 0])
        fits[k] = fitted(
            pictures,
            beneath,
            1 - 0.5 * alpha * there[:, 0],
            candidates(free, style == "neon", AGAIN, turns=True),
            style,
            light,
        )
    return _polished(pictures, ground, fits, present, style, light)


def _rows(fit: Fit, rows: list[int]) -> Fit:
    return Fit(*(getattr(fit, field.name)[rows] for field in fields(Fit)))


def _polished(
    pictures: Tensor, ground: Tensor, fits: list[Fit], present: list[Tensor], style: str, light: Tensor
) -> list[Fit]:
    """Each thing once more, with the other one drawn beneath it."""
    fits = list(fits)
    for k in (0, 1):
        add, cover, alpha = _drawn(fits[1 - k], light, style)
        there = present[1 - k].float()[:, None, None, None]
        beneath = ground * (1 - cover * there) + add * there
        alone = Candidates(*(getattr(fits[k], field.name)[:, None] for field in fields(Candidates)))
        fits[k] = fitted(pictures, beneath, 1 - 0.5 * alpha * there[:, 0], alone, style, light, polish=True)
    return fits


def _pose(fit: Fit, light: Tensor, lift: Tensor | None = None) -> Poses:
    return Poses(
        fit.kind,
        fit.x,
        fit.y,
        fit.radius,
        fit.turn,
        fit.mirrored,
        torch.zeros_like(fit.x) if lift is None else lift,
        light,
    )


def _drawn(fit: Fit, light: Tensor, style: str) -> tuple[Tensor, Tensor, Tensor]:
    """A thing's addition and cover, and its mask."""
    pose = _pose(fit, light)
    maps, along = sampled(pose), torch.arange(SIZE) + 0.5
    paint, cover = styles.drawn(maps, lighting(pose, along[None, None], along[None, :, None]), style, styles.patterns())
    colour = torch.tensor(list(COLOURS.values()))[fit.colour][..., None, None]
    return paint[:, 1:] + paint[:, :1] * colour, cover, maps[:, 0].clamp(0, 1)


def _composed(
    pictures: Tensor,
    under: Tensor,
    ground: Tensor,
    left: Tensor,
    found: Sequence[Backdrop],
    fits: list[Fit],
    present: list[Tensor],
    style: str,
    light: Tensor,
) -> list[Reading]:
    """Draws both things in either order and measures what is explained."""
    parts = [_drawn(fit, light, style) for fit in fits]
    orders = []
    for behind, front in ((0, 1), (1, 0)):
        picture = ground
        for k in (behind, front):
            add, cover, _ = parts[k]
            there = present[k].float()[:, None, None, None]
            picture = picture * (1 - cover * there) + add * there
        orders.append(picture)
    errors = torch.stack([(picture - pictures).square().sum((1, 2, 3)) for picture in orders])
    second_in_front = errors[0] <= errors[1]
    shown = torch.where(second_in_front[:, None, None, None], *orders)
    whole_picture = _share(pictures, shown)
    readings = []
    for row, backdrop in enumerate(found):
        order = (0, 1) if second_in_front[row] else (1, 0)
        whole = [parts[k][2][row] * present[k][row] for k in order]
        masks = [whole[0] * (1 - whole[1]), whole[1]]
        seen, shares = [], []
        for k, mask, full, other in zip(order, masks, whole, reversed(masks), strict=True):
            if not present[k][row]:
                continue
            explained = _explained(pictures[row], shown[row], under[row], left[row], mask, other, fits[k], row)
            shares.append(explained)
            if explained >= THING:
                seen.append(Seen(_thing(fits[k], row), explained, mask, full))
        known = float(whole_picture[row]) >= PICTURE
        readings.append(
            Reading(
                things=tuple(seen) if known else (),
                style=style if known else None,
                background=backdrop.background if known else None,
                backdrop=backdrop,
                explained=float(whole_picture[row]),
                unknown=len(shares) - len(seen),
                shares=tuple(shares),
            )
        )
    return readings


def _share(pictures: Tensor, shown: Tensor) -> Tensor:
    """[B], of what sets a picture apart from its mean colour, seen from afar where noise is even."""
    seen, drawn = F.avg_pool2d(pictures, 4), F.avg_pool2d(shown, 4)
    spread = (seen - seen.mean((2, 3), keepdim=True)).square().mean((1, 2, 3))
    return 1 - (seen - drawn).square().mean((1, 2, 3)) / (spread + 1e-4)


def _explained(
    picture: Tensor, shown: Tensor, under: Tensor, left: Tensor, mask: Tensor, other: Tensor, fit: Fit, row: int
) -> float:
    """Within its mask, and around it where neither the background nor the other thing shows."""
    along = torch.arange(SIZE) + 0.5
    near = ((along[None] - fit.x[row]).abs() < 1.35 * fit.radius[row]) & (
        (along[:, None] - fit.y[row]).abs() < 1.35 * fit.radius[row]
    )
    area = torch.maximum(mask, left * (1 - other) * near)
    wrong = ((picture - shown).square().sum(0) * area).sum()
    wanted = ((picture - under).square().sum(0) * area).sum() + 0.02 * area.sum()
    return float(1 - wrong / wanted.clamp(min=1e-6))


def _thing(fit: Fit, row: int) -> Thing:
    return Thing(
        kind=list(KINDS)[int(fit.kind[row])],
        colour=list(COLOURS)[int(fit.colour[row])],
        x=float(fit.x[row]),
        y=float(fit.y[row]),
        radius=float(fit.radius[row]),
        turn=float(fit.turn[row].rad2deg()),
        mirrored=bool(fit.mirrored[row] < 0),
    )
