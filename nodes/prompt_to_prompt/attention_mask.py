"""Where a prompt's words are in a picture: attention to them along its trajectory, as a map and as a mask.

The model is evaluated at the trajectory's own latents (no sampling is watched). A UNet's cross-attention is read at the layers that
the local blend reads, a transformer's as `block_maps` says. Each layer's map is divided by its mean over the picture, so that layers
and steps count alike, whatever share of their attention they spend on the words.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from ..attention.calls import ModelOptions
from ..attention.cross_attention import CrossCall, on_cross_attention
from ..attention.families import family_of
from ..attention.unet_layers import attention_layers, leave_behind
from ..diffusion.conditioning import Conditioning
from ..diffusion.source import visit
from ..diffusion.trajectory import Trajectory
from ..text.prompt_tokens import PromptTokens
from .block_maps import block_maps, report_of
from .local_blend import at_size
from .prompt_edit import PromptEdit, Tokenize, columns_of, phrases, tokenize_prompt
from .word_layers import blend_layers, map_size
from .word_sites import require_clip

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher

BINS = 256


def found_words(
    model: ModelPatcher,
    trajectory: Trajectory,
    source: Conditioning,
    words: Sequence[Sequence[int]],
    prompt: PromptTokens,
    steps: range,
    blocks: str,
) -> tuple[torch.Tensor, str]:
    """[B, words, h, w]: attention to each word, as a multiple of its mean over the picture; and a report on the blocks.

    A picture with frames is so many pictures. The first of `words` are those that the mask is for.
    """
    family = family_of(model)
    if family is not None:
        maps, readings = block_maps(model, family, trajectory, source, words, len(prompt.ids), steps, blocks)
        if maps.ndim == 5:
            maps = maps.transpose(1, 2).flatten(0, 1)
        return maps, report_of(family.name, readings)
    attention_layers(model)
    if blocks.strip().lower() != "auto":
        raise ValueError(
            f"blocks: expected 'auto' for a UNet, whose layers at a quarter of the latent's resolution are read, got {blocks!r}. Write auto."
        )
    require_clip(prompt)
    return word_maps(model, trajectory, source, words, len(prompt.ids), steps), ""


def word_maps(
    model: ModelPatcher,
    trajectory: Trajectory,
    source: Conditioning,
    words: Sequence[Sequence[int]],
    prompt_columns: int,
    steps: range,
) -> torch.Tensor:
    """Of a UNet, [B, words, h, w] at the layers' size: attention to the columns of each word, as a multiple of its mean."""
    latent = tuple(trajectory.latents.shape[-2:])
    factors = attention_layers(model)
    layers = blend_layers(factors, latent)
    total = _WordMaps(map_size(latent, factors[layers[0]]), words, prompt_columns)

    def read(step: int, options: ModelOptions) -> None:
        on_cross_attention(options, layers, prompt_columns, total.add)
        leave_behind(options, layers)

    visit(model, trajectory, source, steps, read, socket="positive")
    return total.sum.cpu() / total.count


def stretched(maps: torch.Tensor) -> torch.Tensor:
    """Maps [B, h, w], each from 0 at its lowest to 1 at its highest."""
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    return (maps - low) / (high - low).clamp_min(1e-12)


class _WordMaps:
    """Sums over steps and layers of maps [B, words, h, w], each relative to its mean."""

    def __init__(self, size: tuple[int, int], words: Sequence[Sequence[int]], prompt_columns: int):
        self.size = size
        self.words = torch.zeros(prompt_columns, len(words))  # 1 where a column is of a word
        for number, columns in enumerate(words):
            self.words[list(columns), number] = 1.0
        self.sum: torch.Tensor | float = 0.0
        self.count = 0

    def add(self, call: CrossCall) -> torch.Tensor:
        self.words = self.words.to(call.q.device)
        maps = (call.probabilities(slice(None)).sum(1) @ self.words).mT
        maps = maps / maps.mean(-1, keepdim=True).clamp_min(1e-12)
        self.sum = self.sum + at_size(maps.unflatten(-1, call.size), self.size)
        self.count += 1
        return call.output


def words_of(read: Tokenize, text: str, words: str, edit: PromptEdit | None) -> tuple[PromptTokens, tuple[int, ...]]:
    """The prompt and the columns of the words in it."""
    if edit is not None:
        if not edit.source_blend:
            raise ValueError(
                "edit: expected one with blend_words of its source_text, got none of them. Write them in Encode Prompt Edit, or "
                "disconnect the edit and use words."
            )
        return edit.source, edit.source_blend
    prompt = tokenize_prompt(read, text, "text")
    wanted = phrases(words)
    if not wanted:
        raise ValueError("words: expected at least one word of the text, got none. Write what the mask should cover.")
    found = [columns_of(read, phrase, "words", text=prompt) for phrase in wanted]
    return prompt, tuple(sorted({column for columns in found for column in columns}))


def require_picture(image: torch.Tensor, batch: int, size: tuple[int, int], pixels: int) -> None:
    """Raise ValueError unless `image` [B, H, W, C] can be the inverted picture, of this size, at another scale.

    pixels: of one latent pixel, by which an encoder may have cut the picture.
    """
    if len(image) not in (1, batch):
        raise ValueError(
            f"image: expected one picture or the trajectory's {batch}, got a batch of {len(image)}. Connect the "
            "picture that was inverted."
        )
    height, width = image.shape[1:3]
    off = max(abs(height * size[1] / width - size[0]), abs(width * size[0] / height - size[1]))
    if off > pixels:
        raise ValueError(
            f"image: expected the inverted picture, which has the proportions of {size[1]} x {size[0]} pixels, got one of {width} x {height}, on "
            "which the mask would be stretched. Connect the picture as it went into VAE Encode, after any crop."
        )


def enlarged(maps: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """[B, H, W] in 0..1."""
    return F.interpolate(maps[:, None], size, mode="bicubic", align_corners=False)[:, 0].clamp(0.0, 1.0)


def otsu(maps: torch.Tensor) -> torch.Tensor:
    """[B], the level that parts each map's values into the two classes furthest apart (Otsu 1979)."""
    levels = (torch.arange(BINS) + 0.5) / BINS
    thresholds = []
    for values in maps.flatten(1).cpu():
        share = torch.histc(values, BINS, 0.0, 1.0).double() / len(values)
        below = share.cumsum(0)
        mean_below = (share * levels).cumsum(0)
        between = (mean_below[-1] * below - mean_below) ** 2 / (below * (1.0 - below)).clamp_min(1e-12)
        best = between[:-1] >= between[:-1].max() * (1.0 - 1e-9)
        thresholds.append(float(levels[:-1][best].mean()) + 0.5 / BINS)
    return torch.tensor(thresholds)


def mask_of(maps: torch.Tensor, threshold: float) -> torch.Tensor:
    """[B, H, W] of 0 and 1: above `threshold` times the map's highest value, or above Otsu's level when it is 0."""
    levels = otsu(maps) if threshold == 0.0 else threshold * maps.amax((1, 2))
    return (maps > levels.view(-1, 1, 1)).float()
