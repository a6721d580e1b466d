"""A source's self-attention, read and put in the place of another row's.

Values replace q and k through the normalised input both are linear in, so v stays the row's own.
"""

from __future__ import annotations

from collections.abc import Set

import torch

from ..diffusion.source_pass import Chunk, ModelOptions, Record, chunks_of, is_source_pass
from .unet_layers import Layer, layer_of


def add_attn1_patch(model_options: ModelOptions, patch) -> None:
    """Add the patch, after all others, to options the caller owns."""
    transformer_options = model_options.setdefault("transformer_options", {})
    transformer_options.setdefault("patches", {}).setdefault("attn1_patch", []).append(patch)


class QueryRecorder:
    """Keeps ("query", *layer): the normalised input of to_q, and of to_k unless another pack's patch made that differ, which
    is then under ("key", *layer)."""

    def __init__(self, layers: Set[Layer], record: Record):
        self.layers = layers
        self.record = record

    def __call__(self, n: torch.Tensor, context: torch.Tensor, value: torch.Tensor, options: dict) -> tuple:
        layer = layer_of(options)
        if layer in self.layers:
            self.record[("query", *layer)] = n
            if context is not n:
                self.record[("key", *layer)] = context
        return n, context, value


class QueryInjection:
    """Overwrites what to_q and to_k get, in the rows of conditions that have a record."""

    def __init__(self, layers: Set[Layer], records: dict[Chunk, Record]):
        self.layers = layers
        self.records = records

    def __call__(self, n: torch.Tensor, context: torch.Tensor, value: torch.Tensor, options: dict) -> tuple:
        layer, chunks = layer_of(options), chunks_of(options)
        record = next((self.records[chunk] for chunk in chunks if chunk in self.records), None)
        if layer not in self.layers or record is None or is_source_pass(options):
            return n, context, value
        query = inject_rows(n, self.records, ("query", *layer), chunks)
        if ("key", *layer) in record:
            key = inject_rows(context, self.records, ("key", *layer), chunks)
        else:
            key = query if context is n else inject_rows(context, self.records, ("query", *layer), chunks)
        return query, key, value


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
