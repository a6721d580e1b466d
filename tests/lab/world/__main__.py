"""Writes docs/world.webp and docs/judge.md: `make world`, or one part alone with PART=sheet or PART=judge."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from lab.world import measure, sheet

DOCS = Path(__file__).resolve().parents[3] / "docs"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", nargs="?", choices=("sheet", "judge"))
    parser.add_argument("--scenes", type=int, default=200, help="how many the judge is measured on")
    arguments = parser.parse_args()
    part = arguments.part
    missed: list[str] = []
    if part in (None, "sheet"):
        sheet.write(DOCS)
    if part in (None, "judge"):
        torch.set_num_threads(1)  # a second one waits more than it works, and its waiting counts as processor time
        torch.set_flush_denormal(True)  # as in every other measurement
        missed = measure.write(DOCS, arguments.scenes)
    for bar in missed:
        print(f"MISSED: {bar}")
    sys.exit(bool(missed))


if __name__ == "__main__":
    main()
