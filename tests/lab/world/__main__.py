"""Writes docs/world.webp and docs/judge.md: `make world`, or one part alone with PART=sheet or PART=judge."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import torch
from lab.world import measure, sheet
from support.host.in_process import enter
from torch import Tensor

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
        with tempfile.TemporaryDirectory(prefix="palimpsest-judge-") as base:
            enter(base)
            missed = measure.write(DOCS, arguments.scenes, through_autoencoder)
    for bar in missed:
        print(f"MISSED: {bar}")
    sys.exit(bool(missed))


def through_autoencoder(pictures: Tensor) -> Tensor:
    from lab.world.evaluate import through  # once ComfyUI has been told how to set it up
    from lab.world.pack.general import WEIGHTS, load_general

    return through(load_general(WEIGHTS)[2], pictures)


if __name__ == "__main__":
    main()
