"""Ratios, bars and tables from what was measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from benchmarks.contestants import (
    BARE,
    BARS,
    CAPTURE,
    CAPTURED,
    DDIM,
    FIXED_POINT,
    LIVE,
    PLAIN,
    PUBLISHED_EDIT,
    PUBLISHED_INVERSION,
    Measurement,
)
from benchmarks.published import EDIT_ROWS, EDIT_STEPS, INVERSION_STEPS
from benchmarks.subjects import Subject

MB = 1e6
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


def captures_one_tensor_a_site(memory: dict[str, float]) -> bool:
    return memory["attention_tensors"] == memory["attention_sites"] and memory["feature_tensors"] == 1


def bars_section(results: Results) -> str:
    header = ["ratio", "model", "median", "range", "bar", ""]
    return _table(header, [bar.cells() for bar in bars(results)])


def costs_section(results: Results) -> str:
    """Median seconds of each contestant, beside the UNet calls and rows it spends."""
    sections = []
    for subject, measured in results:
        rows = [
            [name, str(m.calls), str(m.rows), f"{median(m.seconds):.2f}", _range(m.seconds, 2)]
            for name, m in measured.items()
            if name in (BARE, DDIM, FIXED_POINT, PLAIN, LIVE, CAPTURED, CAPTURE)
        ]
        sections.append(f"{subject}\n\n" + _table(["", "UNet calls", "rows", "seconds", "range"], rows))
    return "\n\n".join(sections)


def memory_section(memory: dict[str, float]) -> str:
    attention = memory["attention_bytes"] * memory["attention_steps"]
    feature = memory["feature_bytes"] * memory["feature_steps"]
    grown = memory["peak_capture"] - memory["peak_plain"]
    kept = memory["captured_steps"] * (memory["attention_bytes"] + memory["feature_bytes"])
    sites, steps = memory["attention_sites"], memory["attention_steps"]
    verdict = "pass" if captures_one_tensor_a_site(memory) else "MISSED"
    rows = [
        [f"self-attention, {sites} sites, {steps} steps", f"{attention / MB:.1f}"],
        [f"features, 1 site, {memory['feature_steps']} steps", f"{feature / MB:.1f}"],
        ["all that an edit reads (fp16)", f"{(attention + feature) / MB:.1f}"],
        ["the same with q and k kept apart", f"{(2 * attention + feature) / MB:.1f}"],
        ["peak resident memory: model loaded", f"{memory['peak_loaded'] / MB:.0f}"],
        ["peak resident memory: plain evaluations", f"{memory['peak_plain'] / MB:.0f}"],
        [f"peak resident memory: capture of {memory['captured_steps']} steps", f"{memory['peak_capture'] / MB:.0f}"],
    ]
    return (
        _table(["SD1.5, 512 x 512, default windows of 50 steps", "MB"], rows)
        + f"\n\n{memory['attention_tensors']} tensors a step for {sites} attention sites, "
        f"{memory['feature_tensors']} for the features (one each: {verdict}). A plain evaluation that came before the "
        f"capture had peaked {grown / MB:.0f} MB lower; the {memory['captured_steps']} captured steps hold {kept / MB:.1f} MB."
    )


def published_section(results: Results) -> str:
    """The whole way from a picture to one edit of it in 50 steps; and a further edit of the same picture."""
    return "\n\n".join(f"{subject.name}\n\n{_published_table(subject, measured)}" for subject, measured in results)


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
        row("ddim inversion + live source", "50 + 2 x 50 + 40 = 190", cost(DDIM), cost(LIVE)),
        row("fixed_point inversion + live source", "at most 5 x 50 + 2 x 50 + 40 = 390", cost(FIXED_POINT), cost(LIVE)),
    ]  # fmt: skip
    further = [
        row("a further edit: published recipe", f"{EDIT_ROWS} x {EDIT_STEPS} = 150", cost(PUBLISHED_EDIT)),
        row("a further edit: live source", "2 x 50 + 40 = 140", cost(LIVE)),
        row("a further edit: captured features", "2 x 50 = 100", cost(CAPTURED)),
    ]
    rows = [
        [title, formula, f"{rows:.0f}", f"{calls:.0f}", f"{seconds:.1f}", f"{group[0][2][2] / seconds:.2f} x"]
        for group in (first, further)
        for title, formula, (calls, rows, seconds) in group
    ]
    return _table(["", "rows, by formula", "rows counted", "UNet calls counted", "seconds", "times as fast"], rows)


def _range(values: list[float], digits: int) -> str:
    if len(values) == 1:
        return "one run"
    return f"{min(values):.{digits}f} to {max(values):.{digits}f}"


def _table(header: Sequence[str], rows: list[list[str]]) -> str:
    """GitHub's table, padded so that it reads as well in a terminal."""
    widths = [max(len(line[i]) for line in [list(header), *rows]) for i in range(len(header))]
    lines = [list(header), ["-" * width for width in widths], *rows]
    return "\n".join("| " + " | ".join(map(str.ljust, line, widths)) + " |" for line in lines)
