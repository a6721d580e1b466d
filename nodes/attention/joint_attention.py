"""A transformer's attention as q, k, v of picture and text: read, and overwritten, in whatever kernel ComfyUI has chosen.

ComfyUI calls transformer_options["optimized_attention_override"] in place of its kernel, with q, k, v after their norms and
rotary positions. There is one such slot: whatever stands in it is called in turn, and in the end ComfyUI's kernel.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from comfy.patcher_extension import WrappersMP, add_wrapper_with_key

from .calls import (
    OTHER_BLOCKS,
    AllSeen,
    Chunk,
    ModelOptions,
    Record,
    chunks_of,
    is_source_pass,
    value_of,
)
from .families import CROSS, IMAGE_FIRST, Family

OVERRIDE = "optimized_attention_override"
KEY = "palimpsest.joint_attention"
VALUES = ("query", "key", "value")
TEXT_TOKENS = ("text tokens",)
Kernel = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
NOTHING = slice(0, 0)


@dataclass(frozen=True)
class Attention:
    """One attention call of a main block: q, k, v [rows, heads, N, D].

    place: number of the block, and of the call in it. text: its tokens among the keys, empty where the call has none.
    image: tokens of the latent that is denoised, among the queries and, unless the call is a cross-attention, among the keys.
    grid: frames, rows and columns of image tokens.
    """

    place: tuple[int, int]
    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    text: slice
    image: slice
    options: dict[str, Any]
    run: Kernel  # the kernel that ComfyUI or another pack has chosen
    run_core: Kernel  # ComfyUI's
    mask: torch.Tensor | None
    grid: tuple[int, int, int]

    @property
    def size(self) -> tuple[int, ...]:
        """Of maps over the picture, with its frames where there are several."""
        return self.grid if self.grid[0] > 1 else self.grid[1:]

    @property
    def has_text(self) -> bool:
        return self.text != NOTHING

    @property
    def is_cross(self) -> bool:
        return self.k.shape[2] != self.q.shape[2] or self.text == slice(0, self.k.shape[2])

    def shares(self, groups: Sequence[Sequence[int]]) -> torch.Tensor:
        """Attention [rows, heads, image tokens, groups] of each image token to groups of text columns.

        The kernel itself tells: where v is 1 at a group's tokens and 0 elsewhere, the output is the group's probability. That
        needs no matrix of all tokens, and rounds as the kernel does. One run of it tells of as many groups as v has channels.
        """
        channels = self.v.shape[-1]
        return torch.cat([self._shares(groups[i : i + channels]) for i in range(0, len(groups), channels)], -1)

    def _shares(self, groups: Sequence[Sequence[int]]) -> torch.Tensor:
        indicators = torch.zeros_like(self.v)
        for group, columns in enumerate(groups):
            indicators[:, :, [self.text.start + column for column in columns], group] = 1.0
        if self.mask is None or self.mask.shape[-2] == 1:
            return self.run_core(self.q[:, :, self.image], self.k, indicators)[..., : len(groups)]
        return self.run_core(self.q, self.k, indicators)[:, :, self.image, : len(groups)]


# What to do with a call: its output [rows, heads, N, D], None for what its kernel gives.
Use = Callable[[Attention], torch.Tensor | None]


def on_attention(
    model_options: ModelOptions,
    family: Family,
    use: Use,
    leave: bool = False,
    records: Mapping[Chunk, Record] = MappingProxyType({}),
) -> None:
    """Let `use` see every attention call of the main blocks, after all other patches. The options are the caller's own.

    leave: end each call of the network by AllSeen, because its output is not wanted. records: of the source, whose blocks must all
    run in these calls too.
    """
    blocks = 1 + max((place[1] for record in records.values() for place in record if place != TEXT_TOKENS), default=-1)
    tap = _Tap(family, use, leave, blocks)
    add_wrapper_with_key(WrappersMP.APPLY_MODEL, KEY, tap.apply_model, model_options, is_model_options=True)


Sites = Mapping[str, Set[int]]  # by "query", "key" or "value" the blocks


def text_groups(call: Attention, family: Family, count: int, groups: Iterable[Sequence[int]]) -> list[list[int]]:
    """Groups for `shares`: those of a prompt's `count` columns, and behind them all text that the call sees, padding too."""
    tokens = call.text.stop - call.text.start
    first = tokens - count if family.text_last else 0
    return [*([first + column for column in group] for group in groups), list(range(tokens))]


def record_values(model_options: ModelOptions, family: Family, sites: Sites, record: Record) -> None:
    """Keep ("query", block, call) and so on: image tokens [rows, heads, n, D]. The call ends, by AllSeen, behind the last of them."""
    last = max(block for blocks in sites.values() for block in blocks)

    def read(call: Attention) -> None:
        if call.place[0] > last:
            raise AllSeen
        keep_values(call, sites, record)

    on_attention(model_options, family, read, leave=True)


def keep_values(call: Attention, sites: Sites, record: Record) -> None:
    if call.is_cross:
        return
    record.setdefault(TEXT_TOKENS, torch.tensor(call.text.stop))
    for name, values in zip(VALUES, (call.q, call.k, call.v), strict=True):
        if call.place[0] in sites.get(name, ()):
            record[(name, *call.place)] = values[:, :, call.image].clone()


def inject_values(model_options: ModelOptions, family: Family, sites: Sites, records: dict[Chunk, Record]) -> None:
    """Overwrite image tokens in the rows of chunks that have a record."""

    def overwrite(call: Attention) -> torch.Tensor | None:
        values = overwritten(call, family, sites, records)
        return None if values is None else call.run(*values)

    on_attention(model_options, family, overwrite, records=records)


