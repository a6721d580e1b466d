"""The kinds of things of the world, their colours, and what the renderer reads of each kind: its sprite.

A sprite is drawn once, with the linear parts of all that a drawing style needs, so that a picture of any colour, size and
turn is one sampling of it and a sum.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from lab.world import animals, buildings_and_vehicles, plants_and_food
from lab.world.outlines import RGB, Kind, Layer
from PIL import Image, ImageDraw
from scipy.ndimage import gaussian_filter
from torch import Tensor

KINDS: dict[str, Kind] = {
    "cat": animals.CAT,
    "rabbit": animals.RABBIT,
    "duck": animals.DUCK,
    "fish": animals.FISH,
    "turtle": animals.TURTLE,
    "elephant": animals.ELEPHANT,
    "butterfly": animals.BUTTERFLY,
    "tree": plants_and_food.TREE,
    "flower": plants_and_food.FLOWER,
    "cactus": plants_and_food.CACTUS,
    "mushroom": plants_and_food.MUSHROOM,
    "apple": plants_and_food.APPLE,
    "cupcake": plants_and_food.CUPCAKE,
    "carrot": plants_and_food.CARROT,
    "house": buildings_and_vehicles.HOUSE,
    "castle": buildings_and_vehicles.CASTLE,
    "windmill": buildings_and_vehicles.WINDMILL,
    "car": buildings_and_vehicles.CAR,
    "boat": buildings_and_vehicles.BOAT,
    "rocket": buildings_and_vehicles.ROCKET,
    "balloon": buildings_and_vehicles.BALLOON,
}
COLOURS: dict[str, RGB] = {
    "red": (0.85, 0.20, 0.22),
    "orange": (0.96, 0.54, 0.16),
    "yellow": (0.99, 0.83, 0.26),
    "green": (0.30, 0.66, 0.33),
    "cyan": (0.25, 0.76, 0.80),
    "blue": (0.20, 0.40, 0.84),
    "purple": (0.54, 0.31, 0.72),
    "pink": (0.97, 0.58, 0.74),
}
# No scene of `scenes.sample_scenes` has them: they are what an expert knows beyond the general model.
NATURAL: dict[str, RGB] = {
    "white": (0.97, 0.96, 0.94),
    "brown": (0.54, 0.35, 0.21),
    "black": (0.14, 0.13, 0.17),
}
EVERY_COLOUR = {**COLOURS, **NATURAL}

REACH = 1.3  # a sprite covers the box from -REACH to REACH, its glow included
RADII = (19.0, 24.0, 30.0)  # pixels a unit, for which sprites are drawn
TEXELS = 88
FINER = 4  # sprites are drawn at this multiple and averaged
LINE = 1.25  # a line's width in pixels of the picture
BLUR = 1.8  # pixels
CHANNELS = ("alpha", "share", "red", "green", "blue", "line", "glow", "shade")


@cache
def sprites() -> Tensor:
    """[RADII, KINDS, CHANNELS, TEXELS, TEXELS]; colours are multiplied by alpha."""
    return torch.stack([torch.stack([_sprite(kind, radius) for kind in KINDS.values()]) for radius in RADII])


@cache
def blurred_sprites() -> Tensor:
    """The same in a picture that is blurred by BLUR pixels, at half the resolution."""
    texels = [BLUR * TEXELS / (2 * REACH) / radius for radius in RADII]
    parts = [gaussian_filter(level.numpy(), (0, 0, blur, blur)) for level, blur in zip(sprites(), texels, strict=True)]
    return F.avg_pool2d(torch.from_numpy(np.concatenate(parts)), 2).unflatten(0, (len(RADII), len(KINDS)))


def _sprite(kind: Kind, radius: float) -> Tensor:
    size, unit = TEXELS * FINER, TEXELS * FINER / (2 * REACH)
    shape, colour = (
        Image.new("RGB", (size, size)),
        Image.new("RGB", (size, size)),
    )  # (alpha, share, line), fixed colours
    draw_shape, draw_colour = ImageDraw.Draw(shape), ImageDraw.Draw(colour)
    width = round(LINE * unit / radius)
    for layer in kind.layers:
        points = _pixels(layer, unit)
        share = round(255 * layer.paint.share)
        draw_shape.polygon(points, fill=(255, share, 0))
        draw_colour.polygon(points, fill=tuple(round(255 * c) for c in layer.paint.fixed))
        if layer.lined:
            # A line covers a colour without removing it: the style decides how much of it shows.
            lines = Image.new("L", (size, size))
            ImageDraw.Draw(lines).line([*points, points[0], points[1]], fill=255, width=width, joint="curve")
            red, green, _ = shape.split()
            blue = Image.fromarray(np.maximum(np.asarray(shape)[..., 2], np.asarray(lines)))
            shape = Image.merge("RGB", (red, green, blue))
            draw_shape = ImageDraw.Draw(shape)
    maps = np.concatenate([np.asarray(image.reduce(FINER), np.float32) / 255 for image in (shape, colour)], 2)
    alpha, share, line = maps[..., 0], maps[..., 1], maps[..., 2]
    texel = TEXELS / (2 * REACH) / radius  # texels a pixel
    soft = 0.45 * np.sqrt(max(texel**2 - 1, 0))
    crisp = [gaussian_filter(part, soft) for part in (alpha, share, *maps[..., 3:].transpose(2, 0, 1), line)]
    glow = np.clip(gaussian_filter(line, 2.2 * texel) * 2.2, 0, 1)
    return torch.from_numpy(np.stack([*crisp, glow, gaussian_filter(alpha, 1.6 * texel)])).float()


def _pixels(layer: Layer, unit: float) -> list[tuple[float, float]]:
    return [tuple(point) for point in ((layer.outline + REACH) * unit - 0.5).tolist()]
