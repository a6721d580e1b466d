"""Moves, sizes, turns and colours drawn things until they explain a picture best."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from functools import cached_property

import torch
from kornia.filters import gaussian_blur2d
from lab.world import styles
from lab.world.backgrounds import SIZE
from lab.world.kinds import BLUR, blurred_sprites, sprites
from lab.world.render import Poses, level, lighting, sampled_at
from lab.world.search import Candidates
from torch import Tensor

WINDOW = 76  # pixels around the place of the first candidate
MOVES = (0.4, 0.4, 0.015, 0.03)  # of x, y, log radius and turn, for the slopes
LARGEST = (3.0, 3.0, 0.09, 0.12)  # steps of a round
TURNED, SIZED = 0.40, (14.0, 42.0)  # how far a turn (radians) and a radius may go
SOFT = 0.25  # squared error beyond which a pixel counts less where candidates are compared
FINAL = 2  # candidates of the last rounds


@dataclass(frozen=True)
class Stage:
    blurred: bool
    step: int  # pixels between those that are compared
    trust: tuple[float, ...]  # squared error beyond which a pixel counts less, round by round
    kept: tuple[int, ...]  # the candidates of each round, at most


FAR = Stage(True, 4, (1.0, 0.6, 0.4), (6, 3, 2))  # reaches things that are some pixels off
THOROUGH = Stage(True, 4, (1.0, 0.6, 0.4), (16, 6, 3))
NEAR = Stage(False, 4, (0.5, 0.25), (2, 1))
EXACT = Stage(False, 3, (0.25, 0.12), (1, 1))


@dataclass(frozen=True)
class Fit:
    """The best candidate of each picture; all [B]."""

    kind: Tensor
    x: Tensor
    y: Tensor
    radius: Tensor
    turn: Tensor
    mirrored: Tensor
    colour: Tensor
    cost: Tensor  # mean over the window

    def at(self, rows: list[int]) -> Fit:
        return Fit(*(getattr(self, field.name)[rows] for field in fields(Fit)))

    def put(self, row: int, other: Fit, others_row: int) -> None:
        """That row of another fit in place of a row of this one."""
        for field in fields(Fit):
            getattr(self, field.name)[row] = getattr(other, field.name)[others_row]


@dataclass(frozen=True)
class Shown:
    """Pictures of one style, and what lies under the thing that is fitted."""

    pictures: Tensor  # [B, 3, SIZE, SIZE]
    under: Tensor  # [B, 3, SIZE, SIZE]
    style: str
    light: Tensor  # [B]
    palette: Tensor  # [colours, 3], of those that things may have

    @cached_property
    def blurred(self) -> tuple[Tensor, Tensor]:
        """Pictures and what lies under."""
        return gaussian_blur2d(torch.cat([self.pictures, self.under], 1), (9, 9), (BLUR, BLUR)).split(3, 1)


def fitted(shown: Shown, weight: Tensor, found: Candidates, *, polish: bool = False) -> Fit:
    """`weight` [B, SIZE, SIZE] of the pixels. `polish`: there is one candidate, and it is nearly right."""
    if not polish:
        stage = FAR if found.kind.shape[1] <= FAR.kept[0] else THOROUGH
        found, colour = _settled(shown, weight, found, stage)[:2]
        found, colour = _first(found, FINAL), colour[:, :FINAL]
    settled, colour, cost = (
        _settled(shown, weight, found, EXACT) if polish else _settled(shown, weight, found, NEAR, colour)
    )
    parts = [getattr(settled, field.name) for field in fields(Candidates)]
    return Fit(*(part[:, 0] for part in (*parts, colour, cost)))


def _first(found: Candidates, count: int) -> Candidates:
    return Candidates(*(getattr(found, field.name)[:, :count] for field in fields(Candidates)))


@dataclass(frozen=True)
class _Compared:
    """N candidates, and the pixels that they are compared with."""

    kind: Tensor  # [N]
    mirrored: Tensor  # [N]
    light: Tensor  # [N]
    textures: Tensor  # [N, C, *, *]
    x: Tensor  # [N, pixels]
    y: Tensor  # [N, pixels]
    seen: Tensor  # [N, 3, pixels]
    under: Tensor  # [N, 3, pixels]
    weight: Tensor  # [N, pixels]
    patterns: Tensor  # [N, 4, 1, pixels]

    def rows(self, rows: Tensor) -> _Compared:
        return _Compared(*(getattr(self, field.name)[rows] for field in fields(_Compared)))

    def drawn(self, states: Tensor, style: str) -> tuple[Tensor, Tensor]:
        """Of states [N, T, 4], the picture without the thing's own colour [N, T, 3, pixels], and how much of that comes."""
        one = torch.ones_like(states[..., 0])
        x, y, size, turn = states.unbind(2)
        pose = Poses(
            self.kind, x, y, size.exp(), turn, one * self.mirrored[:, None], one * 0, one * self.light[:, None]
        )
        maps = sampled_at(pose, self.x, self.y, self.textures)  # N x C x T x pixels
        light = lighting(pose, self.x[:, None], self.y[:, None])
        paint, cover = styles.drawn(maps, light, style, self.patterns)
        without = self.under[:, :, None] * (1 - cover) + paint[:, 1:]
        return without.movedim(2, 1), paint[:, :1].movedim(2, 1)


