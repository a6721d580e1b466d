"""A picture's structure as a network holds it, read from one call and put into another: one interface for UNets and transformers.

In a UNet it is residual features of the decoder, and q and k of its self-attention (2211.12572). A transformer has no such
features: v of image tokens stands for them, and q and k of image tokens for self-attention (2411.04746, 2508.07519, 2605.02417).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch

from .calls import Chunk, ModelOptions, Record
from .families import Family, family_of
from .features import inject_features, record_features
from .joint_attention import TEXT_TOKENS, inject_values, record_values
from .self_attention import inject_queries, record_queries
from .transformer_sites import attention_channels, count_blocks, parse_transformer_sites
from .unet_layers import leave_behind
from .unet_sites import Sites, decoder_depths, parse_sites

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher


class Structure(Protocol):
    """feature_end, attention_end: the share of the steps, from the noisy end, for which the source's are published to be kept."""

    feature_end: float
    attention_end: float

    def sites(self, blocks: str) -> Sites:
        """The places that an artist's words mean. ValueError for places that the model does not have."""

    def values(self, sites: Sites, x: torch.Tensor) -> int | None:
        """How many numbers a record of these sites has for a latent; None if only a call can tell."""

    def record(self, options: ModelOptions, sites: Sites) -> Record:
        """Let a call read the sites into the record that is returned."""

    def chosen(self, record: Record, sites: Sites) -> Record:
        """What of a record of more sites an injection into these needs."""

    def inject(self, options: ModelOptions, sites: Sites, records: dict[Chunk, Record]) -> None:
        """Let a call overwrite the sites in the rows of chunks that have a record."""


def structure_of(model: ModelPatcher) -> Structure:
    family = family_of(model)
    if family is not None:
        return TransformerStructure(family, count_blocks(model), attention_channels(model))
    return UNetStructure(decoder_depths(model))


@dataclass(frozen=True)
class UNetStructure:
    depths: tuple[int, ...]
    feature_end: float = 0.8
    attention_end: float = 0.5

    def sites(self, blocks: str) -> Sites:
        return parse_sites(blocks, self.depths)

    def values(self, sites: Sites, x: torch.Tensor) -> None:
        return None

    def record(self, options: ModelOptions, sites: Sites) -> Record:
        record: Record = {}
        record_queries(options, sites.layers, record)
        record_features(options, sites.features, record)
        leave_behind(options, sites.layers, sites.features)
        return record

    def chosen(self, record: Record, sites: Sites) -> Record:
        return {
            key: value
            for key, value in record.items()
            if (key[2] in sites.features if key[0] == "feature" else key[1:] in sites.layers)
        }

    def inject(self, options: ModelOptions, sites: Sites, records: dict[Chunk, Record]) -> None:
        inject_queries(options, sites.layers, records)
        inject_features(options, sites.features, records)


@dataclass(frozen=True)
class TransformerStructure:
    """The windows are as short as the published ones: 0.2 of the steps for q and k (2508.07519), 3 of 30 for v (2605.02417)."""

    family: Family
    count: tuple[int, int]
    channels: tuple[int, ...]
    feature_end: float = 0.1
    attention_end: float = 0.2

    def sites(self, blocks: str) -> Sites:
        return parse_transformer_sites(blocks, self.family.name, self.count)

    def values(self, sites: Sites, x: torch.Tensor) -> int:
        attention = 2 * sum(self.channels[block] for block, _ in sites.attention)
        features = sum(self.channels[block] for block in sites.features)
        return len(x) * math.prod(self.family.grid(x)) * (attention + features)

    def record(self, options: ModelOptions, sites: Sites) -> Record:
        record: Record = {}
        record_values(options, self.family, _values(sites), record)
        return record

    def chosen(self, record: Record, sites: Sites) -> Record:
        values = _values(sites)
        return {key: value for key, value in record.items() if key == TEXT_TOKENS or key[1] in values.get(key[0], ())}

    def inject(self, options: ModelOptions, sites: Sites, records: dict[Chunk, Record]) -> None:
        inject_values(options, self.family, _values(sites), records)


def _values(sites: Sites) -> dict[str, frozenset[int]]:
    attention = frozenset(block for block, _ in sites.attention)
    return {"query": attention, "key": attention, "value": frozenset(sites.features)}
