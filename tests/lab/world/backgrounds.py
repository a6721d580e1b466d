"""The backgrounds of the world: wide pictures with a horizon, of which a scene shows a part."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import torch
from lab.world.outlines import RGB, Points, cloud, fixed
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter
from scipy.ndimage import gaussian_filter
from torch import Tensor

SIZE = 128
PAN, TILT = 48, 16  # pixels by which a scene's part may lie to the right and down
WIDTH, HEIGHT = SIZE + PAN, SIZE + TILT
HORIZON = 72  # where the ground begins in the wide picture
FINER = 3
CHANNELS = ("red", "green", "blue", "line", "glow")


class Canvas:
    """A picture being painted, and the lines of its contours."""

    def __init__(self, seed: int) -> None:
        self.colour = Image.new("RGB", (WIDTH * FINER, HEIGHT * FINER))
        self.line = Image.new("L", self.colour.size)
        self.chance = np.random.default_rng(seed)

    def gradient(self, top: float, bottom: float, *stops: RGB) -> None:
        """Between two heights, over the whole width."""
        first, last = round(top * FINER), round(bottom * FINER)
        along = np.linspace(0, len(stops) - 1, last - first)
        rows = np.stack([np.interp(along, range(len(stops)), [stop[c] for stop in stops]) for c in range(3)], 1)
        block = np.broadcast_to(rows[:, None] * 255, (last - first, self.colour.width, 3)).round().astype(np.uint8)
        self.colour.paste(Image.fromarray(block), (0, first))
        ImageDraw.Draw(self.line).rectangle((0, first, self.line.width, last), fill=0)

    def shape(
        self, points: Points | list[tuple[float, float]], colour: RGB, line: float = 0.6, alpha: float = 1.0
    ) -> None:
        corners = [(x * FINER, y * FINER) for x, y in np.asarray(points).tolist()]
        if alpha < 1:
            cover = Image.new("L", self.colour.size)
            ImageDraw.Draw(cover).polygon(corners, fill=round(255 * alpha))
            self.colour.paste(_bytes(colour), (0, 0), cover)
        else:
            ImageDraw.Draw(self.colour).polygon(corners, fill=_bytes(colour))
            ImageDraw.Draw(self.line).polygon(corners, fill=0)
        if line:
            outline = [*corners, corners[0]]
            ImageDraw.Draw(self.line).line(outline, fill=round(255 * line), width=FINER, joint="curve")

    def ellipse(
        self, x: float, y: float, across: float, down: float, colour: RGB, line: float = 0.6, alpha: float = 1.0
    ) -> None:
        angle = np.linspace(0, 2 * np.pi, 48, endpoint=False)
        self.shape(np.stack([x + across * np.cos(angle), y + down * np.sin(angle)], 1), colour, line, alpha)

    def box(
        self, left: float, top: float, right: float, bottom: float, colour: RGB, line: float = 0.6, alpha: float = 1.0
    ) -> None:
        self.shape([(left, top), (right, top), (right, bottom), (left, bottom)], colour, line, alpha)

    def ridge(self, heights: Callable[[NDArray], NDArray], colour: RGB, line: float = 0.6) -> None:
        """All below a line over the whole width."""
        x = np.linspace(-2, WIDTH + 2, 120)
        edge = list(zip(x, heights(x), strict=True))
        self.shape([*edge, (WIDTH + 2, HEIGHT + 3), (-2, HEIGHT + 3)], colour, line)

    def glow(self, x: float, y: float, radius: float, colour: RGB, strength: float) -> None:
        cover = Image.new("L", self.colour.size)
        r = radius * 0.45
        ImageDraw.Draw(cover).ellipse([(v) * FINER for v in (x - r, y - r, x + r, y + r)], fill=round(255 * strength))
        self.colour.paste(_bytes(colour), (0, 0), cover.filter(ImageFilter.GaussianBlur(radius * 0.45 * FINER)))

    def cloud(self, x: float, y: float, across: float, down: float, colour: RGB, alpha: float = 0.9) -> None:
        puffs = cloud(fixed(1, 1, 1), x, y, across, down, 8).outline
        puffs[:, 1] = np.minimum(puffs[:, 1], y + down * 0.45)
        self.shape(puffs, colour, 0.4, alpha)

    def channels(self) -> NDArray[np.float32]:
        colour = np.asarray(self.colour.reduce(FINER), np.float32) / 255
        line = np.asarray(self.line.reduce(FINER), np.float32) / 255
        return np.concatenate(
            [colour.transpose(2, 0, 1), np.stack([line, np.clip(gaussian_filter(line, 1.8) * 2, 0, 1)])]
        )


def _bytes(colour: RGB) -> tuple[int, int, int]:
    return tuple(round(255 * c) for c in colour)


def meadow(c: Canvas) -> None:
    c.gradient(0, HORIZON + 12, (0.50, 0.77, 0.95), (0.72, 0.88, 0.97), (0.95, 0.96, 0.90))
    c.glow(142, 26, 46, (1.0, 0.96, 0.74), 0.9)
    c.ellipse(142, 26, 10, 10, (1.0, 0.93, 0.55), 0.5)
    for x, y, r in ((34, 26, 22), (88, 40, 16), (160, 48, 14)):
        c.cloud(x, y, r, r * 0.5, (1.0, 1.0, 1.0))
    c.ridge(lambda x: 62 - 9 * np.sin(x / 29 + 0.4) - 3 * np.sin(x / 11), (0.62, 0.79, 0.74))
    c.ridge(lambda x: 70 - 6 * np.sin(x / 38 + 2.6), (0.61, 0.81, 0.55))
    for x, r in ((12, 5), (20, 7), (29, 5), (118, 6), (126, 5)):
        c.cloud(x, 66 - 6 * np.sin(x / 38 + 2.6), r, r, (0.43, 0.68, 0.45), 1.0)
    c.ridge(lambda x: 80 - 3 * np.sin(x / 45 + 1), (0.70, 0.85, 0.52))
    c.ridge(lambda x: 98 + 4 * np.sin(x / 40), (0.63, 0.81, 0.46), 0.2)
    c.ridge(lambda x: 122 - 4 * np.sin(x / 36), (0.56, 0.76, 0.41), 0.2)
    for _ in range(46):
        x, y = c.chance.uniform(0, WIDTH), c.chance.uniform(86, HEIGHT)
        h = 1.5 + (y - 80) / 22
        c.shape(
            [(x - h * 0.6, y), (x - h * 0.5, y - h), (x, y - h * 0.3), (x + h * 0.4, y - h * 1.2), (x + h * 0.6, y)],
            (0.45, 0.66, 0.34),
            0,
        )
    for k in range(22):
        x, y = c.chance.uniform(0, WIDTH), c.chance.uniform(90, HEIGHT)
        r = 0.7 + (y - 80) / 60
        c.ellipse(x, y, r, r, ((1.0, 0.98, 0.94), (1.0, 0.86, 0.42), (0.97, 0.66, 0.72))[k % 3], 0)


def beach(c: Canvas) -> None:
    c.gradient(0, HORIZON - 8, (0.36, 0.70, 0.90), (0.66, 0.86, 0.94), (0.98, 0.93, 0.82))
    c.glow(136, 30, 44, (1.0, 0.95, 0.72), 0.9)
    c.ellipse(136, 30, 11, 11, (1.0, 0.90, 0.50), 0.5)
    c.cloud(46, 34, 22, 8, (1.0, 0.98, 0.95), 0.85)
    c.cloud(100, 20, 15, 6, (1.0, 0.98, 0.95), 0.7)
    c.ridge(lambda x: HORIZON - 8 + 0 * x, (0.24, 0.58, 0.72), 0.7)
    c.gradient(HORIZON - 7.5, 96, (0.24, 0.58, 0.72), (0.36, 0.73, 0.78), (0.62, 0.87, 0.84))
    c.shape([(10, 64), (24, 58), (38, 56), (52, 60), (64, 64)], (0.40, 0.60, 0.58))
    for x, y, w in ((120, 70, 22), (30, 74, 26), (90, 79, 20), (160, 82, 18), (56, 84, 20), (136, 75, 30)):
        c.ellipse(x, y, w * 0.5, 0.55, (0.92, 0.97, 0.95), 0, 0.8)
    c.ridge(lambda x: 91 + 3 * np.sin(x / 21 + 1), (0.97, 0.98, 0.95), 0.4)
    c.ridge(lambda x: 93.5 + 3 * np.sin(x / 21 + 1), (0.80, 0.68, 0.50), 0)
    c.ridge(lambda x: 97 + 3 * np.sin(x / 21 + 1.1), (0.94, 0.84, 0.64), 0)
    c.ridge(lambda x: 116 + 4 * np.sin(x / 33), (0.97, 0.88, 0.69), 0.15)
    for _ in range(60):
        x, y = c.chance.uniform(0, WIDTH), c.chance.uniform(102, HEIGHT)
        c.ellipse(x, y, 0.8, 0.5, (0.84, 0.71, 0.50), 0, 0.8)
    for x, y in ((22, 126), (70, 138), (128, 132), (165, 120)):
        c.ellipse(x, y, 3, 2.2, (0.98, 0.77, 0.68), 0.5)
        c.ellipse(x, y + 0.8, 1.4, 1, (0.90, 0.58, 0.52), 0)


def night(c: Canvas) -> None:
    c.gradient(0, HORIZON + 12, (0.07, 0.09, 0.24), (0.14, 0.18, 0.40), (0.30, 0.30, 0.54))
    for _ in range(90):
        x, y, r = (
            c.chance.uniform(0, WIDTH),
            c.chance.uniform(0, HORIZON - 8),
            c.chance.choice([0.45, 0.6, 0.9], p=[0.5, 0.35, 0.15]),
        )
        c.ellipse(x, y, r, r, (0.98, 0.96, 0.84), 0.5 if r > 0.8 else 0)
    c.glow(138, 28, 44, (0.80, 0.82, 0.95), 0.55)
    c.ellipse(138, 28, 13, 13, (0.98, 0.95, 0.80), 0.7)
    for x, y, r in ((134, 24, 3), (142, 31, 2.2), (136, 34, 1.6), (145, 22, 1.5)):
        c.ellipse(x, y, r, r, (0.89, 0.85, 0.70), 0)
    c.ridge(lambda x: 66 - 11 * np.abs(np.sin(x / 27 + 0.3)) - 4 * np.abs(np.sin(x / 9)), (0.20, 0.23, 0.45))
    c.ridge(lambda x: 73 - 5 * np.sin(x / 33 + 1.8), (0.15, 0.20, 0.37))
    for x in (8, 15, 24, 60, 67, 100, 108, 118, 166):
        y, h = 75 - 5 * np.sin(x / 33 + 1.8), 9 + 3 * np.sin(x)
        c.shape([(x - 3.4, y), (x, y - h), (x + 3.4, y)], (0.09, 0.14, 0.28))
    c.ridge(lambda x: 82 - 2 * np.sin(x / 41), (0.24, 0.33, 0.46))
    c.ridge(lambda x: 102 + 4 * np.sin(x / 37 + 1), (0.20, 0.29, 0.42), 0.2)
    c.ridge(lambda x: 126 - 3 * np.sin(x / 31), (0.16, 0.24, 0.37), 0.2)
    for _ in range(50):
        x, y = c.chance.uniform(0, WIDTH), c.chance.uniform(88, HEIGHT)
        h = 1.5 + (y - 80) / 22
        c.shape([(x - h * 0.5, y), (x - h * 0.1, y - h), (x + h * 0.1, y)], (0.34, 0.46, 0.56), 0)


def room(c: Canvas) -> None:
    c.gradient(0, HORIZON + 6, (0.89, 0.80, 0.72), (0.94, 0.86, 0.77))
    for x in range(-4, WIDTH, 12):
        c.box(x, 0, x + 5, HORIZON + 6, (0.86, 0.76, 0.69), 0, 0.55)
    c.box(112, 8, 156, 58, (0.99, 0.97, 0.92))
    c.box(116, 12, 152, 54, (0.66, 0.85, 0.95))
    c.shape([(116, 42), (128, 36), (140, 40), (152, 34), (152, 54), (116, 54)], (0.62, 0.78, 0.56), 0.3)
    c.glow(134, 26, 26, (1.0, 0.98, 0.86), 0.7)
    c.box(132.7, 12, 135.3, 54, (0.99, 0.97, 0.92))
    c.box(116, 31.5, 152, 34, (0.99, 0.97, 0.92))
    for left in (104, 152):
        c.shape(
            [(left, 4), (left + 12, 4), (left + (6 if left < 120 else 12), 64), (left + (0 if left < 120 else 6), 64)],
            (0.80, 0.48, 0.42),
        )
    c.box(100, 2, 168, 5, (0.55, 0.37, 0.27))
    c.box(18, 18, 50, 44, (0.62, 0.43, 0.30))
    c.box(21, 21, 47, 41, (0.93, 0.89, 0.80), 0.3)
    c.shape([(21, 41), (30, 29), (36, 35), (41, 31), (47, 41)], (0.45, 0.60, 0.62), 0.3)
    c.ellipse(41, 26, 2.4, 2.4, (0.93, 0.70, 0.42), 0)
    c.box(66, 24, 84, 46, (0.62, 0.43, 0.30))
    c.box(68, 26, 82, 44, (0.87, 0.80, 0.70), 0.3)
    c.ellipse(75, 34, 3.6, 5, (0.70, 0.50, 0.46), 0.3)
    c.box(-2, HORIZON, WIDTH + 2, HORIZON + 6, (0.98, 0.94, 0.87))
    c.ridge(lambda x: HORIZON + 6 + 0 * x, (0.76, 0.55, 0.38))
    for k in range(-9, 28):
        x = 10 * k
        c.shape(
            [
                (x, HORIZON + 6.5),
                (x + 10, HORIZON + 6.5),
                (88 + (x - 78) * 2.4, HEIGHT + 2),
                (88 + (x - 88) * 2.4, HEIGHT + 2),
            ],
            ((0.74, 0.53, 0.36), (0.79, 0.58, 0.40), (0.71, 0.50, 0.34))[k % 3],
            0.25,
        )
    c.shape([(96, 84), (132, 84), (98, 130), (40, 130)], (0.98, 0.85, 0.60), 0, 0.38)
    c.ellipse(84, 116, 66, 19, (0.57, 0.40, 0.42), 0.5, 0.55)
    c.ellipse(84, 116, 58, 15.5, (0.88, 0.77, 0.66), 0.3, 0.5)


def snow(c: Canvas) -> None:
    c.gradient(0, HORIZON + 12, (0.58, 0.71, 0.86), (0.76, 0.84, 0.92), (0.97, 0.91, 0.89))
    c.glow(140, 30, 40, (1.0, 0.95, 0.86), 0.9)
    c.ellipse(140, 30, 9, 9, (1.0, 0.97, 0.88), 0.4)
    peaks = ((22, 26, 40), (66, 38, 34), (104, 30, 38), (154, 42, 34))
    for x, top, half in peaks:
        c.shape([(x - half, 78), (x, top), (x + half, 78)], (0.58, 0.66, 0.80))
        c.shape([(x, top), (x + half, 78), (x + half * 0.2, 78)], (0.70, 0.77, 0.88), 0)
        f = 0.36
        h = (78 - top) * f
        c.shape(
            [
                (x - half * f, top + h),
                (x, top),
                (x + half * f, top + h),
                (x + half * 0.18, top + h * 0.75),
                (x, top + h * 1.15),
                (x - half * 0.16, top + h * 0.8),
            ],
            (0.98, 0.98, 1.0),
            0.4,
        )
    c.ridge(lambda x: 72 - 4 * np.sin(x / 30 + 1), (0.87, 0.91, 0.97))
    for x, s in ((6, 1.0), (18, 1.3), (31, 0.9), (86, 0.8), (95, 1.1), (128, 1.2), (164, 1.0)):
        y = 77 - 4 * np.sin(x / 30 + 1)
        c.box(x - 0.8, y - 3, x + 0.8, y, (0.42, 0.32, 0.30), 0)
        for k, w in ((0, 6), (1, 4.8), (2, 3.4)):
            b = y - 2 - 4.4 * k * s
            c.shape([(x - w * s, b), (x, b - 7 * s), (x + w * s, b)], (0.30, 0.49, 0.47))
            c.shape(
                [(x - w * s * 0.5, b - 3.5 * s), (x, b - 7 * s), (x + w * s * 0.5, b - 3.5 * s), (x, b - 2.6 * s)],
                (0.95, 0.97, 1.0),
                0,
            )
    c.ridge(lambda x: 82 + 2 * np.sin(x / 43), (0.96, 0.97, 1.0))
    c.ridge(lambda x: 99 + 4 * np.sin(x / 35 + 2), (0.91, 0.94, 0.99), 0.2)
    c.ridge(lambda x: 122 - 5 * np.sin(x / 42), (0.85, 0.90, 0.97), 0.2)
    for _ in range(70):
        x, y, r = c.chance.uniform(0, WIDTH), c.chance.uniform(0, HEIGHT), c.chance.choice([0.6, 0.9, 1.2])
        c.ellipse(x, y, r, r, (1.0, 1.0, 1.0), 0, 0.95)


def city(c: Canvas) -> None:
    c.gradient(0, HORIZON + 12, (0.45, 0.42, 0.66), (0.87, 0.58, 0.62), (0.99, 0.81, 0.58))
    c.glow(134, 50, 44, (1.0, 0.86, 0.55), 0.95)
    c.ellipse(134, 48, 11, 11, (1.0, 0.92, 0.68), 0.5)
    far = (
        (0, 16, 46),
        (16, 14, 36),
        (30, 18, 50),
        (48, 12, 40),
        (60, 20, 54),
        (80, 14, 44),
        (94, 20, 58),
        (114, 12, 52),
        (128, 16, 60),
        (146, 14, 46),
        (160, 18, 52),
    )
    for x, w, top in far:
        c.box(x, top, x + w, 80, (0.66, 0.50, 0.62))
    near = ((-4, 22, 54), (22, 18, 44), (44, 16, 58), (66, 22, 48), (92, 16, 62), (112, 14, 57), (150, 30, 50))
    for x, w, top in near:
        c.box(x, top, x + w, 84, (0.40, 0.34, 0.50))
        c.box(x + w * 0.7, top, x + w, 84, (0.46, 0.38, 0.53), 0)
        for column in np.arange(x + 2.5, x + w - 2.5, 4):
            for row in np.arange(top + 3.5, 78, 5):
                if c.chance.random() < 0.62:
                    c.box(column, row, column + 2, row + 2.6, (1.0, 0.84, 0.52), 0)
    c.ridge(lambda x: 82 + 0 * x, (0.74, 0.68, 0.72))
    c.ridge(lambda x: 94 + 0 * x, (0.62, 0.57, 0.63), 0.5)
    c.ridge(lambda x: 96 + 0 * x, (0.49, 0.46, 0.55), 0.5)
    c.gradient(97, HEIGHT, (0.47, 0.44, 0.54), (0.40, 0.38, 0.49))
    for x in range(-6, WIDTH, 16):
        c.shape([(x, 82.5), (x + 0.5, 82.5), (x - 3, 93.5), (x - 3.5, 93.5)], (0.60, 0.54, 0.60), 0)
    for x in range(-10, WIDTH, 34):
        c.shape([(x, 116), (x + 18, 116), (x + 17, 119), (x - 2, 119)], (0.94, 0.86, 0.68), 0.4)


BACKGROUNDS: dict[str, Callable[[Canvas], None]] = {
    "meadow": meadow,
    "beach": beach,
    "night": night,
    "room": room,
    "snow": snow,
    "city": city,
}


@cache
def panoramas() -> Tensor:
    """[BACKGROUNDS, 2, CHANNELS, HEIGHT, WIDTH]: lit from the right, and mirrored."""
    painted = []
    for number, paint in enumerate(BACKGROUNDS.values()):
        canvas = Canvas(number)
        paint(canvas)
        painted.append(torch.from_numpy(canvas.channels()))
    wide = torch.stack(painted)
    return torch.stack([wide, wide.flip(-1)], 1)
