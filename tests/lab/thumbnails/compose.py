"""Pictures side by side, small: what a template's card in ComfyUI shows, without words.

The card is square and as wide as the picture is shown, so all thumbnails have one shape: two squares, each one picture or
several small ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from PIL import Image

SIDE, GAP = 254, 4  # of each square, in pixels; between them, and between the small pictures in one
GROUND = "#303030"
QUALITY = 85


@dataclass(frozen=True)
class Thumbnail:
    """One to four pictures in each square: what went in, and what came out."""

    before: list[Image.Image]
    after: list[Image.Image]

    def drawn(self) -> Image.Image:
        image = Image.new("RGB", (2 * SIDE + GAP, SIDE), GROUND)
        for x, pictures in ((0, self.before), (SIDE + GAP, self.after)):
            image.paste(square(pictures), (x, 0))
        return image


def square(pictures: list[Image.Image]) -> Image.Image:
    """One fills it, two are beside each other in the middle, three and four in rows of two."""
    if len(pictures) == 1:
        return resized(pictures[0], SIDE)
    image, small = Image.new("RGB", (SIDE, SIDE), GROUND), (SIDE - GAP) // 2
    top = (SIDE - small) // 2 if len(pictures) == 2 else 0
    for i, picture in enumerate(pictures):
        image.paste(resized(picture, small), (i % 2 * (small + GAP), top + i // 2 * (small + GAP)))
    return image


def resized(picture: Image.Image, side: int) -> Image.Image:
    return picture.resize((side, side), Image.Resampling.LANCZOS)


def save(image: Image.Image, file: Path) -> None:
    image.save(file, "JPEG", quality=QUALITY, subsampling=0, optimize=True)
