"""The bars that a page holds its figures against, and whether they are met."""

from __future__ import annotations

from dataclasses import dataclass, field


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
