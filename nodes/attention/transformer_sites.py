"""Blocks of a transformer whose values an edit can read and replace, and the words an artist names them by."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

from .families import CROSS, Family
from .unet_sites import Sites

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher

# The lists of main blocks in core's networks: those with a stream for text and one for the image, then those with one for both.
DOUBLE = ("double_blocks", "joint_blocks", "transformer_blocks", "double_stream_blocks", "layers", "blocks")
SINGLE = ("single_blocks", "single_stream_blocks")
WIDTHS = ("hidden_size", "inner_dim", "model_channels", "dim")  # what core's networks call the channels of a token

# Where `auto` takes features, which are v of image tokens, as shares of the blocks; attention, q and k, is taken from all of them.
# Flux.1: single blocks 20-37 of 57 blocks (RF-Edit, 2411.04746). SD3: all but the last (DirectEdit, 2605.02417). Qwen-Image: 16-44
# of 60 (KVInject, 2605.01480). The others are not published and follow from these: the last two thirds.
FEATURES = {
    "Flux.1": (39 / 57, 1.0),
    "Chroma": (39 / 57, 1.0),
    "SD3": (0.0, None),
    "Qwen-Image": (16 / 60, 45 / 60),
}
LAST_TWO_THIRDS = (1 / 3, 1.0)
# Blocks whose attention says best where words are, by the number of blocks: the best five against masks of a detector (2508.07519),
# for Flux.2 those of 2502.04320.
WORDS = {
    ("Flux.1", (19, 38)): (11, 12, 14, 17, 18),
    ("Chroma", (19, 38)): (11, 12, 14, 17, 18),
    ("Flux.2", (8, 48)): (5, 6, 7),
    ("SD3", (24, 0)): (4, 5, 7, 8, 9),
    ("SD3", (38, 0)): (16, 18, 20, 21, 24),
}
# Blocks in which words take the source's attention: 13-44 of Flux.1's 57 (2507.01496), the same share of others. Where text has a
# call of its own, as in a UNet, it is all of them.
EXCHANGE = (13 / 57, 45 / 57)


def count_blocks(model: ModelPatcher) -> tuple[int, int]:
    """How many main blocks have two streams, and how many have one."""
    network = model.get_model_object("diffusion_model")
    double = next(len(getattr(network, name)) for name in DOUBLE if hasattr(network, name))
    single = next((len(getattr(network, name)) for name in SINGLE if hasattr(network, name)), 0)
    return double, single


def attention_channels(model: ModelPatcher) -> tuple[int, ...]:
    """Channels of q, of k and of v for an image token, block by block. SD3.5 Medium has a second attention in half of its blocks."""
    network = model.get_model_object("diffusion_model")
    width = next(getattr(network, name) for name in WIDTHS if hasattr(network, name))
    if not hasattr(network, "joint_blocks"):
        return (width,) * sum(count_blocks(model))
    return tuple(width * (2 if block.x_block.x_block_self_attn else 1) for block in network.joint_blocks)


def word_blocks(family: str, count: tuple[int, int]) -> tuple[int, ...] | None:
    """The blocks that are published to see words best; None where nothing is."""
    return WORDS.get((family, count))


def exchange_blocks(family: Family, count: tuple[int, int]) -> range:
    total = sum(count)
    if family.order == CROSS:
        return range(total)
    first, stop = (math.floor(share * total + 0.5) for share in EXCHANGE)
    return range(first, max(stop, first + 1))


def parse_blocks(blocks: str, family: str, count: tuple[int, int]) -> tuple[int, ...] | None:
    """Block numbers named by "all", or by a list such as "11, 12, double 14-18"; None for "auto"."""
    text = blocks.strip().lower()
    if text == "auto":
        return None
    if text == "all":
        return tuple(range(sum(count)))
    tokens = re.sub(r"\s*-\s*", "-", text).replace(",", " ").split()
    if not set(tokens) - {"double", "single"}:
        raise ValueError(
            f"blocks: expected 'auto', 'all' or block numbers, such as '11, 14-18', got {blocks!r}. Write one of them."
        )
    return tuple(sorted(_numbers(tokens, blocks, family, count)))


def parse_transformer_sites(blocks: str, family: str, count: tuple[int, int]) -> Sites:
    """Sites named by "auto" or by sections such as "features single 20-37; attention 0-56", either of which may be missing.

    Blocks are counted from 0 through both kinds; "double" and "single" count within one kind. count: from `count_blocks`.
    """
    total = sum(count)
    text = blocks.strip().lower()
    if text == "auto":
        first, end = FEATURES.get(family, LAST_TWO_THIRDS)
        stop = total - 1 if end is None else round(end * total)
        return _sites(range(math.floor(first * total + 0.5), stop), range(total))
    chosen: dict[str, list[int]] = {}
    for section in filter(None, map(str.strip, text.split(";"))):
        kind, *tokens = re.sub(r"\s*-\s*", "-", section).replace(",", " ").split()
        if kind not in ("features", "attention") or kind in chosen or not tokens:
            raise ValueError(
                "blocks: expected 'auto', or 'features' and 'attention' once each with block numbers, such as "
                f"'features single 20-37; attention 0-56', got {section!r} in {blocks!r}. Write it like the example."
            )
        chosen[kind] = sorted(_numbers(tokens, section, family, count))
    if not chosen:
        raise ValueError(
            f"blocks: expected 'auto' or block numbers, such as 'attention 0-{total - 1}', got {blocks!r}. Write one of them."
        )
    return _sites(chosen.get("features", ()), chosen.get("attention", ()))


def _sites(features, attention) -> Sites:
    return Sites(tuple(features), tuple((block, 0) for block in attention))


def _numbers(tokens: list[str], section: str, family: str, count: tuple[int, int]) -> set[int]:
    double, single = count
    numbers: set[int] = set()
    kind, first, end = "block", 0, double + single
    for token in tokens:
        if token in ("double", "single"):
            kind = token
            first, end = (0, double) if token == "double" else (double, double + single)
            continue
        match = re.fullmatch(r"(\d{1,4})(?:-(\d{1,4}))?", token)
        low, high = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if not low <= high < end - first:
            raise ValueError(
                f"blocks: expected {kind} numbers 0-{end - first - 1} of this {family}, which has {double} double and {single} single "
                f"blocks, alone or as first-last, got {token!r} in {section!r}. Write numbers that it has, or auto."
            )
        numbers.update(range(first + low, first + high + 1))
    return numbers
