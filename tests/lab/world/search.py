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
SUPPORT = 10  # cells from a silhouette's middle to its square's side


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


def candidates(found: Tensor, neon: bool, count: int, *, thorough: bool = False) -> Candidates:
    """Of `unexplained` [B, SIZE, SIZE]; `neon`: things are their glowing lines.

    `thorough`: where the smallest silhouettes fit best, which take no two things for one; lines do not.
    """
    bank = _bank(neon)
    cells = F.avg_pool2d(found[:, None], COARSE)[:, 0]
    # Some of the silhouettes say where a thing is, all of them what it may be there.
    some, spectra = (bank.some[:: bank.sizes], bank.spectra[:: bank.sizes]) if thorough else (bank.some, bank.spectra)
    shared = torch.fft.irfft2(torch.fft.rfft2(cells)[:, None] * spectra, s=(CELLS, CELLS))
    place = (2 * shared - bank.energy[some, None, None]).flatten(2).amax(1).argmax(1)
    y, x = place // CELLS, place % CELLS
    reach = torch.arange(-NEAR, NEAR + 1)
    around = F.pad(cells, [SUPPORT + NEAR] * 4).unfold(1, 2 * SUPPORT + 1, 1).unfold(2, 2 * SUPPORT + 1, 1)
    rows = torch.arange(len(found))[:, None, None]
    parts = around[rows, (y[:, None] + NEAR + reach)[:, :, None], (x[:, None] + NEAR + reach)[:, None]]
    shared = parts.flatten(3).flatten(1, 2) @ bank.templates.T  # B x places x templates
    value, at = (2 * shared - bank.energy).max(1)
    # The best of each kind and side.
    groups = 2 * len(KINDS)
    value, at = value.view(len(found), groups, -1), at.view(len(found), groups, -1)
    best, which = value.max(2)
    order = best.topk(count, dim=1).indices
    which, at = which.gather(1, order), at.gather(2, which[..., None])[..., 0].gather(1, order)
    template = order * value.shape[2] + which
    poses = bank.poses
    return Candidates(
        kind=poses.kind[template],
        x=(x[:, None] + reach[at % len(reach)] + 0.5) * COARSE,
        y=(y[:, None] + reach[at // len(reach)] + 0.5) * COARSE,
        radius=poses.radius[template],
        turn=poses.turn[template],
        mirrored=poses.mirrored[template],
    )


@dataclass(frozen=True)
class _Bank:
    """N silhouettes, ordered by kind, side, turn and radius."""

    poses: Poses
    templates: Tensor  # [N, cells of their squares]
    energy: Tensor  # [N], squared sums
    some: Tensor  # which of them are looked for everywhere: [M]
    spectra: Tensor  # of these: [M, CELLS, CELLS // 2 + 1]
    sizes: int  # the first of each so many is the smallest


@cache
def _bank(neon: bool) -> _Bank:
    grid = torch.cartesian_prod(
        torch.arange(len(KINDS)).float(), torch.tensor([1.0, -1.0]), torch.tensor(TURNS).deg2rad(), torch.tensor(RADII)
    )
    kind, mirrored, turn, radius = grid.unbind(1)
    middle = torch.full_like(radius, SIZE / 2 + COARSE / 2)
    poses = Poses(
        kind.long(), middle, middle, radius, turn, mirrored, torch.zeros_like(radius), torch.ones_like(radius)
    )
    parts = []
    for rows in torch.arange(len(kind)).split(32):
        pose = Poses(*(getattr(poses, name)[rows] for name in Poses.__dataclass_fields__))
        maps = sampled(pose, slice(5, 7) if neon else slice(0, 1))
        shape = (1.2 * maps[:, 0] + 0.25 * maps[:, 1]).clamp(max=1) if neon else maps[:, 0]
        parts.append(F.avg_pool2d(shape[:, None], COARSE)[:, 0])
    whole = torch.cat(parts)
    # Thin lines meet in a few turns and sizes only.
    turns, radii = (slice(1, 3), slice(None)) if neon else (slice(1, 2), slice(None, None, 2))
    some = torch.arange(len(kind)).view(len(KINDS), 2, len(TURNS), len(RADII))[:, :, turns, radii].flatten()
    spectra = torch.fft.rfft2(whole[some].roll((-CELLS // 2, -CELLS // 2), (1, 2))).conj()
    first, last = CELLS // 2 - SUPPORT, CELLS // 2 + SUPPORT + 1
    squares = whole[:, first:last, first:last].flatten(1)
    return _Bank(poses, squares, whole.square().sum((1, 2)), some, spectra, 1 if neon else len(RADII[radii]))
