"""What one call of a model's network says to whatever reads or overwrites values inside it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import comfy.model_patcher
import torch

MARK = "palimpsest.source_pass"
STEP_CACHES = ("easycache", "lazycache")  # keys of core's EasyCache and LazyCache
OTHER_BLOCKS = (
    "model: expected one whose blocks all run at every step, for the source and for the edit, got one with a patch that skipped some of "
    "them, as TeaCache and first-block caches do. Remove that node."
)

ModelOptions = dict[str, Any]
# What was read, by kind and place, such as ("query", "output", 4, 0): [B, N, C].
Record = dict[tuple, torch.Tensor]
# The rows of a call are one chunk for each condition: the number of its list (0 positive, 1 negative) and its uuid. Both are
# needed, because core copies an entry with an area from one list into the other with the same uuid.
Chunk = tuple[int, Any]


@dataclass(frozen=True)
class Columns:
    """Of a prompt: how many there are, and which of them are read."""

    count: int
    read: tuple[int, ...]


class AllSeen(Exception):
    """Raised to leave a source pass: nothing behind this point of the network is read."""


def mark_source_pass(model_options: ModelOptions) -> ModelOptions:
    """A copy of the options for evaluating a source picture. Every injection, also a second pack node's, leaves such a call alone.

    A step cache neither answers it nor learns from it.
    """
    options = comfy.model_patcher.create_model_options_clone(model_options)
    transformer_options = options.setdefault("transformer_options", {})
    transformer_options[MARK] = True
    for by_key in transformer_options.get("wrappers", {}).values():
        for key in STEP_CACHES:
            by_key.pop(key, None)
    return options


def is_source_pass(transformer_options: dict[str, Any]) -> bool:
    return MARK in transformer_options


def chunks_of(transformer_options: dict[str, Any]) -> list[Chunk]:
    return list(zip(transformer_options["cond_or_uncond"], transformer_options["uuids"], strict=True))


def value_of(record: Record, place: tuple) -> torch.Tensor:
    """What was read of the source at a place of the network."""
    if place not in record:
        raise ValueError(OTHER_BLOCKS)
    return record[place]


def inject_rows(own: torch.Tensor, records: dict[Chunk, Record], key: tuple, chunks: list[Chunk]) -> torch.Tensor:
    """`own` with the source's value in the rows of those chunks that have a record."""
    rows: list[torch.Tensor] = []
    for chunk, values in zip(chunks, own.chunk(len(chunks)), strict=True):
        if chunk in records:
            source = records[chunk][key].to(own)
            rows += [source] * (len(values) // len(source))
        else:
            rows.append(values)
    return torch.cat(rows)
