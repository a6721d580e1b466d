"""A source's self-attention, read and put in the place of another row's.

Values replace q and k through the normalised input both are linear in, so v stays the row's own.
"""

from __future__ import annotations

from collections.abc import Callable, Set

import torch

from .calls import Chunk, ModelOptions, Record, chunks_of, inject_rows, is_source_pass
from .unet_layers import Layer, layer_of


def record_queries(model_options: ModelOptions, layers: Set[Layer], record: Record) -> None:
    """Keep ("query", *layer): the normalised input of to_q, and of to_k unless another pack's patch made that differ, which is
    then under ("key", *layer)."""

    def read(n: torch.Tensor, context: torch.Tensor, value: torch.Tensor, options: dict) -> tuple:
        layer = layer_of(options)
        if layer in layers:
            record[("query", *layer)] = n
            if context is not n:
                record[("key", *layer)] = context
        return n, context, value

    _add_attn1_patch(model_options, read)


def inject_queries(model_options: ModelOptions, layers: Set[Layer], records: dict[Chunk, Record]) -> None:
    """Overwrite what to_q and to_k get, in the rows of chunks that have a record."""

    def overwrite(n: torch.Tensor, context: torch.Tensor, value: torch.Tensor, options: dict) -> tuple:
        layer, chunks = layer_of(options), chunks_of(options)
        record = next((records[chunk] for chunk in chunks if chunk in records), None)
        if layer not in layers or record is None or is_source_pass(options):
            return n, context, value
        query = inject_rows(n, records, ("query", *layer), chunks)
        if ("key", *layer) in record:
            key = inject_rows(context, records, ("key", *layer), chunks)
        else:
            key = query if context is n else inject_rows(context, records, ("query", *layer), chunks)
        return query, key, value

    _add_attn1_patch(model_options, overwrite)


def _add_attn1_patch(model_options: ModelOptions, patch: Callable) -> None:
    """Add the patch, after all others, to options the caller owns."""
    transformer_options = model_options.setdefault("transformer_options", {})
    transformer_options.setdefault("patches", {}).setdefault("attn1_patch", []).append(patch)
