"""Ratios, bars and tables from what was measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from lab.benchmarks.contestants import (
    BARE,
    BARS,
    BLENDED,
    CAPTURE,
    CAPTURED,
    DDIM,
    FIXED_POINT,
    LIVE,
    MASK,
    PLAIN,
    PUBLISHED_EDIT,
    PUBLISHED_INVERSION,
    Measurement,
)
from lab.benchmarks.fusion_cost import FUSION_BARS, STEPS, WINDOWED, WINDOWED_SIZE, FusionCost
from lab.benchmarks.fusion_cost import REPETITIONS as FUSION_REPETITIONS
from lab.benchmarks.published import EDIT_ROWS, EDIT_STEPS, INVERSION_STEPS
from lab.benchmarks.subjects import Subject

MB = 1e6
GB = 1e9
Measurements = dict[str, Measurement]
Results = list[tuple[Subject, Measurements]]


@dataclass(frozen=True)
class Bar:
    title: str
    subject: str
    ratios: list[float]  # one a repetition
    limit: float

    @property
    def passed(self) -> bool:
        return median(self.ratios) <= self.limit

    def cells(self) -> list[str]:
        spread = _range(self.ratios, 3)
        verdict = "pass" if self.passed else "MISSED"
        return [self.title, self.subject, f"{median(self.ratios):.3f}", spread, f"{self.limit:.2f}", verdict]


def bars(results: Results) -> list[Bar]:
    """Ratios of runs of the same repetition, because the machine's speed is most alike within one."""
    return [
        Bar(
            f"{above} / {below}",
            subject.name,
            [a / b for a, b in zip(measured[above].seconds, measured[below].seconds, strict=True)],
            limit,
        )
        for above, below, limit in BARS
        for subject, measured in results
    ]


def fusion_bars(measured: list[dict[str, FusionCost]]) -> list[Bar]:
    return [
        Bar(
            f"{fused} / {' + '.join(own)}",
            f"SD1.5, {size[0]} x {size[1]}",
            [both / sum(alone) for both, *alone in zip(*(costs[n].seconds for n in (fused, *own)), strict=True)],
            limit,
        )
        for (fused, own, limit, size), costs in zip(FUSION_BARS, measured[:-1], strict=True)
    ]


def leaves_the_expert_out(measured: list[dict[str, FusionCost]]) -> bool:
    """Outside its window the expert is not evaluated: one step of two has its two rows."""
    return measured[-1][WINDOWED].expert_rows == 2


def fusion_section(measured: list[dict[str, FusionCost]]) -> str:
    ratios = table(["ratio", "model", "median", "range", "at most", ""], [bar.cells() for bar in fusion_bars(measured)])
    sizes = [*(size for *_, size in FUSION_BARS), WINDOWED_SIZE]
    rows = [
        [name, f"{h} x {w}", str(c.general_rows), str(c.expert_rows), f"{median(c.seconds):.2f}", _range(c.seconds, 2)]
        for (h, w), costs in zip(sizes, measured, strict=True)
        for name, c in costs.items()
    ]
    header = ["", "latent", "rows of the general model", "rows of the expert", "seconds", "range"]
    costs = table(header, rows)
    verdict = "pass" if leaves_the_expert_out(measured) else "MISSED"
    return f"{FUSION}\n\n{ratios}\n\n{costs}\n\nOutside its window the expert is not evaluated: {verdict}."


FUSION = f"""\
Two SD1.5 UNets of 859.5 M random parameters each in fp32, or one of them and a LoRA of all its attention, with {STEPS} steps of euler. A LoRA
variant alone is sampled in the UNet of its checkpoint, so its rows are counted there; in a fusion it has a UNet of its own. Each fusion
runs between the two models' own sampling, {FUSION_REPETITIONS} times. Every run starts with no model loaded, so that both sides of a ratio contain the
calculation of the LoRA. Seconds are processor time."""


def captures_one_tensor_a_site(memory: dict[str, float]) -> bool:
    return memory["attention_tensors"] == memory["attention_sites"] and memory["feature_tensors"] == 1


def bars_section(results: Results) -> str:
    header = ["ratio", "model", "median", "range", "at most", ""]
    return table(header, [bar.cells() for bar in bars(results)])


def costs_section(results: Results) -> str:
    """Median seconds of each contestant, beside the UNet calls and rows it spends."""
    sections = []
    for subject, measured in results:
        rows = [
            [name, str(m.calls), str(m.rows), f"{median(m.seconds):.2f}", _range(m.seconds, 2)]
            for name, m in measured.items()
            if name in (BARE, DDIM, FIXED_POINT, MASK, PLAIN, LIVE, BLENDED, CAPTURED, CAPTURE)
        ]
        sections.append(f"{subject}\n\n" + table(["", "UNet calls", "rows", "seconds", "range"], rows))
    return "\n\n".join(sections)


