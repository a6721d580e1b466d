"""What the nodes cost beside plain ComfyUI, on a small and on full-size models. `make bench` runs all of it.

    make bench                          # everything
    make bench PART=null_text_memory    # edits, transformers, fusion, capture_memory, null_text_memory, prior

The tables are printed, and the sections that were measured replace those of docs/speed.md; each says on what machine.
`--quick` is for development: it measures edits, transformers and fusion once and writes nothing. Exit status 1 if a bar is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lab.benchmarks import report, transformer_report
    from lab.benchmarks.fusion_cost import FusionCost
    from lab.benchmarks.transformers import Memory

TESTS = Path(__file__).resolve().parents[2]
sys.path[0] = str(TESTS)

from support.host.in_process import enter_comfyui, enter_pack  # noqa: E402
from support.host.provision import ROOT, Missing  # noqa: E402

REPORT = ROOT / "docs" / "speed.md"
PARTS = ("edits", "transformers", "fusion", "capture_memory", "null_text_memory", "prior")
QUICK_INVERSION_STEPS = 5
STARTED = time.monotonic()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[[], *PARTS], metavar="part", help=", ".join(PARTS))
    parser.add_argument("--quick", action="store_true", help="one repetition, no report file; for development")
    options = parser.parse_args()
    enter_pack()
    import torch

    with tempfile.TemporaryDirectory() as base:
        enter_comfyui(base, cpu=not torch.cuda.is_available())
        return benchmark(options.quick, options.parts or PARTS)


def benchmark(quick: bool, parts: Sequence[str]) -> int:
    from lab.benchmarks import prior_report, report

    sections: dict[str, str] = {}
    passed = True
    # What runs in processes of its own comes before this process has a large model: the two need not fit side by side.
    if "capture_memory" in parts:
        progress("memory: capturing at 512 x 512 in a process of its own")
        memory = json.loads(
            subprocess.check_output([sys.executable, TESTS / "lab" / "benchmarks" / "capture_memory.py"])
        )
        passed &= report.captures_one_tensor_a_site(memory)
        sections["Memory of captured features"] = report.memory_section(memory)
    if "null_text_memory" in parts:
        cases = null_text_cases()
        passed &= all(case.passed for case in cases)
        sections["Memory of null-text optimisation"] = report.null_text_section(cases)
    if "fusion" in parts:
        measured = fusion(quick)
        passed &= all(bar.passed for bar in report.fusion_bars(measured)) and report.leaves_the_expert_out(measured)
        sections["Fusion"] = report.fusion_section(measured)
    if "prior" in parts:
        progress("prior: unCLIP Sample Prior beside diffusers' loop in a process of its own")
        few = ["--layers", "4", "--repetitions", "1"] if quick else []
        prior = json.loads(
            subprocess.check_output([sys.executable, TESTS / "lab" / "benchmarks" / "prior_speed.py", *few])
        )
        passed &= prior_report.passed(prior)
        sections["Prior"] = prior_report.section(prior)
    if "transformers" in parts:
        from lab.benchmarks import transformer_report

        times, counted = transformers(quick)
        passed &= transformer_report.passed(times, counted)
        sections["Transformers"] = transformer_report.section(times, counted)
    if "edits" in parts:
        results = edits(quick)
        passed &= all(bar.passed for bar in report.bars(results))
        sections["Ratios"] = report.bars_section(results)
        sections["Costs"] = report.costs_section(results)
        sections["Compared with the published recipe"] = PUBLISHED + "\n\n" + report.published_section(results)
    sections = {title: f"{section}\n\n{machine()}" for title, section in sections.items()}
    standing = sections_of(REPORT.read_text(encoding="utf-8")) if REPORT.exists() else {}
    text = page({} if quick else standing, sections)
    print(text)
    if not quick:
        REPORT.parent.mkdir(exist_ok=True)
        REPORT.write_text(text, encoding="utf-8")
        progress(f"written to {REPORT.relative_to(ROOT)}")
    if not passed:
        progress("a bar was missed")
    return 0 if passed else 1


def edits(quick: bool) -> report.Results:
    import torch
    from lab.benchmarks import subjects
    from lab.benchmarks.contestants import contestants, measure

    toy = partial(subjects.toy, QUICK_INVERSION_STEPS) if quick else subjects.toy
    builds: list[Callable[[], subjects.Subject]] = [toy, subjects.sd15]
    if torch.cuda.is_available():
        builds += [partial(subjects.on_gpu, "SD1.5", 64), partial(subjects.on_gpu, "SDXL", 128)]
    results = []
    with torch.inference_mode():
        for build in builds:
            subject = build()
            progress(str(subject))
            repetitions = 1 if quick else subject.repetitions
            results.append((subject, measure(subject, contestants(subject), repetitions, progress)))
    return results


def fusion(quick: bool) -> list[dict[str, FusionCost]]:
    import torch
    from lab.benchmarks.fusion_cost import REPETITIONS, measure_fusion

    progress("fusion: building")
    with torch.inference_mode():
        return measure_fusion(1 if quick else REPETITIONS, progress)


def transformers(quick: bool) -> tuple[transformer_report.Times, dict[str, Memory]]:
    from lab.benchmarks.transformers import FULL, STACKS, count_memory, time_edits

    progress("transformers: counting memory")
    counted = {name: count_memory(name) for name in FULL}
    stacks = [replace(stack, repetitions=1) for stack in STACKS] if quick else STACKS
    return [(stack, time_edits(stack, progress)) for stack in stacks], counted


def null_text_cases() -> list[report.NullTextCase]:
    import torch
    from lab.benchmarks import report

    cases = [*report.NULL_TEXT_ON_CPU, *report.NULL_TEXT_GOALS]
    for case in cases:
        on_gpu = case.goal is not None and torch.cuda.is_available()
        progress(f"null-text: {case}")
        program = [sys.executable, TESTS / "lab" / "benchmarks" / "null_text_memory.py", *case.arguments()]
        case.counted = json.loads(subprocess.check_output([*program, "--count"]))
        if case.goal is None or on_gpu:
            where = ["--cuda"] if on_gpu else []
            case.measured = json.loads(subprocess.check_output([*program, *where]))
    return cases


def page(standing: dict[str, str], measured: dict[str, str]) -> str:
    """The whole report: every section as it was just measured, else as it stands."""
    sections = {**standing, **measured}
    titled = [f"## {title}\n\n{sections[title]}" for title in SECTIONS if title in sections]
    return "\n\n".join([f"# Speed\n\n{INTRODUCTION}", *titled]) + "\n"


def sections_of(text: str) -> dict[str, str]:
    parts = re.split(r"^##? (.*)\n", text, flags=re.MULTILINE)
    return {title: body.strip() for title, body in zip(parts[1::2], parts[2::2], strict=True)}


SECTIONS = (
    "Ratios",
    "Costs",
    "Transformers",
    "Fusion",
    "Memory of captured features",
    "Memory of null-text optimisation",
    "Prior",
    "Compared with the published recipe",
)

INTRODUCTION = """\
`make bench` measures these figures and writes this page. `make bench PART=...` measures one part again: edits, transformers, fusion,
capture_memory, null_text_memory or prior. Each section names its machine.

