"""Contact sheets on which the judge's word stands under each picture."""

from __future__ import annotations

from collections.abc import Sequence

from lab.evidence.sheet import Sheet
from lab.world.judge import Reading
from lab.world.measure import words
from torch import Tensor

Cell = tuple[Tensor, str]


def cell(picture: Tensor, reading: Reading, is_done: bool | None = None, before: str = "") -> Cell:
    """A picture [3, H, W] with what the judge says of it, "+" or "-" for what was asked, and what stands before both."""
    mark = {None: "", True: "+ ", False: "- "}[is_done]
    return picture, "\n".join(line for line in (before, mark + words(reading)) if line)


def rows_of_cells(title: str, headings: Sequence[str], rows: Sequence[Sequence[Cell]]) -> Sheet:
    sheet = Sheet(title, list(headings))
    for row in rows:
        sheet.add(list(row))
    return sheet
