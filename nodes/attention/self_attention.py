"""A source's self-attention, read and put in the place of another row's.

q and k of a layer are both linear in its normalised input, so replacing that input replaces both; v stays the row's own.
It is read and replaced before other packs' patches see it. Patches that choose, merge or reorder tokens anew at each call, such as
Token Merging and HyperTile, then do so with the source's values, and put what comes of them back where it belongs.
"""

from __future__ import annotations

from collections.abc import Callable, Set
from dataclasses import dataclass

import torch

from .calls import Chunk, ModelOptions, Record, chunks_of, inject_rows, is_source_pass
from .unet_layers import Layer, layer_of


def record_queries(model_options: ModelOptions, layers: Set[Layer], record: Record) -> None:
    """Keep ("query", *layer): the normalised input of to_q and to_k."""

    def read(n: torch.Tensor, context: torch.Tensor, value: torch.Tensor, options: dict) -> tuple:
        layer = layer_of(options)
        if layer in layers:
            record[("query", *layer)] = n
        return n, context, value

    _add_attn1_patch(model_options, read)


def inject_queries(model_options: ModelOptions, layers: Set[Layer], records: dict[Chunk, Record]) -> None:
    """Overwrite what to_q and to_k get, in the rows of chunks that have a record."""

    def overwrite(n: torch.Tensor, context: torch.Tensor, value: torch.Tensor, options: dict) -> tuple:
        layer = layer_of(options)
        if layer not in layers or is_source_pass(options):
            return n, context, value
        query = inject_rows(n, records, ("query", *layer), chunks_of(options))
        return query, query, value

    _add_attn1_patch(model_options, overwrite)


@dataclass(frozen=True)
class _Patch:
    use: Callable

    def __call__(self, n: torch.Tensor, context: torch.Tensor, value: torch.Tensor, options: dict) -> tuple:
        return self.use(n, context, value, options)


def _add_attn1_patch(model_options: ModelOptions, use: Callable) -> None:
    """Add the patch to options the caller owns: before all others, but after those that were added here before."""
    patches = (
        model_options.setdefault("transformer_options", {}).setdefault("patches", {}).setdefault("attn1_patch", [])
    )
    patches.insert(sum(isinstance(patch, _Patch) for patch in patches), _Patch(use))
