"""Where a word edit reads and changes a network: one interface for UNets and transformers.

In a UNet the words' attention is its cross-attention, at every layer, and self-attention that of all layers but those at full
resolution. In a transformer they are two parts of one attention: from image tokens to the words' columns, and q and k of image
tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import torch

from ..attention.calls import Chunk, Columns, ModelOptions, Record
from ..attention.cross_attention import CrossCall, on_cross_attention, record_cross
from ..attention.families import Family, family_of
from ..attention.joint_text import TextCall, change_text, record_text
from ..attention.self_attention import inject_queries, record_queries
from ..attention.transformer_sites import count_blocks, exchange_blocks, word_blocks
from ..attention.unet_layers import Layer, attention_layers, leave_behind
from ..text.prompt_tokens import PromptTokens
from .word_layers import blend_layers, map_size

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher

# The published code replaces self-attention of at most 32 x 32 pixels at a latent of 64 x 64. Counted in the latent's
# pixels that is every layer but those at full resolution, whatever the picture's size.
SELF_ATTENTION_FROM = 2

WordCall = CrossCall | TextCall
Place = tuple
Change = Callable[[WordCall], torch.Tensor]


class WordSites(Protocol):
    """cross_end, self_end: the shares of the steps that suit it. places: where words' attention is edited.

    blend_places, blend_size: where the maps of the local blend are read, and their size. blend_from_lowest: maps are shares of the
    attention to text, which no pixel is without. clearest: of these places only those count at which the words stand out.
    """

    cross_end: float
    self_end: float
    places: tuple[Place, ...]
    blend_places: tuple[Place, ...]
    blend_size: tuple[int, ...]
    blend_from_lowest: bool
    clearest: bool

    def columns(self, prompt: PromptTokens) -> Columns:
        """The columns of a prompt that are edited."""

    def record(self, options: ModelOptions, with_self: bool, places: Sequence[Place], source: PromptTokens) -> Record:
        """Let a call read self-attention, and the words' attention at these places, into the record that is returned."""

    def inject(
        self,
        options: ModelOptions,
        with_self: bool,
        places: Sequence[Place],
        target: PromptTokens,
        records: dict[Chunk, Record],
        change: Change,
    ) -> None:
        """Let a call overwrite self-attention in rows that have a record, and let change(call) give the output of these places."""


def word_sites_of(model: ModelPatcher, latent: Sequence[int]) -> WordSites:
    """latent: its shape, [C, (frames,) height, width]."""
    family = family_of(model)
    if family is None:
        return UNetWordSites(attention_layers(model), tuple(latent[-2:]))
    frames, rows, columns = family.grid(torch.empty(1, *latent, device="meta"))
    size = (frames, rows, columns) if frames > 1 else (rows, columns)
    return TransformerWordSites(family, count_blocks(model), size)


def require_clip(prompt: PromptTokens) -> None:
    if prompt.letters is not None or prompt.parts:
        raise ValueError(
            "clip: expected CLIP text encoders, which this UNet reads (SD1.x, SD2.x, SDXL), got a prompt of other encoders. Connect "
            "the checkpoint's CLIP."
        )


@dataclass(frozen=True)
class UNetWordSites:
    layers: dict[Layer, int]
    latent: tuple[int, int]
    cross_end: float = field(default=0.8, init=False)
    self_end: float = field(default=0.4, init=False)
    blend_from_lowest: bool = field(default=False, init=False)
    clearest: bool = field(default=False, init=False)

    @property
    def places(self) -> tuple[Layer, ...]:
        return tuple(self.layers)

    @property
    def blend_places(self) -> tuple[Layer, ...]:
        return blend_layers(self.layers, self.latent)

    @property
    def blend_size(self) -> tuple[int, int]:
        return map_size(self.latent, self.layers[self.blend_places[0]])

    @property
    def _self_layers(self) -> frozenset[Layer]:
        return frozenset(layer for layer, factor in self.layers.items() if factor >= SELF_ATTENTION_FROM)

    def columns(self, prompt: PromptTokens) -> Columns:
        require_clip(prompt)
        return Columns(len(prompt.ids), tuple(range(len(prompt.ids))))

    def record(self, options: ModelOptions, with_self: bool, places: Sequence[Layer], source: PromptTokens) -> Record:
        record: Record = {}
        self_layers = self._self_layers if with_self else frozenset()
        record_queries(options, self_layers, record)
        record_cross(options, places, len(source.ids), record)
        leave_behind(options, {*self_layers, *places})
        return record

    def inject(
        self,
        options: ModelOptions,
        with_self: bool,
        places: Sequence[Layer],
        target: PromptTokens,
        records: dict[Chunk, Record],
        change: Change,
    ) -> None:
        inject_queries(options, self._self_layers if with_self else frozenset(), records)
        on_cross_attention(options, places, len(target.ids), change)


@dataclass(frozen=True)
class TransformerWordSites:
    """The windows are the published ones: q and k for 0.2 of the steps (2508.07519), words for 10 of 28 (2507.01496)."""

    family: Family
    count: tuple[int, int]
    blend_size: tuple[int, ...]
    cross_end: float = field(default=0.35, init=False)
    self_end: float = field(default=0.2, init=False)
    blend_from_lowest: bool = field(default=True, init=False)

    @property
    def places(self) -> tuple[tuple[int], ...]:
        return tuple((block,) for block in exchange_blocks(self.family, self.count))

    @property
    def blend_places(self) -> tuple[tuple[int], ...]:
        blocks = word_blocks(self.family.name, self.count) or range(sum(self.count))
        return tuple((block,) for block in blocks)

    @property
    def clearest(self) -> bool:
        return word_blocks(self.family.name, self.count) is None

    def columns(self, prompt: PromptTokens) -> Columns:
        return Columns(len(prompt.ids), prompt.content)

    def _sites(self, with_self: bool) -> dict[str, frozenset[int]]:
        blocks = frozenset(range(sum(self.count)))
        return {"query": blocks, "key": blocks} if with_self else {}

    def record(
        self, options: ModelOptions, with_self: bool, places: Sequence[tuple[int]], source: PromptTokens
    ) -> Record:
        record: Record = {}
        blocks = {block for (block,) in places}
        record_text(options, self.family, self._sites(with_self), blocks, self.columns(source), record)
        return record

    def inject(
        self,
        options: ModelOptions,
        with_self: bool,
        places: Sequence[tuple[int]],
        target: PromptTokens,
        records: dict[Chunk, Record],
        change: Change,
    ) -> None:
        blocks = {block for (block,) in places}
        change_text(options, self.family, self._sites(with_self), blocks, self.columns(target), records, change)
