"""What a page says of its figures: the bars, whether they are met, and how sure a share is."""

from __future__ import annotations

from dataclasses import dataclass, field

from scipy.stats import binomtest


@dataclass
class Bars:
    part: str
    rows: list[tuple[str, str, str, bool]] = field(default_factory=list)

    def add(self, name: str, wanted: str, measured: str, met: bool) -> None:
        self.rows.append((name, wanted, measured, met))

    @property
    def missed(self) -> list[str]:
        return [f"{self.part}: {name}: {wanted}, measured {got}" for name, wanted, got, met in self.rows if not met]

    def table(self) -> list[str]:
        return [
            "| goal | required | measured | |",
            "|---|---|---|---|",
            *(
                f"| {name} | {wanted} | {got} | {'met' if met else '**missed**'} |"
                for name, wanted, got, met in self.rows
            ),
            "",
        ]


def share(right: int, count: int) -> str:
    """A share and its 95 % interval (Wilson)."""
    interval = binomtest(right, count).proportion_ci(method="wilson")
    return f"{100 * right / count:.0f} % ({100 * interval.low:.0f} to {100 * interval.high:.0f})"