def memory_section(memory: dict[str, float]) -> str:
    attention = memory["attention_bytes"] * memory["attention_steps"]
    feature = memory["feature_bytes"] * memory["feature_steps"]
    grown = memory["peak_capture"] - memory["peak_plain"]
    kept = memory["captured_steps"] * (memory["attention_bytes"] + memory["feature_bytes"])
    sites, steps = memory["attention_sites"], memory["attention_steps"]
    verdict = "pass" if captures_one_tensor_a_site(memory) else "MISSED"
    rows = [
        [f"self-attention of {sites} layers, {steps} steps", f"{attention / MB:.1f}"],
        [f"features of 1 layer, {memory['feature_steps']} steps", f"{feature / MB:.1f}"],
        ["all that an edit reads (fp16)", f"{(attention + feature) / MB:.1f}"],
        ["the same if q and k were kept separately", f"{(2 * attention + feature) / MB:.1f}"],
        ["peak resident memory: model loaded", f"{memory['peak_loaded'] / MB:.0f}"],
        ["peak resident memory: plain evaluations", f"{memory['peak_plain'] / MB:.0f}"],
        [f"peak resident memory: capture of {memory['captured_steps']} steps", f"{memory['peak_capture'] / MB:.0f}"],
    ]
    return (
        table(["SD1.5, 512 x 512, default windows of 50 steps", "MB"], rows)
        + f"\n\nA step captures {memory['attention_tensors']} tensors for {sites} attention layers and "
        f"{memory['feature_tensors']} for the features (one each: {verdict}). The capture of {memory['captured_steps']} steps had "
        f"a peak {grown / MB:.0f} MB above that of the plain evaluations before it; these steps hold {kept / MB:.1f} MB."
    )


@dataclass
class NullTextCase:
    """Arguments of null_text_memory.py, and what it answered."""

    model: str
    latent: int
    precision: str
    keep: bool  # all activations, instead of checkpointing
    goal: float | None = None  # bytes, on a GPU
    counted: dict[str, float] = field(default_factory=dict)
    measured: dict[str, Any] | None = None

    def arguments(self) -> list[str]:
        return [self.model, str(self.latent), self.precision, *(["--keep"] if self.keep else [])]

    def __str__(self) -> str:
        return f"{self.model}, {8 * self.latent} x {8 * self.latent}, {self.precision}, {self.activations}"

    @property
    def activations(self) -> str:
        return "kept" if self.keep else "checkpointed"

    @property
    def returned(self) -> bool:
        """After a result, an error and a cancel."""
        still_used = max(self.measured["after"].values())
        return self.measured["loaded_models"] == 1 and still_used < RETURNED_WITHIN * self.measured["weights"]

    @property
    def passed(self) -> bool:
        if self.measured is None:
            return True
        in_goal = self.goal is None or self.keep or self.measured["weights"] + self.measured["peak"] <= self.goal
        return self.returned and in_goal


RETURNED_WITHIN = 0.1  # of the weights; a copy of them is what could be forgotten
NULL_TEXT_ON_CPU = [
    NullTextCase("SD1.5", 32, "fp32", False),
    NullTextCase("SD1.5", 32, "fp32", True),
    NullTextCase("SDXL", 16, "fp16-as-fp32", False),
]
NULL_TEXT_GOALS = [
    NullTextCase(model, latent, "fp16", keep, goal)
    for model, latent, goal in (("SD1.5", 64, 5 * GB), ("SDXL", 128, 14 * GB))
    for keep in (False, True)
]


def null_text_section(cases: list[NullTextCase]) -> str:
    measured = [case for case in cases if case.measured]
    header = [
        "measured",
        "activations",
        "weights, MB",
        "peak beside them, MB",
        "counted, MB",
        "in use after result, error, cancel, MB",
        "s",
    ]
    rows = [
        [
            f"{c.model}, {8 * c.latent} x {8 * c.latent}, {c.precision}, {c.measured['device']}",
            c.activations,
            f"{c.measured['weights'] / MB:.0f}",
            f"{c.measured['peak'] / MB:.0f}",
            f"{c.counted['peak'] / MB:.0f}",
            ", ".join(f"{c.measured['after'][end] / MB:.0f}" for end in ("result", "error", "cancel")),
            f"{median(c.measured['seconds']):.1f}",
        ]
        for c in measured
    ]
    seconds = [
        (f"{a.model} at {8 * a.latent} x {8 * a.latent}", median(a.measured["seconds"]) / median(b.measured["seconds"]))
        for a in measured
        for b in measured
        if (a.model, a.latent, a.precision, a.keep, b.keep) == (b.model, b.latent, b.precision, False, True)
    ]
    ratios = "; ".join(f"{name}, {ratio:.2f} times that with kept activations" for name, ratio in seconds)
    verdict = "pass" if all(case.returned for case in measured) else "MISSED"
    goals = [
        [
            f"{c.model}, {8 * c.latent} x {8 * c.latent}, {c.precision}",
            c.activations,
            f"{c.counted['weights'] / GB:.2f}",
            f"{(c.counted['weights'] + c.counted['peak']) / GB:.2f}",
            f"{(c.measured['weights'] + c.measured['peak']) / GB:.2f}" if c.measured else "no GPU",
            f"{c.goal / GB:.0f}",
            "" if c.keep or not c.measured else "pass" if c.passed else "MISSED",
        ]
        for c in cases
        if c.goal
    ]
    return (
        f"{NULL_TEXT}\n\n{table(header, rows)}\n\nTime of an evaluation with checkpointing: {ratios}. "
        f"After each ending, one model is loaded and less than {RETURNED_WITHIN:.0%} of its weights' size is still in use: {verdict}.\n\n"
        + table(
            ["at full size", "activations", "weights, GB", "total counted, GB", "measured, GB", "goal, GB", ""], goals
        )
    )


