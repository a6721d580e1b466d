"""A transformer's attention from its picture to words of its prompt: read, and changed beside q and k of the picture's own tokens."""

from __future__ import annotations

from collections.abc import Callable, Set
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch

from .calls import AllSeen, Chunk, Columns, ModelOptions, Record, is_source_pass
from .families import Family
from .joint_attention import Attention, Sites, keep_values, on_attention, overwritten, text_groups


@dataclass(frozen=True)
class TextCall:
    """The call of a block that sees the text, q and k as they are overwritten, and what it gives: [rows, heads, N, D]."""

    call: Attention
    family: Family
    columns: Columns
    output: torch.Tensor

    @property
    def layer(self) -> tuple[int, ...]:
        return self.call.place[:1]

    @property
    def size(self) -> tuple[int, ...]:
        return self.call.size

    @property
    def options(self) -> dict[str, Any]:
        return self.call.options

    def picture(self, output: torch.Tensor) -> torch.Tensor:
        """What of an output belongs to the picture."""
        return output[:, :, self.call.image]

    def probabilities(self, rows: slice) -> torch.Tensor:
        """[rows, heads, image tokens, columns that are read] in float32."""
        return self._shares[rows][..., :-1].float()

    def text_probability(self, rows: slice) -> torch.Tensor:
        """[rows, heads, image tokens, 1] in float32: what the whole text has."""
        return self._shares[rows][..., -1:].float()

    def applied(self, probabilities: torch.Tensor, rows: slice) -> torch.Tensor:
        """What probabilities of the columns gather from v: [rows, heads, image tokens, D]."""
        columns = [self.call.text.start + column for (column,) in self._groups[:-1]]
        v = self.call.v[rows][:, :, columns]
        return probabilities.to(v) @ v

    @cached_property
    def _groups(self) -> list[list[int]]:
        return _groups(self.call, self.family, self.columns)

    @cached_property
    def _shares(self) -> torch.Tensor:
        return self.call.shares(self._groups)


def _groups(call: Attention, family: Family, columns: Columns) -> list[list[int]]:
    return text_groups(call, family, columns.count, ([column] for column in columns.read))


Use = Callable[[TextCall], torch.Tensor]


def record_text(
    model_options: ModelOptions, family: Family, sites: Sites, blocks: Set[int], columns: Columns, record: Record
) -> None:
    """Keep q, k, v of `sites` as `record_values` does, and of `blocks` the probabilities of the columns that are read,
    ("cross", block): [B, heads, n, columns], and of the whole text, ("text", block): [B, heads, n, 1]."""
    last = max({block for places in sites.values() for block in places} | set(blocks))

    def read(call: Attention) -> None:
        if call.place[0] > last:
            raise AllSeen
        keep_values(call, sites, record)
        if call.has_text and call.place[0] in blocks:
            shares = call.shares(_groups(call, family, columns))
            record["cross", call.place[0]], record["text", call.place[0]] = shares[..., :-1], shares[..., -1:]

    on_attention(model_options, family, read, leave=True)


def change_text(
    model_options: ModelOptions,
    family: Family,
    sites: Sites,
    blocks: Set[int],
    columns: Columns,
    records: dict[Chunk, Record],
    use: Use,
) -> None:
    """Overwrite q, k, v of `sites` as `inject_values` does, and let use(call) give the output of `blocks`."""

    def change(call: Attention) -> torch.Tensor | None:
        if is_source_pass(call.options):
            return None
        values = overwritten(call, family, sites, records)
        here = call.has_text and call.place[0] in blocks
        if values is None and not here:
            return None
        if values is not None:
            call = replace(call, q=values[0], k=values[1], v=values[2])
        output = call.run(call.q, call.k, call.v)
        return use(TextCall(call, family, columns, output)) if here else output

    on_attention(model_options, family, change, records=records)