def overwritten(
    call: Attention, family: Family, sites: Sites, records: dict[Chunk, Record]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None:
    """q, k, v with the source's image tokens in them; None where the call has none to overwrite."""
    wanted = [name for name in VALUES if call.place[0] in sites.get(name, ())]
    chunks = chunks_of(call.options)
    recorded = [chunk for chunk in chunks if chunk in records]
    if call.is_cross or not wanted or not recorded or is_source_pass(call.options):
        return None
    qkv = []
    for name, own in zip(VALUES, (call.q, call.k, call.v), strict=True):
        if name in wanted:
            place = (name, *call.place)
            own = own.clone()
            for chunk, rows in zip(chunks, own.chunk(len(chunks)), strict=True):
                if chunk in records:
                    source = value_of(records[chunk], place).to(own)
                    # Where there is no such axis the number is not needed, and reading it would wait for a GPU.
                    if name != "value" and family.caption_axis is not None:
                        source = family.turned(source, call.text.stop - int(records[chunk][TEXT_TOKENS]))
                    rows[:, :, call.image].unflatten(0, (-1, len(source))).copy_(source)
        qkv.append(own)
    return tuple(qkv)


@dataclass
class _Network:
    """One call of the network. It stands in the call's own options, because rows may run in several threads at once."""

    grid: tuple[int, int, int]  # of image tokens
    text: int
    previous: Callable | None
    block: int = -1
    call: int = 0  # within the block

    @property
    def tokens(self) -> int:
        return math.prod(self.grid)


class _Tap:
    def __init__(self, family: Family, use: Use, leave: bool, blocks: int):
        self.family = family
        self.use = use
        self.leave = leave
        self.blocks = blocks
        self.key = f"{KEY}.{id(self)}"

    def apply_model(
        self,
        executor,
        x,
        t,
        c_concat=None,
        c_crossattn=None,
        control=None,
        transformer_options={},  # noqa: B006, as core declares it
        **kwargs,
    ):
        if kwargs.get(self.family.pictures) is not None:
            raise ValueError(
                f"positive, negative, source: expected prompts without reference pictures, because {self.family.name} puts their tokens before or "
                "between the picture's own, got one with some. Remove Set Reference Latent, or the node that adds them."
            )
        text = 0 if c_crossattn is None else c_crossattn.shape[1]
        network = _Network(self.family.grid(x), text, transformer_options.get(OVERRIDE))
        options = {**transformer_options, OVERRIDE: self.override, self.key: network}
        output = executor(x, t, c_concat, c_crossattn, control, options, **kwargs)
        if network.block < 0:
            raise ValueError(
                f"model: expected a transformer whose attention can be read, got {self.family.name}, none of "
                "whose blocks ran. Another node may skip or replace them: connect the model from before that node."
            )
        if self.leave:
            raise AllSeen
        if network.block + 1 < self.blocks:
            raise ValueError(OTHER_BLOCKS)
        return output

    def override(self, func, q, k, v, *args, **kwargs):
        options = kwargs["transformer_options"]
        network: _Network = options[self.key]
        heads = args[0] if args else kwargs["heads"]
        joined = not kwargs.get("skip_reshape", False)
        apart = kwargs.get("skip_output_reshape", False)

        def run(kernel: Callable) -> Kernel:
            def output(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
                qkv = (values.transpose(1, 2).flatten(2) if joined else values for values in (q, k, v))
                result = kernel(*qkv, *args, **kwargs)
                return result if apart else result.unflatten(-1, (heads, -1)).transpose(1, 2)

            return output

        chosen = func if network.previous is None else lambda *a, **kw: network.previous(func, *a, **kw)
        split = [_by_heads(values, heads) if joined else values for values in (q, k, v)]
        place = self._place(network, split[0].shape[2], split[1].shape[2], options)
        result = None
        if place is not None:
            mask = args[1] if len(args) > 1 else kwargs.get("mask")
            where = (network.block, network.call)
            result = self.use(Attention(where, *split, *place, options, run(chosen), run(func), mask, network.grid))
        if result is None:
            return chosen(q, k, v, *args, **kwargs)
        return result if apart else result.transpose(1, 2).flatten(2)

    def _place(self, network: _Network, n: int, m: int, options: dict) -> tuple[slice, slice] | None:
        """Text among the keys and image among the queries, None for a call of another kind. Counts blocks and their calls."""
        if (self.family.refiners and "block_index" not in options) or n < network.tokens:
            return None
        image = slice(0, network.tokens)
        if self.family.order == CROSS:
            if n == m and not (m == network.text and network.call == 0 and network.block >= 0):
                network.block, network.call = network.block + 1, 0
                return NOTHING, image
            network.call += 1
            return (slice(0, m), image) if m == network.text else None
        if n != m:
            return None
        if self.family.order == IMAGE_FIRST:
            text, image = slice(network.tokens, m), image
        else:
            start = self.family.text_tokens(network.text)
            text, image = slice(0, start), slice(start, start + network.tokens)
        if image.stop > n or n == network.tokens:  # no text: the second attention of SD3.5 Medium's blocks
            network.call += 1
            return NOTHING, slice(0, network.tokens)
        network.block, network.call = network.block + 1, 0
        return text, image


def _by_heads(values: torch.Tensor, heads: int) -> torch.Tensor:
    """[B, H, N, D] of [B, N, H D], or of SD3's v, [B, N, H, D]."""
    return (values if values.ndim == 4 else values.unflatten(-1, (heads, -1))).transpose(1, 2)
