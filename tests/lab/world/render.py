"""Draws scenes: pictures, and the exact mask of each thing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from lab.world import styles
from lab.world.backgrounds import BACKGROUNDS, SIZE, panoramas
from lab.world.kinds import EVERY_COLOUR, KINDS, RADII, REACH, sprites
from lab.world.scenes import BOUNDS, Scene
from lab.world.styles import STYLES
from torch import Tensor

SHADOW = (0.62, 0.34)  # how far a shadow of height 1 lies aside, and towards the viewer


@dataclass(frozen=True)
class Rendering:
    pictures: Tensor  # [B, 3, SIZE, SIZE] in 0..1
    whole: Tensor  # [B, 2, SIZE, SIZE] in 0..1: each thing as if nothing stood before it; zeros for a thing that is not there
    visible: Tensor  # the same without what stands before it


@dataclass(frozen=True)
class Poses:
    """How N things lie in their pictures; all tensors are [N]."""

    kind: Tensor
    x: Tensor
    y: Tensor
    radius: Tensor
    turn: Tensor  # radians
    mirrored: Tensor  # 1 or -1
    lift: Tensor
    light: Tensor  # 1 if the light comes from the right, -1 from the left


@torch.no_grad()
def render(scenes: Sequence[Scene]) -> Rendering:
    whole = torch.zeros(len(scenes), 2, SIZE, SIZE)
    result = Rendering(torch.empty(len(scenes), 3, SIZE, SIZE), whole, whole.clone())
    for style in STYLES:
        rows = [i for i, scene in enumerate(scenes) if scene.style == style]
        if rows:
            _render([scenes[i] for i in rows], style, torch.tensor(rows), result)
    return result


def _render(scenes: list[Scene], style: str, rows: Tensor, result: Rendering) -> None:
    """Scenes of one style, into those rows of the result."""
    pictures = styles.background(view(scenes), style)
    depths = range(max(len(scene.things) for scene in scenes))
    having = [[i for i, scene in enumerate(scenes) if depth < len(scene.things)] for depth in depths]
    lying = [poses([scenes[i] for i in some], depth) for depth, some in enumerate(having)]
    for some, pose in zip(having, lying, strict=True):
        pictures[some] = styles.shaded(pictures[some], shadows(pose), style)
    for depth, (some, pose) in enumerate(zip(having, lying, strict=True)):
        maps = sampled(pose)
        along = torch.arange(SIZE) + 0.5
        light = lighting(pose, along[None, None, :], along[None, :, None])
        paint, cover = styles.drawn(maps, light, style, styles.patterns())
        colours = torch.tensor([EVERY_COLOUR[scenes[i].things[depth].colour] for i in some])
        pictures[some] = pictures[some] * (1 - cover) + paint[:, 1:] + paint[:, :1] * colours[..., None, None]
        alpha = maps[:, 0].clamp(0, 1)
        result.visible[rows[some]] *= 1 - alpha[:, None]
        result.whole[rows[some], depth] = result.visible[rows[some], depth] = alpha
    result.pictures[rows] = pictures.clamp(0, 1)


def view(scenes: Sequence[Scene]) -> Tensor:
    """The channels of the backgrounds' parts that the scenes show, [B, 5, SIZE, SIZE]."""
    wide, names = panoramas(), list(BACKGROUNDS)
    return torch.stack(
        [
            wide[names.index(s.background), int(s.lit_from_left), :, s.tilt : s.tilt + SIZE, s.pan : s.pan + SIZE]
            for s in scenes
        ]
    )


def poses(scenes: Sequence[Scene], depth: int) -> Poses:
    names = list(KINDS)
    things = [scene.things[depth] for scene in scenes]
    return Poses(
        kind=torch.tensor([names.index(t.kind) for t in things]),
        x=torch.tensor([t.x for t in things]),
        y=torch.tensor([t.y for t in things]),
        radius=torch.tensor([t.radius for t in things]),
        turn=torch.tensor([t.turn for t in things]).deg2rad(),
        mirrored=torch.tensor([-1.0 if t.mirrored else 1.0 for t in things]),
        lift=torch.tensor([t.lift for t in things]),
        light=torch.tensor([-1.0 if s.lit_from_left else 1.0 for s in scenes]),
    )