def _compared(shown: Shown, weight: Tensor, found: Candidates, stage: Stage) -> _Compared:
    batch, count = found.kind.shape
    pictures, under = shown.blurred if stage.blurred else (shown.pictures, shown.under)
    x, y, inside = _window(found, stage.step)
    index = y.clamp(0, SIZE - 1) * SIZE + x.clamp(0, SIZE - 1)  # B x pixels
    planes = index[:, None].expand(-1, 3, -1)
    if stage.blurred:
        patterns = styles.patterns().mean((1, 2))[:, None].expand(batch, -1, -1)
    else:
        patterns = styles.patterns().flatten(1)[:, index].movedim(0, 1)  # B x 4 x pixels
    of_pictures = (
        shown.light,
        x + 0.5,
        y + 0.5,
        pictures.flatten(2).gather(2, planes),
        under.flatten(2).gather(2, planes),
        weight.flatten(1).gather(1, index) * inside,
        patterns[:, :, None],
    )
    light, *pixels = (part.repeat_interleave(count, 0) for part in of_pictures)
    kind, mirrored = found.kind.flatten(), found.mirrored.flatten()
    texture = blurred_sprites() if stage.blurred else sprites()
    channels = 7 if shown.style == "neon" else 6
    textures = texture[level(found.radius.flatten()), kind, :channels]
    return _Compared(kind, mirrored, light, textures, *pixels)


def _settled(
    shown: Shown, weight: Tensor, found: Candidates, stage: Stage, colour: Tensor | None = None
) -> tuple[Candidates, Tensor, Tensor]:
    """Gauss-Newton steps of the candidates, from the colours that are known, without those that fall behind.

    The candidates that are left, the best first, with their colours and costs [B, K].
    """
    batch = len(found.kind)
    compared = _compared(shown, weight, found, stage)
    state = torch.stack([found.x, found.y, found.radius.log(), found.turn], 2).flatten(0, 1)  # N x 4
    moves, largest, palette = torch.tensor(MOVES), torch.tensor(LARGEST), shown.palette
    colour = None if colour is None else colour.flatten()

    def costs(without: Tensor, share: Tensor, colours: Tensor) -> Tensor:
        """Of colours [N, C, 3] in a state, [N, C]."""
        errors = (without + share * colours[..., None] - compared.seen[:, None]).square().sum(2)  # N x C x pixels
        return ((errors / (errors + SOFT)) * compared.weight[:, None]).mean(2)

    for soft, kept in zip(stage.trust, stage.kept, strict=True):
        without, share = compared.drawn(state[:, None], shown.style)
        if colour is None:
            cost, colour = costs(without, share, palette[None]).min(1)
        else:
            cost = costs(without, share, palette[colour][:, None])[:, 0]
        if kept * batch < len(state):
            rows = _best(cost, batch, kept)
            compared, state, colour, without, share = (
                compared.rows(rows),
                *(part[rows] for part in (state, colour, without, share)),
            )
        own = palette[colour][:, None, :, None]
        drawn = without + share * own
        moved, share = compared.drawn(state[:, None] + moves.diag(), shown.style)
        error = compared.seen - drawn[:, 0]
        sure = compared.weight * (soft / (error.square().sum(1) + soft)) ** 2
        slopes = (moved + share * own - drawn) / moves[:, None, None]  # N x 4 x 3 x pixels
        weighted = (slopes * sure[:, None, None]).flatten(2)
        normal = weighted @ slopes.flatten(2).transpose(1, 2)
        normal = normal + torch.diag_embed(normal.diagonal(dim1=1, dim2=2) * 0.01 + 1e-5)
        change = torch.linalg.solve(normal, (weighted @ error.flatten(1)[..., None])[..., 0])
        state = state + torch.maximum(torch.minimum(change, largest), -largest)
        state[:, 2].clamp_(*(math.log(radius) for radius in SIZED))
        state[:, 3].clamp_(-TURNED, TURNED)
    cost, colour = costs(*compared.drawn(state[:, None], shown.style), palette[None]).min(1)
    rows = _best(cost, batch, len(cost) // batch)
    kind, mirrored, colour, cost = (
        part[rows].view(batch, -1) for part in (compared.kind, compared.mirrored, colour, cost)
    )
    x, y, size, turn = state[rows].view(batch, -1, 4).unbind(2)
    return Candidates(kind, x, y, size.exp(), turn, mirrored), colour, cost


def _best(cost: Tensor, batch: int, count: int) -> Tensor:
    """Which of costs [N] are the `count` least of each picture, ascending."""
    of_pictures = cost.view(batch, -1)
    order = of_pictures.topk(count, dim=1, largest=False).indices
    return (order + torch.arange(batch)[:, None] * of_pictures.shape[1]).flatten()


def _window(found: Candidates, step: int) -> tuple[Tensor, Tensor, Tensor]:
    """Pixels [B, P] (x, y) of a square around each picture's first candidate, and whether they lie in the picture."""
    along = torch.arange(0, WINDOW, step) - WINDOW // 2
    x = (found.x[:, :1].round().long()[..., None] + along[None, None, :]).expand(-1, len(along), -1).flatten(1)
    y = (found.y[:, :1].round().long()[..., None] + along[None, :, None]).expand(-1, -1, len(along)).flatten(1)
    return x, y, ((x >= 0) & (x < SIZE) & (y >= 0) & (y < SIZE)).float()
