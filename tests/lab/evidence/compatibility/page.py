"""docs/compatibility.md. After a change, `make evidence PART=compatibility ROWS=SD3` walks the rows again that have SD3 in their name."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

from lab.evidence.bars import Bars
from lab.evidence.compatibility.columns import COLUMNS, NAMES
from lab.evidence.compatibility.walk import ROWS, Cell, walk

HEAD = """# What works together with what

`make evidence PART=compatibility` measures this page again. Every cell is a run of ComfyUI's own nodes together with one node of this pack,
on small models with random weights, on the CPU. A cell is checked by an identity: something that must be equal, such as the result with and
without the node. This shows that the nodes work together, not how good the pictures of a full-size model are.

- **right**: the identity holds.
- **refused**: the node refuses with an error before it samples. The number is that of the message below the tables.
- **-**: the row does not apply to this node. The number is that of the reason at the end of the page.
"""


def write(docs: Path) -> list[str]:
    began = time.monotonic()
    file = docs / "compatibility.md"
    wanted = os.environ.get("ROWS", "")
    again = [i for i, row in enumerate(ROWS) if wanted in row.name]
    found: dict[tuple[str, str], Cell] = {}
    if wanted:
        found = {(cell.row.name, cell.column): cell for cell in standing(file.read_text(encoding="utf-8"))}
    for cell in walk(again):
        found[cell.row.name, cell.column] = cell
        if cell.is_fault:
            print(f"{cell.row.group} / {cell.row.name} / {cell.column}: {cell}", flush=True)
    cells = [found[row.name, name] for row in ROWS for name in NAMES]
    print(f"compatibility: {len(again) * len(NAMES)} cells in {time.monotonic() - began:.0f} s")
    bars = Bars("compatibility")
    for kind in ("wrong", "crash", "nothing happened"):
        found = sum(cell.kind == kind for cell in cells)
        bars.add(f"cells with the result: {kind}", "0", str(found), found == 0)
    file.write_text("\n".join(page(cells, bars)), encoding="utf-8")
    return bars.missed


def standing(text: str) -> Iterator[Cell]:
    """The cells of a page as it was written."""
    table, refusals, reasons = re.split(r"^## (?:Messages|Reasons).*$", text, flags=re.MULTILINE)
    words = {"refused": _numbered(refusals), "-": _numbered(reasons)}
    for row in ROWS:
        for line in re.findall(rf"^\| {re.escape(row.name)} \| (.*) \|$", table, flags=re.MULTILINE):
            for column, shown in zip(NAMES, line.split(" | "), strict=True):
                form = re.fullmatch(r"\**(right|refused|-|wrong|crash|nothing happened).*?(\d*)\)?", shown)
                yield Cell(row, column, form[1], words[form[1]][form[2]] if form[1] in words else "")


def _numbered(text: str) -> dict[str, str]:
    return {number: line.replace("\\|", "|") for number, line in re.findall(r"^(\d+)\. (.*)$", text, re.MULTILINE)}


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
    lines += ["", "## Messages of the refusals", ""]
    lines += [f"{number}. {text}" for text, number in words.items()]
    lines += ["", "## Reasons why a row does not apply", ""]
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
