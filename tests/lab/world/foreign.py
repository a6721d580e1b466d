"""Pictures that the judge must refuse, and pictures of the world as an autoencoder of 32 dB might give them back."""

from __future__ import annotations

import io
import string

import numpy as np
import torch
from kornia.filters import gaussian_blur2d
from lab.world import styles
from lab.world.backgrounds import SIZE
from lab.world.kinds import COLOURS
from lab.world.render import view
from lab.world.scenes import sample_scenes
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

FINER = 4
DECIBELS = 32.0


def noise(count: int, seed: int) -> Tensor:
    return torch.rand(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))


def plain(count: int, seed: int) -> Tensor:
    """Each of one grey or colour."""
    level = torch.rand(count, 3, 1, 1, generator=torch.Generator().manual_seed(seed))
    level[::2] = level[::2, :1]
    return level.expand(-1, -1, SIZE, SIZE).contiguous()


def shapes(count: int, seed: int) -> Tensor:
    """A circle, a star or a heart of one colour before stripes of two others."""
    chance, pictures, large = np.random.default_rng(seed), [], SIZE * FINER
    turns = np.linspace(0, 2 * np.pi, 120, endpoint=False)
    star = np.pi * np.arange(10) / 5
    outlines = (
        (np.cos(turns), np.sin(turns)),
        (np.where(np.arange(10) % 2, 0.45, 1.0) * np.sin(star), -np.where(np.arange(10) % 2, 0.45, 1.0) * np.cos(star)),
        (np.sin(turns) ** 3, -(13 * np.cos(turns) - 5 * np.cos(2 * turns) - 2 * np.cos(3 * turns) - np.cos(4 * turns)) / 16),
    )  # fmt: skip
    for _ in range(count):
        one, other, own = (tuple(colour) for colour in chance.integers(0, 256, (3, 3)).tolist())
        image, width = Image.new("RGB", (large, large), one), int(chance.integers(6, 20)) * FINER
        pen, upright = ImageDraw.Draw(image), chance.random() < 0.5
        for start in range(0, large, 2 * width):
            end = start + width - 1
            pen.rectangle((start, 0, end, large) if upright else (0, start, large, end), fill=other)
        x, y, radius = (
            large * chance.uniform(0.3, 0.7),
            large * chance.uniform(0.3, 0.7),
            large * chance.uniform(0.15, 0.28),
        )
        across, down = outlines[chance.integers(len(outlines))]
        pen.polygon([*zip(x + radius * across, y + radius * down, strict=True)], fill=own)
        pictures.append(torch.from_numpy(np.asarray(image.reduce(FINER), np.float32) / 255).movedim(-1, 0))
    return torch.stack(pictures)


def polygons(count: int, seed: int) -> Tensor:
    """Two regular polygons or stars before the world's own backgrounds, outlined as its things are."""

    def draw(
        pen: ImageDraw.ImageDraw,
        x: float,
        y: float,
        radius: float,
        chance: np.random.Generator,
        colour: tuple,
        edge: tuple,
    ) -> None:
        corners = int(chance.integers(3, 9))
        star = chance.random() < 0.5
        angle = np.linspace(0, 2 * np.pi, corners * (2 if star else 1), endpoint=False) + chance.uniform(0, 6)
        reach = np.where(np.arange(len(angle)) % 2, 0.45, 1.0) if star else np.ones(len(angle))
        points = [(x + radius * r * np.cos(a), y + radius * r * np.sin(a)) for a, r in zip(angle, reach, strict=True)]
        pen.polygon(points, fill=colour)
        pen.line([*points, points[0], points[1]], fill=edge, width=FINER, joint="curve")

    return _before_backgrounds(count, seed, draw)


def letters(count: int, seed: int) -> Tensor:
    def draw(
        pen: ImageDraw.ImageDraw,
        x: float,
        y: float,
        radius: float,
        chance: np.random.Generator,
        colour: tuple,
        edge: tuple,
    ) -> None:
        letter = str(chance.choice(list(string.ascii_uppercase)))
        font = ImageFont.load_default(2.2 * radius)
        pen.text((x, y), letter, colour, font, anchor="mm", stroke_width=FINER, stroke_fill=edge)

    return _before_backgrounds(count, seed, draw)


def _before_backgrounds(count: int, seed: int, draw) -> Tensor:
    chance = np.random.default_rng(seed)
    scenes = sample_scenes(count, seed)
    pictures = []
    for scene in scenes:
        ground = styles.background(view([scene]), scene.style)[0]
        image = Image.fromarray((ground.clamp(0, 1) * 255).round().byte().movedim(0, -1).numpy())
        image = image.resize((SIZE * FINER, SIZE * FINER), Image.Resampling.BICUBIC)
        for thing in scene.things:
            colour = tuple(round(255 * c) for c in COLOURS[thing.colour])
            edge = tuple(c // 3 for c in colour)
            draw(
                ImageDraw.Draw(image),
                thing.x * FINER,
                thing.y * FINER,
                thing.radius * 0.9 * FINER,
                chance,
                colour,
                edge,
            )
        pictures.append(torch.from_numpy(np.asarray(image.reduce(FINER), np.float32) / 255).movedim(-1, 0))
    return torch.stack(pictures)


def blurred_and_noisy(pictures: Tensor, seed: int) -> Tensor:
    """Each 32 dB from what it was: a slight blur, and as much noise as is still missing."""
    wanted = 10 ** (-DECIBELS / 10)
    soft = gaussian_blur2d(pictures, (5, 5), (0.45, 0.45))
    share = (wanted / 2 / (soft - pictures).square().mean((1, 2, 3)).clamp(min=1e-9)).sqrt().clamp(max=1)
    soft = torch.lerp(pictures, soft, share[:, None, None, None])
    missing = (wanted - (soft - pictures).square().mean((1, 2, 3))).clamp(min=0).sqrt()
    grain = torch.randn(pictures.shape, generator=torch.Generator().manual_seed(seed))
    return (soft + missing[:, None, None, None] * grain).clamp(0, 1)


def jpeg(pictures: Tensor, quality: int) -> Tensor:
    out = []
    for picture in pictures:
        file = io.BytesIO()
        Image.fromarray((picture * 255).round().byte().movedim(0, -1).numpy()).save(file, "JPEG", quality=quality)
        out.append(torch.from_numpy(np.asarray(Image.open(file), np.float32) / 255).movedim(-1, 0))
    return torch.stack(out)
