"""Measures what the papers claim on the toy models and writes the tables and pictures of docs/. `make evidence` runs all of it.

    make evidence                                                      # everything
    make evidence PART=plug_and_play                                   # one or more of the PARTS below
    make evidence PART="plug_and_play --docs <folder> --scenes 2"      # to see that it works

Ends with status 1 when a bar is missed; the page says which.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
sys.path[0] = str(ROOT / "tests")

from support.host.in_process import enter  # noqa: E402

PARTS = (
    "toy",
    "inversion",
    "retracing",
    "guided_inversion",
    "plug_and_play",
    "null_text",
    "prompt_to_prompt",
    "attention_mask",
    "transformer",
    "flow_edit",
    "saliency_fusion",
    "subject_fusion",
    "unclip",
    "compatibility",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[[], *PARTS], metavar="part", help=", ".join(PARTS))
    parser.add_argument("--docs", type=Path, default=ROOT / "docs", help="where pages and sheets go")
    parser.add_argument("--weights", type=Path, help="where the trained weights are, if not in the repository")
    parser.add_argument("--scenes", type=int, help="instead of each part's own number")
    arguments = parser.parse_args()
    parts = arguments.parts or PARTS
    arguments.docs.mkdir(exist_ok=True, parents=True)
    missed: list[str] = []
    with tempfile.TemporaryDirectory(prefix="palimpsest-evidence-") as base:
        enter(base)
        import torch  # once ComfyUI has been told how to set it up
        from lab.world.pack.general import WEIGHTS

        torch.set_flush_denormal(True)  # of the whole process, so not where a test loads the toy
        weights = arguments.weights or WEIGHTS
        for part in [part for part in PARTS if part in parts]:
            module = importlib.import_module(f"lab.evidence.{part}")
            if part == "compatibility":  # measured on tiny models of all families
                missed += module.write(arguments.docs)
            else:
                missed += module.write(arguments.docs, weights, arguments.scenes or module.SCENES)
    for bar in missed:
        print(f"MISSED: {bar}")
    sys.exit(bool(missed))


if __name__ == "__main__":
    main()
