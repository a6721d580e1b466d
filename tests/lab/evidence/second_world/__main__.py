"""Measures what the papers claim on the second toy world, and writes a page of each claim.

python -m lab.evidence.second_world plug_and_play --docs <folder>              # the whole measurement
python -m lab.evidence.second_world plug_and_play --docs <folder> --scenes 2   # to see that it works
"""

from __future__ import annotations

import argparse
import importlib
import sys
import tempfile
from pathlib import Path

from support.host.in_process import enter

PARTS = (
    "plug_and_play",
    "prompt_to_prompt",
    "null_text",
    "attention_mask",
    "saliency_fusion",
    "subject_fusion",
    "unclip",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[[], *PARTS], metavar="part", help=", ".join(PARTS))
    parser.add_argument("--docs", type=Path, required=True, help="where pages and sheets go")
    parser.add_argument("--weights", type=Path, help="where the trained weights are, if not in the repository")
    parser.add_argument("--scenes", type=int, help="instead of each part's own number")
    arguments = parser.parse_args()
    arguments.docs.mkdir(exist_ok=True, parents=True)
    missed: list[str] = []
    with tempfile.TemporaryDirectory(prefix="palimpsest-evidence-") as base:
        enter(base)
        import torch  # once ComfyUI has been told how to set it up
        from lab.world.pack.general import WEIGHTS

        torch.set_flush_denormal(True)
        weights = arguments.weights or WEIGHTS
        for part in arguments.parts or PARTS:
            module = importlib.import_module(f"lab.evidence.second_world.{part}")
            missed += module.write(arguments.docs, weights, arguments.scenes or module.SCENES)
    for bar in missed:
        print(f"MISSED: {bar}")
    sys.exit(bool(missed))


if __name__ == "__main__":
    main()