The two runs of a ratio are repeated five times (SD1.5 on the CPU: twice), in turns, every other time in reverse order. Each repetition
gives one ratio. The table has their median and range; the median must not exceed the figure under “at most”.
All other runs are done once.

“Bare UNet calls” are calls of ComfyUI's `calc_cond_batch` and nothing else. Everything else is timed as a whole, with guider,
conditions, sampler and callbacks. Plug-and-Play has its default windows: features for 0.8 and self-attention for 0.5 of the steps.
Prompt-to-Prompt has its own: cross-attention for 0.8 and self-attention for 0.4 of the steps, and blend words besides. Attention Mask reads
every step. A call is one forward pass of the UNet, a row is one picture in it. The weights of SD1.5 are random, because the time depends on
shapes only."""

PUBLISHED = """\
The published recipe is that of pnp-diffusers. It inverts in 999 steps, then evaluates the rows [source, negative, positive] at each of 50
steps. Here its loop calls the same UNet in ComfyUI directly, without guider or condition handling, on the toy model."""


def machine() -> str:
    import comfyui_version
    import psutil
    import torch

    gib = psutil.virtual_memory().total / 2**30
    where = f" on {torch.cuda.get_device_name()}" if torch.cuda.is_available() else " --cpu"
    return (
        f"Machine: {cpu_name()}, {os.cpu_count()} cores, torch threads: {torch.get_num_threads()} "
        f"({torch.backends.cpu.get_cpu_capability()}), {gib:.0f} GiB; {platform.system()}, "
        f"Python {platform.python_version()}, torch {torch.__version__}, ComfyUI {comfyui_version.__version__}{where}."
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
