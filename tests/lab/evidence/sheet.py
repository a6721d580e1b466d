"""A sheet of labelled pictures."""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

TILE, GAP, MARGIN, LINE = 160, 10, 18, 17
INK, PAPER = "#222", "#f7f5f0"


class Sheet:
    def __init__(self, title: str, headings: list[str] | None = None) -> None:
        self.title = title
        self.headings = headings or []
        self.rows: list[list[tuple[Tensor, str]]] = []

    def add(self, row: list[tuple[Tensor, str]]) -> None:
        """One row of pictures [3, H, W] in 0..1, each with the words below it."""
        self.rows.append(row)

    def save(self, file: Path) -> None:
        font, bold = ImageFont.load_default(13), ImageFont.load_default(16)
        ruler = ImageDraw.Draw(Image.new("RGB", (1, 1)))
        labels = [[_wrap(words, ruler, font) for _, words in row] for row in self.rows]
        feet = [max(len(label) for label in row) * LINE + 8 for row in labels]
        columns = max(len(row) for row in self.rows)
        head = MARGIN + 30 + (22 if self.headings else 0)
        width = 2 * MARGIN + columns * TILE + (columns - 1) * GAP
        image = Image.new("RGB", (width, head + sum(TILE + foot + GAP for foot in feet) + MARGIN - GAP), PAPER)
        pen = ImageDraw.Draw(image)
        pen.text((MARGIN, MARGIN - 4), self.title, INK, bold)
        for column, heading in enumerate(self.headings):
            pen.text((MARGIN + column * (TILE + GAP), MARGIN + 24), heading, INK, bold)
        y = head
        for row, words, foot in zip(self.rows, labels, feet, strict=True):
            for column, ((picture, _), lines) in enumerate(zip(row, words, strict=True)):
                x = MARGIN + column * (TILE + GAP)
                image.paste(as_image(picture).resize((TILE, TILE), Image.Resampling.LANCZOS), (x, y))
                pen.multiline_text((x, y + TILE + 3), "\n".join(lines), INK, font, spacing=2)
            y += TILE + foot + GAP
        image.save(file, quality=62, method=6)  # of WebP: a tenth of a PNG, and no palette can hold these colours


def as_image(picture: Tensor) -> Image.Image:
    """Of [3, H, W] in 0..1."""
    return Image.fromarray((picture.clamp(0, 1) * 255).round().byte().movedim(0, -1).contiguous().numpy())


def _wrap(words: str, ruler: ImageDraw.ImageDraw, font: ImageFont.FreeTypeFont) -> list[str]:
    lines: list[str] = []
    for paragraph in words.split("\n"):
        lines.append("")
        for word in paragraph.split():
            if lines[-1] and ruler.textlength(f"{lines[-1]} {word}", font) > TILE:
                lines.append("")
            lines[-1] = f"{lines[-1]} {word}".strip()
    return lines