def sampled(pose: Poses, channels: slice = slice(None)) -> Tensor:
    """The sprites' channels [N, C, SIZE, SIZE]."""
    matrix, middle = _axes(pose), SIZE / 2 - torch.stack([pose.x, pose.y], 1)
    upright = torch.cat([matrix * (SIZE / 2 / REACH), (matrix @ middle[..., None]) / REACH], 2)
    return _sampled(upright, sprites()[level(pose.radius), pose.kind, channels])


def sampled_at(pose: Poses, x: Tensor, y: Tensor, textures: Tensor) -> Tensor:
    """Of N textures [N, C, *, *], each in T poses [N, T]: [N, C, T, P] at pixels (x, y) [N, P]."""
    matrix = _axes(pose).flatten(0, 1)
    offset = torch.stack([x[:, None] - pose.x[..., None], y[:, None] - pose.y[..., None]], 2).flatten(0, 1)
    grid = (matrix @ offset / REACH).movedim(1, 2).reshape(*pose.x.shape, -1, 2)
    return F.grid_sample(textures, grid, align_corners=False, padding_mode="zeros")


def level(radius: Tensor) -> Tensor:
    """Which of RADII is nearest."""
    return (radius.log()[:, None] - torch.tensor(RADII).log()).abs().argmin(1)


def _axes(pose: Poses) -> Tensor:
    """[..., 2, 2]: from pixels to the outlines' units."""
    cos, sin = pose.turn.cos() / pose.radius, pose.turn.sin() / pose.radius
    return torch.stack([torch.stack([cos * pose.mirrored, sin * pose.mirrored], -1), torch.stack([-sin, cos], -1)], -2)


def shadows(pose: Poses) -> Tensor:
    """[N, SIZE, SIZE]: how deep the shadow on the ground is."""
    aside, near = SHADOW
    foot = torch.tensor([bounds[3] for bounds in BOUNDS.values()])[pose.kind]
    ground = pose.y + foot * pose.radius + pose.lift
    # A point at height h above the ground throws its shadow to (x - light * aside * h, ground + near * h).
    lean = pose.light * aside / near
    zero = torch.zeros_like(lean)
    matrix = torch.stack(
        [torch.stack([pose.mirrored, pose.mirrored * lean], 1), torch.stack([zero, -1 / near + zero], 1)], 1
    )
    matrix = matrix / pose.radius[:, None, None]
    middle = SIZE / 2 - torch.stack([pose.x, ground], 1)
    height = torch.stack([zero, (ground - pose.y) / pose.radius], 1)[..., None]
    theta = torch.cat([matrix * (SIZE / 2 / REACH), (matrix @ middle[..., None] + height) / REACH], 2)
    return _sampled(theta, sprites()[level(pose.radius), pose.kind, 7:8])[:, 0]


def lighting(pose: Poses, x: Tensor, y: Tensor) -> Tensor:
    """[N, *, *] from -1 on the side away from the light to 1, at pixels (x, y) of three dimensions."""
    left, top, radius, light = (
        part.reshape(*part.shape, *[1] * (3 - part.ndim)) for part in (pose.x, pose.y, pose.radius, pose.light)
    )
    return ((light * (x - left) - (y - top)) * 0.7 / radius).clamp(-1, 1)


def _sampled(theta: Tensor, texture: Tensor) -> Tensor:
    along = (2 * torch.arange(SIZE) + 1) / SIZE - 1
    across, down, start = (part[:, :, None, None] for part in theta.unbind(2))
    grid = (across * along + down * along[:, None] + start).movedim(1, 3)  # as F.affine_grid, but much faster
    return F.grid_sample(texture, grid, align_corners=False, padding_mode="zeros")
