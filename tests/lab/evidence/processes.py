"""Work that is spread over all cores, a process and a thread for each."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from support.host.in_process import enter

Item = TypeVar("Item")
Found = TypeVar("Found")


def spread(work: Callable[[Item], Found], items: Iterable[Item]) -> Iterator[Found]:
    """What `work`, a function of a module, makes of each item, in their order."""
    from comfy.cli_args import args

    os.environ["OMP_NUM_THREADS"] = "1"
    # Not forked: a compiler that has begun in this process does not end in a copy of it.
    with multiprocessing.get_context("spawn").Pool(os.cpu_count(), _begin, (args.base_directory,)) as pool:
        yield from pool.imap(work, items)


def _begin(base: str) -> None:
    """In a new process, which imports this module first: nothing of ComfyUI may come before `enter`."""
    enter(base)
    import torch

    torch.set_flush_denormal(True)
