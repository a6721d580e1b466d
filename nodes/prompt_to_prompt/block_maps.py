"""Where words are in a picture, by the attention of a transformer's blocks to them along the picture's trajectory.

A block divides its attention between picture and text, in another way at each pixel, so that a word counts by its share of all that
goes to the text. Blocks that see no words have flat maps: where no list of good blocks is published, those count whose maps of the
wanted words vary most over the picture.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from ..attention.calls import OTHER_BLOCKS, AllSeen, ModelOptions
from ..attention.families import Family
from ..attention.joint_attention import Attention, on_attention, text_groups
from ..attention.transformer_sites import count_blocks, parse_blocks, word_blocks
from ..diffusion.conditioning import Conditioning
from ..diffusion.source import visit
from ..diffusion.trajectory import Trajectory
from .word_layers import clearest, variation

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher


@dataclass(frozen=True)
class BlockReading:
    """Of one block, on average over picture and steps: the attention to all text, the words' share of it, the map's variation."""

    block: int
    text: float
    share: float
    variation: float
    counts: bool


def block_maps(
    model: ModelPatcher,
    family: Family,
    trajectory: Trajectory,
    source: Conditioning,
    words: Sequence[Sequence[int]],
    prompt_columns: int,
    steps: range,
    blocks: str,
) -> tuple[torch.Tensor, list[BlockReading]]:
    """[B, words, h, w], with frames behind the words where there are several, as multiples of their mean; and what each block read.

    The first of `words` are those whose map chooses the blocks.
    """
    count = count_blocks(model)
    chosen = parse_blocks(blocks, family.name, count)
    published = word_blocks(family.name, count) if chosen is None else chosen
    total = MapSums(family, words, prompt_columns, published or tuple(range(sum(count))))

    def read(step: int, options: ModelOptions) -> None:
        on_attention(options, family, total.add, leave=True)

    visit(model, trajectory, source, steps, read, socket="positive")
    if set(total.count.values()) != {len(steps)} or total.blocks - set(total.count):
        raise ValueError(OTHER_BLOCKS)
    maps = {block: sums / len(steps) for block, sums in total.maps.items()}
    variations = {block: variation(own[:, 0]) for block, own in maps.items()}
    counted = clearest(variations) if published is None else [*maps]
    readings = [
        BlockReading(
            block, float(total.text[block]) / len(steps), float(total.share[block]) / len(steps), variations[block], block in counted
        )
        for block in sorted(maps)
    ]  # fmt: skip
    return sum(maps[block] for block in counted) / len(counted), readings


def report_of(family: str, readings: Sequence[BlockReading]) -> str:
    """What an artist reads to find the blocks of a model that see words."""
    lines = [
        f"{family}: attention to the words, block by block. share: of what goes to the text. variation: of the map over the "
        "picture; high is clear.",
        "block   text  share  variation",
    ]
    lines += [
        f"{own.block:5d} {100 * own.text:5.1f}% {100 * own.share:5.2f}% {own.variation:10.3f}{'  read' if own.counts else ''}"
        for own in readings
    ]
    return "\n".join(lines)


class MapSums:
    """Sums over steps, by block."""

    def __init__(self, family: Family, words: Sequence[Sequence[int]], prompt_columns: int, blocks: Sequence[int]):
        self.family = family
        self.blocks = frozenset(blocks)
        self.last = max(blocks)
        self.words = list(dict.fromkeys(map(tuple, words)))  # each is read once
        self.place = [self.words.index(tuple(word)) for word in words]
        self.prompt_columns = prompt_columns
        self.maps: dict[int, torch.Tensor] = {}
        self.text: dict[int, torch.Tensor] = {}
        self.share: dict[int, torch.Tensor] = {}
        self.count: Counter[int] = Counter()

    def add(self, call: Attention) -> None:
        block = call.place[0]
        if block > self.last:
            raise AllSeen
        if not call.has_text or block not in self.blocks:
            return
        self.count[block] += 1
        shares = call.shares(text_groups(call, self.family, self.prompt_columns, self.words)).float()
        text = shares[..., -1:]
        maps = (shares[..., self.place] / text.clamp_min(1e-12)).mean(1).mT
        mean = maps.mean(-1, keepdim=True)
        self.text[block] = self.text.get(block, 0.0) + text.mean().cpu()
        self.share[block] = self.share.get(block, 0.0) + mean[:, 0].mean().cpu()
        relative = (maps / mean.clamp_min(1e-12)).unflatten(-1, call.size).cpu()
        self.maps[block] = self.maps.get(block, 0.0) + relative
