"""A plot of an optimisation: loss and PSNR of each step, evaluations spent."""

from __future__ import annotations

import math

import numpy
import torch
from PIL import Image, ImageDraw, ImageFont

from .optimize import Course

SIZE = (1000, 620)
PAPER, INK, GRID, BEFORE, AFTER, PSNR = "#ffffff", "#202428", "#dde1e5", "#d58a2a", "#2563b8", "#2a8a55"
LEFT, RIGHT, GAP = 110, 960, 60


def draw_report(course: Course, title: str) -> torch.Tensor:
    """IMAGE [1, H, W, 3]."""
    image = Image.new("RGB", SIZE, PAPER)
    draw = ImageDraw.Draw(image)
    _text(draw, (LEFT, 22), title, 24)
    if not course.after:
        _text(draw, (LEFT, 90), "No optimisation: the source prompt is the negative. 0 evaluations.", 20)
        return _as_image(image)
    before, after = ([float(loss.mean()) for loss in losses] for losses in (course.before, course.after))
    _text(draw, (LEFT, 56), f"{course.evaluations}, final PSNR of the latent {course.psnr[-1]:.2f} dB", 20)
    loss_panel = _Panel(draw, (110, 330), "loss", _decades([*before, *after]), logarithmic=True)
    loss_panel.line(before, BEFORE, "before the step was optimised")
    loss_panel.line(after, AFTER, "after")
    psnr_panel = _Panel(draw, (390, 560), "PSNR, dB", _tens(course.psnr), logarithmic=False)
    psnr_panel.line(course.psnr, PSNR, "latent against the trajectory")
    for i in sorted({round(k * (len(after) - 1) / 5) for k in range(6)}):
        _text(draw, (psnr_panel.across(i, len(after)), 576), str(i + 1), 18, anchor="mt")
    _text(draw, ((LEFT + RIGHT) // 2, 598), "step", 18, anchor="mt")
    return _as_image(image)


class _Panel:
    def __init__(
        self, draw: ImageDraw.ImageDraw, rows: tuple[int, int], name: str, ticks: list[float], *, logarithmic: bool
    ):
        self.draw = draw
        self.top, self.bottom = rows
        self.scale = math.log10 if logarithmic else float
        self.low, self.high = self.scale(ticks[0]), self.scale(ticks[-1])
        self.named = LEFT
        for tick in ticks:
            y = self.down(tick)
            draw.line((LEFT, y, RIGHT, y), fill=GRID)
            _text(draw, (LEFT - 10, y), f"{tick:.0e}" if logarithmic else f"{tick:g}", 18, anchor="rm")
        draw.line((LEFT, self.top, LEFT, self.bottom, RIGHT, self.bottom), fill=INK, width=2)
        _text(draw, (12, self.top - 26), name, 18)

    def across(self, step: int, steps: int) -> float:
        return LEFT + (RIGHT - LEFT) * step / max(steps - 1, 1)

    def down(self, value: float) -> float:
        share = (self.scale(value) - self.low) / (self.high - self.low)
        return self.bottom - (self.bottom - self.top) * min(max(share, 0.0), 1.0)

    def line(self, values: list[float], colour: str, name: str) -> None:
        floor = 10.0**self.low if self.scale is math.log10 else -math.inf
        points = [(self.across(i, len(values)), self.down(max(value, floor))) for i, value in enumerate(values)]
        if len(points) > 1:
            self.draw.line(points, fill=colour, width=3, joint="curve")
        for x, y in points:
            self.draw.ellipse((x - 3, y - 3, x + 3, y + 3), fill=colour)
        self.draw.line((self.named + 4, self.top - 15, self.named + 34, self.top - 15), fill=colour, width=4)
        _text(self.draw, (self.named + 42, self.top - 15), name, 18, anchor="lm")
        self.named += 42 + int(self.draw.textlength(name, font=ImageFont.load_default(18))) + GAP


def _decades(values: list[float]) -> list[float]:
    known = [value for value in values if value > 0.0 and math.isfinite(value)] or [1.0]
    first = max(math.floor(math.log10(min(known))), -12)
    last = max(math.ceil(math.log10(max(known))), first + 1)
    return [10.0**power for power in range(first, last + 1)]


def _tens(values: list[float]) -> list[float]:
    known = [value for value in values if math.isfinite(value)] or [0.0]
    first, last = 10 * math.floor(min(known) / 10), 10 * math.ceil(max(known) / 10)
    stride = 10 if last - first <= 60 else 20
    return [float(tick) for tick in range(first, max(last, first + stride) + stride, stride)]


def _text(
    draw: ImageDraw.ImageDraw, place: tuple[float, float], text: str, size: int, anchor: str | None = None
) -> None:
    draw.text(place, text, fill=INK, font=ImageFont.load_default(size), anchor=anchor)


def _as_image(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(numpy.asarray(image).astype(numpy.float32) / 255.0)[None]
