"""Moves, sizes, turns and colours drawn things until they explain a picture best."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import torch
from kornia.filters import gaussian_blur2d
from lab.world import styles
from lab.world.backgrounds import SIZE
from lab.world.kinds import BLUR, COLOURS, blurred_sprites, sprites
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


FAR = Stage(True, 4, (1.0, 0.6, 0.4))  # reaches things that are some pixels off
NEAR = Stage(False, 3, (0.5, 0.25))
EXACT = Stage(False, 3, (0.25, 0.12))


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


def fitted(
    pictures: Tensor,
    under: Tensor,
    weight: Tensor,
    found: Candidates,
    style: str,
    light: Tensor,
    *,
    polish: bool = False,
) -> Fit:
    """Pictures and what lies under the thing [B, 3, SIZE, SIZE], all of one style; `weight` [B, SIZE, SIZE] of the pixels.

    `polish`: the candidates are nearly right.
    """
    if polish:
        settled, colour, cost = _settled(pictures, under, weight, found, style, light, EXACT)
    else:
        blurred = gaussian_blur2d(torch.cat([pictures, under], 1), (9, 9), (BLUR, BLUR))
        settled, colour, cost = _settled(*blurred.split(3, 1), weight, found, style, light, FAR)
        order = cost.topk(FINAL, dim=1, largest=False).indices
        settled = Candidates(*(getattr(settled, field.name).gather(1, order) for field in fields(Candidates)))
        settled, colour, cost = _settled(pictures, under, weight, settled, style, light, NEAR, colour.gather(1, order))
    best = cost.argmin(1, keepdim=True)
    parts = [getattr(settled, field.name) for field in fields(Candidates)]
    return Fit(*(part.gather(1, best)[:, 0] for part in (*parts, colour, cost)))


def _settled(
    pictures: Tensor,
    under: Tensor,
    weight: Tensor,
    found: Candidates,
    style: str,
    light: Tensor,
    stage: Stage,
    colour: Tensor | None = None,
) -> tuple[Candidates, Tensor, Tensor]:
    """Gauss-Newton steps of all candidates, from the colours that are known; each one's colour and cost [B, K]."""
    batch, count = found.kind.shape
    x, y, inside = _window(found, stage.step)
    index = (y.clamp(0, SIZE - 1) * SIZE + x.clamp(0, SIZE - 1)).repeat_interleave(count, 0)  # N x pixels
    rows = torch.arange(batch).repeat_interleave(count)[:, None]
    seen = pictures.flatten(2).movedim(1, 2)[rows, index].movedim(2, 1)  # N x 3 x pixels
    below = under.flatten(2).movedim(1, 2)[rows, index].movedim(2, 1)
    weight = weight.flatten(1)[rows, index] * inside.repeat_interleave(count, 0)
    if stage.blurred:
        patterns = styles.patterns().mean((1, 2)).expand(len(index), 1, -1).movedim(2, 1)[..., None]
    else:
        patterns = styles.patterns().flatten(1)[:, index].movedim(0, 1)[:, :, None]  # N x 4 x 1 x pixels
    xs, ys = (part.repeat_interleave(count, 0) + 0.5 for part in (x, y))
    light = light.repeat_interleave(count)
    state = torch.stack([found.x, found.y, found.radius.log(), found.turn], 2).flatten(0, 1)  # N x 4
    kind, mirrored = found.kind.flatten(), found.mirrored.flatten()
    textures = (blurred_sprites() if stage.blurred else sprites())[
        level(found.radius.flatten()), kind, : 7 if style == "neon" else 6
    ]
    palette = torch.tensor(list(COLOURS.values()))

    def drawn(states: Tensor) -> tuple[Tensor, Tensor]:
        """Of T states each, the picture without the thing's own colour [N, T, 3, pixels], and how much of that comes."""
        one = torch.ones_like(states[..., 0])
        sx, sy, size, turn = states.unbind(2)
        pose = Poses(kind, sx, sy, size.exp(), turn, one * mirrored[:, None], one * 0, one * light[:, None])
        maps = sampled_at(pose, xs, ys, textures)  # N x 8 x T x pixels
        paint, cover = styles.drawn(maps, lighting(pose, xs[:, None], ys[:, None]), style, patterns)
        without = below[:, :, None] * (1 - cover) + paint[:, 1:]
        return without.movedim(2, 1), paint[:, :1].movedim(2, 1)

    def best_colour() -> tuple[Tensor, Tensor]:
        """The least cost and its colour."""
        without, share = drawn(state[:, None])
        errors = (without + share * palette[:, :, None] - seen[:, None]).square().sum(2)  # N x colours x pixels
        return ((errors / (errors + SOFT)) * weight[:, None]).mean(2).min(1)

    moves, largest = torch.tensor(MOVES), torch.tensor(LARGEST)
    trials = torch.cat([torch.zeros(1, 4), moves.diag()])
    colour = best_colour()[1] if colour is None else colour.flatten()
    for soft in stage.trust:
        without, share = drawn(state[:, None] + trials)
        shown = without + share * palette[colour][:, None, :, None]
        error = seen - shown[:, 0]
        sure = weight * (soft / (error.square().sum(1) + soft)) ** 2
        slopes = (shown[:, 1:] - shown[:, :1]) / moves[:, None, None]  # N x 4 x 3 x pixels
        weighted = (slopes * sure[:, None, None]).flatten(2)
        normal = weighted @ slopes.flatten(2).transpose(1, 2)
        normal = normal + torch.diag_embed(normal.diagonal(dim1=1, dim2=2) * 0.01 + 1e-5)
        change = torch.linalg.solve(normal, (weighted @ error.flatten(1)[..., None])[..., 0])
        state = state + torch.maximum(torch.minimum(change, largest), -largest)
        state[:, 2].clamp_(*(math.log(radius) for radius in SIZED))
        state[:, 3].clamp_(-TURNED, TURNED)
    cost, colour = best_colour()
    px, py, size, turn = state.view(batch, count, 4).unbind(2)
    settled = Candidates(found.kind, px, py, size.exp(), turn, found.mirrored)
    return settled, colour.view(batch, count), cost.view(batch, count)


def _window(found: Candidates, step: int) -> tuple[Tensor, Tensor, Tensor]:
    """Pixels [B, P] (x, y) of a square around each picture's first candidate, and whether they lie in the picture."""
    along = torch.arange(0, WINDOW, step) - WINDOW // 2
    x = (found.x[:, :1].round().long()[..., None] + along[None, None, :]).expand(-1, len(along), -1).flatten(1)
    y = (found.y[:, :1].round().long()[..., None] + along[None, :, None]).expand(-1, -1, len(along)).flatten(1)
    return x, y, ((x >= 0) & (x < SIZE) & (y >= 0) & (y < SIZE)).float()
