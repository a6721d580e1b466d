"""What all pages of measured results say in the same words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

JUDGED = (
    "A program, [the judge](judge.md), reads every picture by fitting the renderer to it. It answers which things, colours, style and background it shows, "
    "or that it shows nothing of this world. Shares have 95 % intervals by Wilson's formula, means and differences by (paired) bootstrap over the "
    "pictures. Where the interval of a difference holds 0, the page calls it a tie."
)


def opening(title: str, part: str) -> list[str]:
    return [
        f"# {title}: measured results",
        "",
        "All figures were measured with the [toy models](toy.md): small models trained on drawn scenes of two things. They are not figures of "
        f"Stable Diffusion: full-size models can behave differently. `make evidence PART={part}` measures them again and writes this page.",
        "",
    ]


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return [f"| {' | '.join(headings)} |", "|---" * len(headings) + "|", *lines, ""]


def claims(found: Mapping[str, bool], lead: str = "") -> list[str]:
    """One sentence of what these pictures show and what they do not. `lead`: words with which every claim begins."""
    parts = [
        f"{word}: {lead}{'; '.join(some)}."
        for word, some in (
            ("**Shown**", [claim for claim, shown in found.items() if shown]),
            ("**Not shown**", [claim for claim, shown in found.items() if not shown]),
        )
        if some
    ]
    return [" ".join(parts), ""]


def save_page(docs: Path, part: str, lines: Sequence[str]) -> None:
    text = "\n".join(lines).rstrip() + "\n"
    (docs / f"{part}.md").write_text(text)
    print(text)
