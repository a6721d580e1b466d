"""Measures what the papers claim on the toy model and writes the tables and pictures of docs/. `make evidence` runs all of it.

    make evidence                      # everything
    make evidence PART=plug_and_play   # one or more of the PARTS below

Ends with status 1 when a bar is missed; the page says which.
"""

from __future__ import annotations

import argparse
import importlib
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
DOCS = ROOT / "docs"
sys.path[0] = str(ROOT / "tests")

from support.host.in_process import enter  # noqa: E402

PARTS = (
    "toy",
    "inversion",
    "retracing",
    "guided_inversion",
    "plug_and_play",
    "null_text",
    "null_text_edits",
    "null_text_tolerances",
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
    parts = parser.parse_args().parts or PARTS
    DOCS.mkdir(exist_ok=True)
    missed: list[str] = []
    # A process of its own: toy/evaluate.py is a program, which sets up ComfyUI for itself.
    if "toy" in parts and subprocess.run([sys.executable, ROOT / "tests" / "lab" / "toy" / "evaluate.py"]).returncode:
        missed.append("toy: see above")
    with tempfile.TemporaryDirectory(prefix="palimpsest-evidence-") as base:
        enter(base)
        import torch  # once ComfyUI has been told how to set it up

        torch.set_flush_denormal(True)  # of the whole process, so not where a test loads the toy
        for part in [part for part in PARTS if part in parts and part != "toy"]:
            missed += importlib.import_module(f"lab.evidence.{part}").write(DOCS)
    for bar in missed:
        print(f"MISSED: {bar}")
    sys.exit(bool(missed))


if __name__ == "__main__":
    main()
