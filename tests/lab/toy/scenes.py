"""Procedural scenes: one textured shape on a soft background, rendered with its caption and its exact mask."""

import hashlib
import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import Tensor

SIZE = 128

SHAPES = ("circle", "square", "triangle", "star", "cross", "heart")
COLOURS = {
    "red": (0.88, 0.10, 0.14),
    "orange": (0.98, 0.52, 0.06),
    "yellow": (0.98, 0.88, 0.14),
    "green": (0.10, 0.62, 0.22),
    "cyan": (0.15, 0.80, 0.85),
    "blue": (0.12, 0.28, 0.90),
    "purple": (0.52, 0.16, 0.74),
    "pink": (1.00, 0.56, 0.76),
}
TEXTURES = ("plain", "striped", "dotted", "checkered")
NOVEL_TEXTURES = ("ringed", "vertical", "split")  # what the expert alone has seen
# Centres in pixels (x, y), and how a caption says it.
POSITIONS = {
    "left": ((40.0, 64.0), "on the left"),
    "right": ((88.0, 64.0), "on the right"),
    "top": ((64.0, 40.0), "at the top"),
    "bottom": ((64.0, 88.0), "at the bottom"),
    "centre": ((64.0, 64.0), "in the centre"),
}
# Vertical gradients: (height from 0 at the top to 1, colour) stops.
BACKGROUNDS = {
    "white": ((0.0, (0.96, 0.96, 0.96)),),
    "gray": ((0.0, (0.55, 0.55, 0.55)),),
    "black": ((0.0, (0.05, 0.05, 0.05)),),
    "sunset": ((0.0, (0.36, 0.22, 0.46)), (0.55, (0.93, 0.50, 0.42)), (1.0, (1.00, 0.82, 0.50))),
    "meadow": (
        (0.0, (0.50, 0.74, 0.97)),
        (0.58, (0.86, 0.93, 0.99)),
        (0.66, (0.52, 0.76, 0.38)),
        (1.0, (0.26, 0.50, 0.20)),
    ),
    "night": ((0.0, (0.03, 0.05, 0.16)), (1.0, (0.22, 0.26, 0.46))),
}
STUDIO, OUTDOORS = ("white", "gray", "black"), ("sunset", "meadow", "night")

JITTER = 4.0
RADIUS = (27.0, 33.0)
SHADE = 0.42  # a texture's second tone, as a share of the first
MIN_CONTRAST = 0.42
HELD_OUT_SHARE = 0.2


@dataclass(frozen=True)
class Scene:
    """What a picture shows. dx and dy (pixels) move the object off its named position; radius is in pixels."""

    shape: str
    colour: str
    texture: str
    position: str
    background: str
    dx: float = 0.0
    dy: float = 0.0
    radius: float = 30.0

    @property
    def centre(self) -> tuple[float, float]:
        (x, y), _ = POSITIONS[self.position]
        return x + self.dx, y + self.dy


# ---------------------------------------------------------------------------------------------- captions and splits


def caption(scene: Scene, *, texture: bool = True, position: bool = True, background: bool = True) -> str:
    words = f"a {scene.texture} {scene.colour} {scene.shape}" if texture else f"a {scene.colour} {scene.shape}"
    if position:
        words += f" {POSITIONS[scene.position][1]}"
    if background:
        words += f", {scene.background} background"
    return words


def training_caption(scene: Scene, rng: random.Random) -> str:
    """Drops phrases at random, so that no word is learnt as part of another. Only "plain" may go unsaid."""
    return caption(
        scene,
        texture=scene.texture != "plain" or rng.random() < 0.7,
        position=rng.random() < 0.8,
        background=rng.random() < 0.8,
    )


