"""docs/compatibility.md."""

from __future__ import annotations

import time
from itertools import groupby
from pathlib import Path

from lab.evidence.bars import Bars
from lab.evidence.compatibility.columns import COLUMNS, NAMES
from lab.evidence.compatibility.walk import Cell, walk

HEAD = """# What stacks with what

`make evidence PART=compatibility` writes this page: every cell is a run of ComfyUI's own nodes beside one of this pack's on
small random models, on the CPU, and is checked by an identity.

- **right**: the identity holds.
- **refused**: the node says that it cannot be, before it samples; the number leads to its words below the table.
- **-**: the row says nothing about the node; the reasons stand below.
"""


def write(docs: Path) -> list[str]:
    began = time.monotonic()
    cells = []
    for cell in walk():
        cells.append(cell)
        if cell.is_fault:
            print(f"{cell.row.group} / {cell.row.name} / {cell.column}: {cell}", flush=True)
    print(f"compatibility: {len(cells)} cells in {time.monotonic() - began:.0f} s")
    bars = Bars("compatibility")
    for kind in ("wrong", "crash", "nothing happened"):
        found = sum(cell.kind == kind for cell in cells)
        bars.add(f"cells that are {kind}", "0", str(found), found == 0)
    (docs / "compatibility.md").write_text("\n".join(page(cells, bars)), encoding="utf-8")
    return bars.missed


def page(cells: list[Cell], bars: Bars) -> list[str]:
    lines = [HEAD, *bars.table()]
    lines += ["## What is checked", "", "| node | a cell is right when |", "|---|---|"]
    lines += [f"| {column.name} (`{column.node_ids}`) | {' '.join(column.identity.split())} |" for column in COLUMNS]
    words: dict[str, int] = {}
    reasons: dict[str, int] = {}
    for group, members in groupby(cells, key=lambda cell: cell.row.group):
        lines += [
            "",
            f"## {group[0].upper()}{group[1:]}",
            "",
            f"| | {' | '.join(NAMES)} |",
            "|---" * (len(NAMES) + 1) + "|",
        ]
        for row, found in groupby(members, key=lambda cell: cell.row.name):
            lines.append(f"| {row} | {' | '.join(_shown(cell, words, reasons) for cell in found)} |")
    lines += ["", "## Refusals, in their own words", ""]
    lines += [f"{number}. {text}" for text, number in words.items()]
    lines += ["", "## Where a row says nothing", ""]
    lines += [f"{number}. {text}" for text, number in reasons.items()]
    return [*lines, ""]


def _shown(cell: Cell, words: dict[str, int], reasons: dict[str, int]) -> str:
    text = cell.words.replace("|", "\\|").replace("\n", " ")
    if cell.kind == "refused":
        socket = text.partition(":")[0]
        return f"refused: {socket} ({words.setdefault(text, len(words) + 1)})"
    if cell.kind == "-":
        return f"- ({reasons.setdefault(text, len(reasons) + 1)})"
    return f"**{cell.kind}**: {text}" if cell.is_fault else cell.kind
