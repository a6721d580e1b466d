"""`make bench`: what the nodes cost beside plain ComfyUI, on a small and on a full-size model.

Five repetitions; the tables are printed and written to docs/speed.md. `--quick` and `--only` are for development: they
measure less and write nothing. Exit status 1 if a bar is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
sys.path[0] = str(TESTS)

from host.in_process import enter_comfyui, enter_pack  # noqa: E402
from host.provision import ROOT, Missing  # noqa: E402

REPORT = ROOT / "docs" / "speed.md"
REPETITIONS = 5
QUICK_INVERSION_STEPS = 5
STARTED = time.monotonic()


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure what the nodes cost beside plain ComfyUI.")
    parser.add_argument("--quick", action="store_true", help="one repetition, no report file; for development")
    parser.add_argument("--only", choices=["toy", "SD1.5", "memory"], help="one part, no report file")
    options = parser.parse_args()
    enter_pack()
    with tempfile.TemporaryDirectory() as base:
        enter_comfyui(base)
        return benchmark(options.quick, options.only)


def benchmark(quick: bool, only: str | None) -> int:
    import torch
    from benchmarks import report, subjects
    from benchmarks.contestants import contestants, measure

    sections: list[str] = []
    passed = True
    if only in (None, "memory"):
        # Before this process has a large model: the two need not fit side by side.
        progress("memory: capturing at 512 x 512 in a process of its own")
        memory = json.loads(subprocess.check_output([sys.executable, TESTS / "benchmarks" / "capture_memory.py"]))
        passed &= report.captures_one_tensor_a_site(memory)
        sections.append("## Memory of captured features\n\n" + report.memory_section(memory))
    results: report.Results = []
    with torch.inference_mode():
        for name, build in (("toy", subjects.toy), ("SD1.5", subjects.sd15)):
            if only in (None, name):
                progress(f"{name}: building")
                subject = build(QUICK_INVERSION_STEPS) if quick else build()
                results.append((subject, measure(subject, contestants(subject), 1 if quick else REPETITIONS, progress)))
    if results:
        passed &= all(bar.passed for bar in report.bars(results))
        sections = [
            "## Ratios\n\n" + report.bars_section(results),
            "## Costs\n\n" + report.costs_section(results),
            *sections,
            "## Beside the published recipe\n\n" + PUBLISHED + "\n\n" + report.published_section(results),
        ]
    text = f"# Speed\n\n{INTRODUCTION}\n\n{machine()}\n\n" + "\n\n".join(sections) + "\n"
    print(text)
    if not quick and only is None:
        REPORT.parent.mkdir(exist_ok=True)
        REPORT.write_text(text, encoding="utf-8")
        progress(f"written to {REPORT.relative_to(ROOT)}")
    if not passed:
        progress("a bar was missed")
    return 0 if passed else 1


INTRODUCTION = """\
Printed by `make bench`. What a bar compares runs once in each of five repetitions, in turns, every other one in reverse order; a
ratio divides two runs of one repetition, and the median of the five is held against the bar. The other contestants run once.
Bare UNet calls are `calc_cond_batch` calls alone; everything else is timed as a whole: guider, conditions, sampler, callbacks.
Plug-and-Play has its default windows, features for 0.8 and self-attention for 0.5 of the steps. A call is one forward of the
UNet, a row one picture in it. The weights of SD1.5 are random, since cost depends on shapes alone."""

PUBLISHED = """\
pnp-diffusers inverts in 999 steps and evaluates rows [source, negative, positive] in every one of 50. Here the same loop calls the
same UNet in ComfyUI directly, without guider or condition handling. On the toy all of its steps are run; on SD1.5 the seconds and
counts of a share of the steps are multiplied, and so are those of the pack's shorter runs, to 50 steps."""


def machine() -> str:
    import comfyui_version
    import psutil
    import torch

    gib = psutil.virtual_memory().total / 2**30
    return (
        f"Machine: {cpu_name()}, {os.cpu_count()} cores, torch threads: {torch.get_num_threads()} "
        f"({torch.backends.cpu.get_cpu_capability()}), {gib:.0f} GiB; {platform.system()}, "
        f"Python {platform.python_version()}, torch {torch.__version__}, ComfyUI {comfyui_version.__version__} --cpu."
    )


def cpu_name() -> str:
    listing = Path("/proc/cpuinfo")
    lines = listing.read_text().splitlines() if listing.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def progress(text: str) -> None:
    print(f"[{time.monotonic() - STARTED:5.0f} s] {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Missing as missing:
        sys.exit(f"palimpsest: {missing}")
