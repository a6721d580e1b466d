"""What the things of the world are drawn from: closed outlines in layers, the lowest first.

Outlines lie in a box from -1 to 1 with y downwards; a thing stands on its lowest point.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float64]  # [N, 2]
Place = tuple[float, float]
RGB = tuple[float, float, float]


@dataclass(frozen=True)
class Paint:
    """A layer's colour is `share` of the thing's own colour, plus `fixed`."""

    share: float
    fixed: RGB = (0.0, 0.0, 0.0)


BODY = Paint(1.0)
SHADE = Paint(0.76)
DARK = Paint(0.5)
LIGHT = Paint(0.55, (0.43, 0.43, 0.42))
PALE = Paint(0.25, (0.72, 0.71, 0.68))


def fixed(red: float, green: float, blue: float) -> Paint:
    return Paint(0.0, (red, green, blue))


WHITE = fixed(0.98, 0.97, 0.94)
CREAM = fixed(0.96, 0.90, 0.78)
INK = fixed(0.13, 0.12, 0.17)
WOOD = fixed(0.52, 0.34, 0.22)
LEAF = fixed(0.38, 0.62, 0.30)
GLASS = fixed(0.74, 0.89, 0.96)
GOLD = fixed(0.99, 0.80, 0.33)
BLUSH = fixed(0.96, 0.62, 0.62)
BEAK = fixed(0.98, 0.62, 0.18)
STEEL = fixed(0.70, 0.72, 0.77)


@dataclass(frozen=True, eq=False)
class Layer:
    outline: Points
    paint: Paint
    lined: bool = True  # whether a line is drawn along the outline


@dataclass(frozen=True, eq=False)
class Kind:
    layers: tuple[Layer, ...]
    lift: float = 0.0  # how far it may float above the ground, in its own units

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        """Left, top, right, bottom."""
        points = np.concatenate([layer.outline for layer in self.layers])
        return (*points.min(0).tolist(), *points.max(0).tolist())


def plain(layer: Layer) -> Layer:
    """The same without a line."""
    return Layer(layer.outline, layer.paint, lined=False)


def mirrored(layer: Layer) -> Layer:
    return Layer(layer.outline * [-1, 1], layer.paint, layer.lined)


def both(layer: Layer) -> tuple[Layer, Layer]:
    """The layer and its mirror image."""
    return layer, mirrored(layer)


def polygon(paint: Paint, *corners: Place) -> Layer:
    return Layer(np.array(corners, float), paint)


def box(paint: Paint, left: float, top: float, right: float, bottom: float) -> Layer:
    return polygon(paint, (left, top), (right, top), (right, bottom), (left, bottom))


def smooth(paint: Paint, *points: Place) -> Layer:
    """A closed Catmull-Rom curve through the points; a point given twice is a corner."""
    return Layer(_curve(np.array([points[-1], *points, *points[:2]], float)), paint)


def ellipse(paint: Paint, x: float, y: float, across: float, down: float | None = None, turn: float = 0.0) -> Layer:
    """Radii `across` and `down`, turned clockwise by degrees."""
    angle = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    shape = np.stack([across * np.cos(angle), (across if down is None else down) * np.sin(angle)], 1)
    return Layer(shape @ _turn(turn) + [x, y], paint)


def dome(paint: Paint, x: float, y: float, across: float, up: float) -> Layer:
    """The upper half of an ellipse whose centre is (x, y)."""
    angle = np.linspace(np.pi, 2 * np.pi, 28)
    return Layer(np.stack([x + across * np.cos(angle), y + up * np.sin(angle)], 1), paint)


def cloud(paint: Paint, x: float, y: float, across: float, down: float, bumps: int) -> Layer:
    """An ellipse with a scalloped edge."""
    angle = np.linspace(0, 2 * np.pi, 14 * bumps, endpoint=False)
    radius = 0.86 + 0.14 * np.abs(np.sin(angle * bumps / 2))
    return Layer(np.stack([x + across * radius * np.cos(angle), y + down * radius * np.sin(angle)], 1), paint)


def stroke(paint: Paint, width: float, *points: Place, end: float | None = None) -> Layer:
    """A round brush drawn along a curve through the points; its width runs from `width` to `end`."""
    ends = np.array([points[0], *points, points[-1]], float)
    line = np.concatenate([_curve(ends), ends[-1:]])
    along = np.gradient(line, axis=0)
    along /= np.maximum(np.linalg.norm(along, axis=1, keepdims=True), 1e-9)
    half = np.linspace(width, width if end is None else end, len(line))[:, None] / 2
    side = np.stack([-along[:, 1], along[:, 0]], 1) * half
    cap = np.linspace(0, np.pi, 9)[1:-1, None]
    last = line[-1] + half[-1] * (side[-1] / half[-1] * np.cos(cap) + along[-1] * np.sin(cap))
    first = line[0] - half[0] * (side[0] / half[0] * np.cos(cap) + along[0] * np.sin(cap))
    return Layer(np.concatenate([line + side, last, (line - side)[::-1], first]), paint)


def eye(x: float, y: float, radius: float = 0.08) -> tuple[Layer, Layer]:
    return (
        plain(ellipse(INK, x, y, radius, radius * 1.2)),
        plain(ellipse(WHITE, x + radius * 0.3, y - radius * 0.4, radius * 0.38)),
    )


def _turn(degrees: float) -> Points:
    angle = np.deg2rad(degrees)
    return np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])


def _curve(points: Points, steps: int = 8) -> Points:
    """Catmull-Rom through all but the first and the last point, which give the directions there."""
    t = np.linspace(0, 1, steps, endpoint=False)[:, None]
    weights: Sequence[Points] = (
        -0.5 * t + t**2 - 0.5 * t**3,
        1 - 2.5 * t**2 + 1.5 * t**3,
        0.5 * t + 2 * t**2 - 1.5 * t**3,
        -0.5 * t**2 + 0.5 * t**3,
    )
    windows = zip(points, points[1:], points[2:], points[3:], strict=False)
    return np.concatenate([sum(w * p for w, p in zip(weights, window, strict=True)) for window in windows])
