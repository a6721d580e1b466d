"""What a row of the table is."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from lab.evidence.compatibility.graph import Graph


@dataclass(frozen=True)
class Row:
    """change: what stands beside the pack's node in the graph. only: the columns it says something about, if not all.

    each_alone: whether every picture of the batch is checked beside its own run as well.
    """

    group: str
    name: str
    change: Callable[[Graph], Graph]
    only: tuple[str, ...] = ()
    each_alone: bool = False
    host: Callable[[], AbstractContextManager] = nullcontext
