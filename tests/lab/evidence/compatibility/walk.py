"""Runs every column with every row, and says what was found."""

from __future__ import annotations

import contextlib
import functools
import io
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from lab.evidence.compatibility import conditioning, hosts, latents, patches, peers, samplers
from lab.evidence.compatibility.checks import Idle, Senseless, Wrong, near
from lab.evidence.compatibility.columns import COLUMNS, SENSELESS, Column
from lab.evidence.compatibility.graph import NEGATIVE, SOURCE, Graph, sample
from lab.evidence.compatibility.rows import Row
from lab.evidence.processes import spread

ROWS: list[Row] = [
    *patches.ROWS, *peers.ROWS, *samplers.ROWS, *conditioning.ROWS, *latents.ROWS, *hosts.ROWS,
]  # fmt: skip
REFUSAL = re.compile(r"\w+: (expected|was) ")


@dataclass(frozen=True)
class Cell:
    """kind: right, refused, -, wrong, crash or nothing happened."""

    row: Row
    column: str
    kind: str
    words: str = ""
    seconds: float = 0.0

    def __str__(self) -> str:
        return f"{self.kind}: {self.words}" if self.words else self.kind

    @property
    def is_fault(self) -> bool:
        return self.kind in ("wrong", "crash", "nothing happened")


def walk(numbers: Sequence[int]) -> Iterator[Cell]:
    """Every cell of the rows of these numbers, row by row, on all cores."""
    for i, cells in zip(numbers, spread(_of_row, numbers), strict=True):
        for column, found in zip(COLUMNS, cells, strict=True):
            yield Cell(ROWS[i], column.name, *found)


def _of_row(i: int) -> list[tuple[str, str, float]]:
    # A row holds functions, which cannot be sent from process to process.
    found = (cell(ROWS[i], column) for column in COLUMNS)
    return [(made.kind, made.words, made.seconds) for made in found]


def cell(row: Row, column: Column) -> Cell:
    if row.only and column.name not in row.only:
        return Cell(row, column.name, "-", "the row is about other nodes")
    for key in (row.group, row.name):
        if (key, column.name) in SENSELESS:
            return Cell(row, column.name, "-", SENSELESS[key, column.name])
    began = time.monotonic()
    kind, words = _found(row, column)
    return Cell(row, column.name, kind, words, time.monotonic() - began)


def _found(row: Row, column: Column) -> tuple[str, str]:
    # ComfyUI executes every node in inference mode; its progress bars go nowhere here.
    with torch.inference_mode(), row.host(), contextlib.redirect_stderr(io.StringIO()):
        try:
            graph = row.change(column.start())
            sample(graph, graph.model, graph.prompt(SOURCE), graph.prompt(NEGATIVE))
        except Exception as error:
            return "-", f"ComfyUI alone fails: {_first(error)}"
        try:
            made = column.check(graph)
            if row.each_alone:
                _same_as_alone(column, graph, made)
        except Wrong as error:
            return "wrong", str(error)
        except Idle as error:
            return "nothing happened", str(error)
        except Senseless as error:
            return "-", str(error)
        except ValueError as error:
            refused = REFUSAL.match(str(error))
            return ("refused", str(error)) if refused else ("crash", _first(error))
        except Exception as error:
            return "crash", _first(error)
    return "right", ""


def _same_as_alone(column: Column, graph: Graph, made: torch.Tensor) -> None:
    for i in range(len(graph.noise)):
        near(f"picture {i} beside its own run", made[i : i + 1], column.check(graph.row(i)), graph.tolerance)


def _first(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else ''}"


@functools.cache
def row_named(name: str) -> Row:
    return next(row for row in ROWS if row.name == name)