NULL_TEXT = """\
One step of `null_text` through the node's code, with random weights and PyTorch's attention. An evaluation is a forward pass and a
backward pass to the embedding; the column s has its median seconds. Each case runs in a process of its own.

On the CPU, the peak is the resident memory above what was resident before, when the weights were loaded and one plain evaluation was done;
seconds are processor time. On a GPU, the peak is the most that PyTorch's allocator had given out; seconds are wall-clock time.
fp16-as-fp32 means weights in fp16 that ComfyUI casts for computing.

The column “counted” is the same evaluation on tensors that have shapes but no values: the bytes of all storages that are alive at once,
temporary copies of the weights included. Resident memory is larger than this count, because it also contains malloc's overhead and the
CPU's libraries; how much belongs to which was not measured. The allocator and the libraries of a GPU add theirs as well. Without a
GPU, the figures at full size are such counts, not measurements, and do not show whether the goal is met."""


def published_section(results: Results) -> str:
    """The whole way from a picture to one edit of it in 50 steps; and a further edit of the same picture."""
    return "\n\n".join(
        f"{subject.name}\n\n{_published_table(subject, measured)}"
        for subject, measured in results
        if subject.published_inversion_steps
    )


def _published_table(subject: Subject, measured: Measurements) -> str:
    def cost(name: str, factor: float = EDIT_STEPS / subject.steps) -> tuple[float, float, float]:
        m = measured[name]
        return m.calls * factor, m.rows * factor, median(m.seconds) * factor

    def row(title: str, formula: str, *costs: tuple[float, float, float]) -> tuple[str, str, list[float]]:
        return title, formula, [sum(values) for values in zip(*costs, strict=True)]

    published_inversion = cost(PUBLISHED_INVERSION, INVERSION_STEPS / subject.published_inversion_steps)
    first = [
        row(
            "published recipe", f"{INVERSION_STEPS} + {EDIT_ROWS} x {EDIT_STEPS} = {INVERSION_STEPS + EDIT_ROWS * EDIT_STEPS}",
            published_inversion, cost(PUBLISHED_EDIT),
        ),
        row("ddim inversion + edit without captured features", "50 + 2 x 50 + 40 = 190", cost(DDIM), cost(LIVE)),
        row("fixed_point inversion + edit without captured features", "at most 5 x 50 + 2 x 50 + 40 = 390", cost(FIXED_POINT), cost(LIVE)),
    ]  # fmt: skip
    further = [
        row("a further edit: published recipe", f"{EDIT_ROWS} x {EDIT_STEPS} = 150", cost(PUBLISHED_EDIT)),
        row("a further edit: without captured features", "2 x 50 + 40 = 140", cost(LIVE)),
        row("a further edit: with captured features", "2 x 50 = 100", cost(CAPTURED)),
    ]
    rows = [
        [title, formula, f"{rows:.0f}", f"{calls:.0f}", f"{seconds:.1f}", f"{group[0][2][2] / seconds:.2f} x"]
        for group in (first, further)
        for title, formula, (calls, rows, seconds) in group
    ]
    return table(["", "rows, by formula", "rows counted", "UNet calls counted", "seconds", "times as fast"], rows)


def _range(values: list[float], digits: int) -> str:
    if len(values) == 1:
        return "one run"
    return f"{min(values):.{digits}f} to {max(values):.{digits}f}"


def table(header: Sequence[str], rows: list[list[str]]) -> str:
    """GitHub's table, padded so that it reads as well in a terminal."""
    widths = [max(len(line[i]) for line in [list(header), *rows]) for i in range(len(header))]
    lines = [list(header), ["-" * width for width in widths], *rows]
    return "\n".join("| " + " | ".join(map(str.ljust, line, widths)) + " |" for line in lines)
