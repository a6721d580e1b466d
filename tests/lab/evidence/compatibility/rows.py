"""What a row of the table is."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from lab.evidence.compatibility.graph import Graph

UNCLIP = "UnCLIP decoder"


@dataclass(frozen=True)
class Row:
    """change: what stands beside the pack's node in the graph. only: the columns it says something about, if not all.

    beside: how the column's result is checked as well: against the same graph without the row ("unchanged"), picture by
    picture ("rows"), or not ("").
    """

    group: str
    name: str
    change: Callable[[Graph], Graph]
    only: tuple[str, ...] = ()
    beside: str = ""
    host: Callable[[], AbstractContextManager] = nullcontext
