"""Where things may be: silhouettes of all kinds, sizes and turns, compared with what the background does not explain."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from lab.world.backgrounds import SIZE
from lab.world.kinds import KINDS
from lab.world.render import Poses, sampled
from torch import Tensor

COARSE = 4  # pixels averaged
CELLS = SIZE // COARSE
RADII = (19.0, 21.5, 24.5, 27.5, 31.0)
TURNS = (-12.0, -4.0, 4.0, 12.0)
NEAR = 3  # cells from the best place, within which other kinds are tried


@dataclass(frozen=True)
class Candidates:
    """[B, K] of each picture, the best first."""

    kind: Tensor
    x: Tensor
    y: Tensor
    radius: Tensor
    turn: Tensor  # radians
    mirrored: Tensor


def unexplained(pictures: Tensor, backdrops: Tensor, neon: bool) -> Tensor:
    """[B, SIZE, SIZE] from 0 to 1: where a picture is neither its background nor a shadow on it."""
    ground = (backdrops * torch.tensor([1.0, 0.9, 0.72])[:, None, None]) + 1e-3
    # A shadow takes some of that away: picture = backdrop - s * ground.
    depth = ((backdrops - pictures) * ground).sum(1) / ground.square().sum(1)
    left = pictures - backdrops + depth.clamp(0, 0.5)[:, None] * ground
    least, more = (0.28, 0.4) if neon else (0.06, 0.11)  # of neon, the lines without their glow
    return ((left.square().sum(1).sqrt() - least) / more).clamp(0, 1)


def candidates(found: Tensor, neon: bool, count: int, *, turns: bool = False) -> Candidates:
    """Of `unexplained` [B, SIZE, SIZE]; `neon`: things are their glowing lines; `turns`: each kind with every turn."""
    spectra, energy, poses = _bank(neon)
    cells = F.avg_pool2d(found[:, None], COARSE)[:, 0]
    shared = torch.fft.irfft2(torch.fft.rfft2(cells)[:, None] * spectra, s=(CELLS, CELLS))
    explained = (2 * shared - energy[:, None, None]).flatten(2)  # B x templates x places
    place = explained.amax(1).argmax(1)
    y, x = place // CELLS, place % CELLS
    reach = torch.arange(-NEAR, NEAR + 1)
    around = (y[:, None, None] + reach[:, None]) % CELLS * CELLS + (x[:, None, None] + reach) % CELLS
    around = around.flatten(1)[:, None].expand(-1, explained.shape[1], -1)
    value, at = explained.gather(2, around).max(2)  # B x templates
    at = around[:, 0].gather(1, at)
    # The best of each kind and side.
    groups = 2 * len(KINDS) * (len(TURNS) if turns else 1)
    value, at = value.view(len(found), groups, -1), at.view(len(found), groups, -1)
    best, which = value.max(2)
    order = best.topk(count, dim=1).indices
    which, place = which.gather(1, order), at.gather(2, which[..., None])[..., 0].gather(1, order)
    template = order * value.shape[2] + which
    return Candidates(
        kind=poses.kind[template],
        x=(place % CELLS + 0.5) * COARSE,
        y=(place // CELLS + 0.5) * COARSE,
        radius=poses.radius[template],
        turn=poses.turn[template],
        mirrored=poses.mirrored[template],
    )


@cache
def _bank(neon: bool) -> tuple[Tensor, Tensor, Poses]:
    """Spectra [N, CELLS, CELLS // 2 + 1] and squared sums [N] of silhouettes, ordered by kind, side, turn and radius."""
    grid = torch.cartesian_prod(
        torch.arange(len(KINDS)).float(), torch.tensor([1.0, -1.0]), torch.tensor(TURNS).deg2rad(), torch.tensor(RADII)
    )
    kind, mirrored, turn, radius = grid.unbind(1)
    middle = torch.full_like(radius, SIZE / 2 + COARSE / 2)
    poses = Poses(
        kind.long(), middle, middle, radius, turn, mirrored, torch.zeros_like(radius), torch.ones_like(radius)
    )
    parts = []
    for some in torch.arange(len(kind)).split(32):
        pose = Poses(*(getattr(poses, name)[some] for name in Poses.__dataclass_fields__))
        maps = sampled(pose, slice(5, 7) if neon else slice(0, 1))
        shape = (1.2 * maps[:, 0] + 0.25 * maps[:, 1]).clamp(max=1) if neon else maps[:, 0]
        parts.append(F.avg_pool2d(shape[:, None], COARSE)[:, 0])
    templates = torch.cat(parts).roll((-CELLS // 2, -CELLS // 2), (1, 2))
    return torch.fft.rfft2(templates).conj(), templates.square().sum((1, 2)), poses
