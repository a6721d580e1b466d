"""Places in a UNet's decoder whose values an edit can read and replace, and the words an artist names them by."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher

# From the second block of the level at a quarter of the latent's resolution, which 2211.12572 calls layer 4 of SD1's
# twelve, to the last block with self-attention. SDXL has no level at an eighth, so there that block is number 1.
AUTO = {12: (4, range(4, 12)), 9: (1, range(1, 6))}


@dataclass(frozen=True)
class Sites:
    """Output blocks counted from 0 at the bottom of the UNet.

    features: blocks whose residual features are meant, as out_layers gives them before the skip addition.
    attention: (block, depth) of each self-attention layer.
    """

    features: tuple[int, ...]
    attention: tuple[tuple[int, int], ...]

    @property
    def layers(self) -> frozenset[tuple[str, int, int]]:
        """The attention, each with the side of the UNet that it is on."""
        return frozenset(("output", block, depth) for block, depth in self.attention)

    def covers(self, other: Sites) -> bool:
        return set(other.features) <= set(self.features) and set(other.attention) <= set(self.attention)

    def __str__(self) -> str:
        blocks = sorted({block for block, _ in self.attention})
        parts = (("features", self.features), ("attention", blocks))
        return "; ".join(f"{kind} {','.join(map(str, numbers))}" for kind, numbers in parts if numbers)


def decoder_depths(model: ModelPatcher) -> tuple[int, ...]:
    """The number of self-attention layers in each output block of the model's UNet.

    Raises ValueError for a model that is no image UNet.
    """
    unet = model.get_model_object("diffusion_model")
    blocks = getattr(unet, "output_blocks", None)
    layers = [layer for block in blocks or () for layer in block]
    if blocks is None or any(hasattr(layer, "time_stack") for layer in layers):
        raise ValueError(
            "model: expected an image model with a UNet (SD1.x, SD2.x, SDXL) or a transformer whose attention this pack can read (Flux, "
            f"SD3, Qwen-Image and others), got {type(model.model).__name__} ({type(unet).__name__}). Connect one of those."
        )
    return tuple(
        sum(
            not attention.disable_self_attn for layer in block for attention in getattr(layer, "transformer_blocks", ())
        )
        for block in blocks
    )


def parse_sites(blocks: str, depths: Sequence[int]) -> Sites:
    """Sites named by "auto" or by sections such as "features 4; attention 4-8, 10", either of which may be missing.

    depths: self-attention layers of each output block, from `decoder_depths`.
    """
    text = blocks.strip().lower()
    if text == "auto":
        return _auto(depths)
    chosen: dict[str, list[int]] = {}
    for section in filter(None, map(str.strip, text.split(";"))):
        kind, *tokens = re.sub(r"\s*-\s*", "-", section).replace(",", " ").split() or [""]
        if kind not in ("features", "attention") or kind in chosen or not tokens:
            raise ValueError(
                f"blocks: expected 'auto', or 'features' and 'attention' once each with block numbers, such as "
                f"'features 4; attention 4-11', got {section!r} in {blocks!r}. Write it like the example."
            )
        chosen[kind] = sorted({block for token in tokens for block in _numbers(token, section, len(depths))})
    if not chosen:
        raise ValueError(
            f"blocks: expected 'auto' or block numbers, such as 'features 4; attention 4-11', got {blocks!r}. Write one of them."
        )
    bare = [block for block in chosen.get("attention", ()) if depths[block] == 0]
    if bare:
        with_attention = ", ".join(str(block) for block, depth in enumerate(depths) if depth)
        raise ValueError(
            f"blocks: expected output blocks with self-attention ({with_attention} of this model), got {bare[0]} in {blocks!r}. "
            "Write some of these, or auto."
        )
    return _sites(chosen.get("features", ()), chosen.get("attention", ()), depths)


def _sites(features: Iterable[int], attention: Iterable[int], depths: Sequence[int]) -> Sites:
    return Sites(tuple(features), tuple((block, depth) for block in attention for depth in range(depths[block])))


def _auto(depths: Sequence[int]) -> Sites:
    feature, attention = AUTO.get(len(depths), (0, ()))
    if not attention or not all(depths[block] for block in attention):
        raise ValueError(
            f"blocks: expected block numbers, because 'auto' knows only the UNets of SD1.x, SD2.x and SDXL, got 'auto' for "
            f"{len(depths)} output blocks with {', '.join(map(str, depths))} self-attention layers. "
            "Name some of them, such as 'features 4; attention 4-8'."
        )
    return _sites((feature,), attention, depths)


def _numbers(token: str, section: str, count: int) -> range:
    match = re.fullmatch(r"(\d{1,4})(?:-(\d{1,4}))?", token)
    first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
    if not first <= last < count:
        raise ValueError(
            f"blocks: expected output blocks 0-{count - 1} of this UNet, alone or as first-last, got {token!r} in {section!r}. "
            "Write numbers that it has, or auto."
        )
    return range(first, last + 1)