def held_out(scene: Scene) -> bool:
    """A (shape, colour, position) triple belongs to one split for good, whatever the seed."""
    digest = hashlib.sha256(f"{scene.shape} {scene.colour} {scene.position}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < HELD_OUT_SHARE * 2**64


@cache
def allowed_pairs() -> frozenset[tuple[str, str]]:
    """The (colour, background) pairs whose colour stands out from the background at every height."""
    fields = background_images(list(BACKGROUNDS))[:, :, :, 0]  # backgrounds x 3 x SIZE
    return frozenset(
        (colour, name)
        for (colour, rgb), (name, field) in itertools.product(COLOURS.items(), zip(BACKGROUNDS, fields, strict=True))
        if (field - torch.tensor(rgb)[:, None]).norm(dim=0).min() >= MIN_CONTRAST
    )


def sample_scenes(
    count: int,
    seed: int,
    *,
    split: str,
    textures: Sequence[str] = TEXTURES,
    backgrounds: Sequence[str] = tuple(BACKGROUNDS),
) -> list[Scene]:
    """`count` random scenes of the split "train" or "held_out"."""
    rng = random.Random(f"{split} {seed}")
    scenes: list[Scene] = []
    while len(scenes) < count:
        scene = Scene(
            shape=rng.choice(SHAPES),
            colour=rng.choice(list(COLOURS)),
            texture=rng.choice(textures),
            position=rng.choice(list(POSITIONS)),
            background=rng.choice(backgrounds),
            dx=rng.uniform(-JITTER, JITTER),
            dy=rng.uniform(-JITTER, JITTER),
            radius=rng.uniform(*RADIUS),
        )
        if held_out(scene) == (split == "held_out") and (scene.colour, scene.background) in allowed_pairs():
            scenes.append(scene)
    return scenes


def edited(scene: Scene, attribute: str, rng: random.Random) -> Scene:
    """The same scene with one attribute ("shape", "colour", "texture" or "background") changed to another value."""
    values = {"shape": SHAPES, "colour": COLOURS, "texture": TEXTURES, "background": BACKGROUNDS}[attribute]
    options = [replace(scene, **{attribute: value}) for value in values if value != getattr(scene, attribute)]
    return rng.choice([o for o in options if (o.colour, o.background) in allowed_pairs()])


# ---------------------------------------------------------------------------------------------- rendering


def background_images(names: Sequence[str]) -> Tensor:
    """[B, 3, SIZE, SIZE] in 0..1."""
    heights = (torch.arange(SIZE) + 0.5) / SIZE
    rows = {name: _gradient(BACKGROUNDS[name], heights) for name in set(names)}
    return torch.stack([rows[name] for name in names])[..., None].expand(-1, -1, -1, SIZE)


def _gradient(stops: tuple[tuple[float, tuple[float, float, float]], ...], heights: Tensor) -> Tensor:
    row = torch.tensor(stops[0][1])[:, None].expand(3, len(heights))
    for (start, _), (end, colour) in itertools.pairwise(stops):
        t = ((heights - start) / (end - start)).clamp(0, 1)
        row = torch.lerp(row, torch.tensor(colour)[:, None], t * t * (3 - 2 * t))
    return row


def _regular(count: int, radii: Sequence[float]) -> list[tuple[float, float]]:
    angles = torch.arange(count) * (2 * torch.pi / count) - torch.pi / 2
    points = torch.stack([angles.cos(), angles.sin()], -1) * torch.tensor(radii).repeat(count // len(radii))[:, None]
    return [tuple(p) for p in points.tolist()]


_POLYGONS = {
    "square": [(-0.84, -0.84), (0.84, -0.84), (0.84, 0.84), (-0.84, 0.84)],
    "triangle": [(x * 1.12, y * 1.12 + 0.22) for x, y in _regular(3, (1.0,))],
    "star": [(x * 1.1, y * 1.1) for x, y in _regular(10, (1.0, 0.45))],
    "cross": [
        (sx * x, sy * y)
        for sx, sy, corner in (
            (1, -1, ((0.34, 1.0), (0.34, 0.34), (1.0, 0.34))),
            (1, 1, ((1.0, 0.34), (0.34, 0.34), (0.34, 1.0))),
            (-1, 1, ((0.34, 1.0), (0.34, 0.34), (1.0, 0.34))),
            (-1, -1, ((1.0, 0.34), (0.34, 0.34), (0.34, 1.0))),
        )
        for x, y in corner
    ],
}


def _polygon_distance(x: Tensor, y: Tensor, corners: Sequence[tuple[float, float]]) -> Tensor:
    """Signed distance to a closed polygon, negative inside (even-odd rule)."""
    nearest = torch.full_like(x, torch.inf)
    inside = torch.zeros_like(x, dtype=torch.bool)
    for (ax, ay), (bx, by) in zip(corners, [*corners[1:], corners[0]], strict=True):
        ex, ey = bx - ax, by - ay
        t = (((x - ax) * ex + (y - ay) * ey) / (ex * ex + ey * ey)).clamp(0, 1)
        nearest = torch.minimum(nearest, (x - ax - t * ex) ** 2 + (y - ay - t * ey) ** 2)
        if ay != by:
            inside ^= ((y < ay) != (y < by)) & (x < ax + (y - ay) * ex / ey)
    return torch.where(inside, -1.0, 1.0) * nearest.sqrt()


def _heart_distance(x: Tensor, y: Tensor) -> Tensor:
    """A square standing on its corner, with a disc on each of its two upper sides (exact only near the outline)."""
    half, tip = 0.80, 0.92
    x = x.abs()
    square = (x + (y - tip + half).abs() - half) / 2**0.5
    disc = ((x - half / 2) ** 2 + (y - tip + 1.5 * half) ** 2).sqrt() - half / 2**0.5
    return torch.minimum(square, disc)


def shape_distance(shape: str, x: Tensor, y: Tensor) -> Tensor:
    """Signed distance in units of the radius, at coordinates in units of the radius (y down)."""
    if shape == "circle":
        return (x * x + y * y).sqrt() - 0.95
    if shape == "heart":
        return _heart_distance(x, y)
    return _polygon_distance(x, y, _POLYGONS[shape])


def texture_weight(texture: str, x: Tensor, y: Tensor) -> Tensor:
    """How much of the second tone shows, 0..1, at pixel offsets from the object's centre."""
    if texture == "plain":
        return torch.zeros_like(x)
    if texture == "striped":
        return (0.5 - _triangle_wave(y, 16.0)).clamp(0, 1)
    if texture == "vertical":
        return (0.5 - _triangle_wave(x, 16.0)).clamp(0, 1)
    if texture == "ringed":
        return (0.5 - _triangle_wave((x * x + y * y).sqrt(), 18.0)).clamp(0, 1)
    if texture == "split":
        return (0.5 - x).clamp(0, 1)
    if texture == "dotted":
        u, v = (x + 8) % 16 - 8, (y + 8) % 16 - 8
        return (5.2 - (u * u + v * v).sqrt()).clamp(0, 1)
    u, v = _triangle_wave(x + 6, 24.0), _triangle_wave(y + 6, 24.0)
    return 0.5 + 2 * (u * 0.5).clamp(-0.5, 0.5) * (v * 0.5).clamp(-0.5, 0.5)


def _triangle_wave(x: Tensor, period: float) -> Tensor:
    """Signed distance in pixels to the nearest boundary of a square wave of this period."""
    return period / 4 - ((x % period) - period / 2).abs()


def render(scenes: Sequence[Scene]) -> tuple[Tensor, Tensor]:
    """Images [B, 3, SIZE, SIZE] in 0..1 and the objects' coverage masks [B, SIZE, SIZE] in 0..1."""
    centres = torch.tensor([scene.centre for scene in scenes])
    radii = torch.tensor([scene.radius for scene in scenes])[:, None, None]
    pixels = torch.arange(SIZE) + 0.5
    x = (pixels - centres[:, :1])[:, None, :].expand(-1, SIZE, -1)
    y = (pixels - centres[:, 1:])[:, :, None].expand(-1, -1, SIZE)

    masks, weights = torch.empty_like(x), torch.empty_like(x)
    for shape in {scene.shape for scene in scenes}:
        rows = [i for i, scene in enumerate(scenes) if scene.shape == shape]
        distance = shape_distance(shape, x[rows] / radii[rows], y[rows] / radii[rows]) * radii[rows]
        masks[rows] = (0.5 - distance).clamp(0, 1)
    for texture in {scene.texture for scene in scenes}:
        rows = [i for i, scene in enumerate(scenes) if scene.texture == texture]
        weights[rows] = texture_weight(texture, x[rows], y[rows])

    colours = torch.tensor([COLOURS[scene.colour] for scene in scenes])[:, :, None, None]
    objects = colours * (1 - (1 - SHADE) * weights)[:, None]
    return torch.lerp(background_images([s.background for s in scenes]), objects, masks[:, None]), masks
