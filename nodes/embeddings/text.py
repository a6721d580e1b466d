"""Texts in the space of image embeddings: CLIP's projected pooled output."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ..diffusion.image_embedding import encoder_of

if TYPE_CHECKING:
    from comfy.sd import CLIP

POOLED_BY = {
    ("l",): "l",
    ("h",): "h",
    ("g",): "g",
    ("g", "l"): "g",
}  # whose pooled output ComfyUI gives, by its encoders


def text_embedding(clip: CLIP, text: str, socket: str) -> torch.Tensor:
    """[width], not normalised; ValueError for a clip without a space it shares with pictures, and for text beyond one window."""
    tokens = clip.tokenize(text)
    encoder = POOLED_BY.get(tuple(sorted(tokens)))
    if encoder is None:
        raise ValueError(
            f"clip: expected a CLIP text encoder, which pictures share a space with (SD1.x, SD2.x, SDXL, Stable Cascade), got "
            f"{', '.join(tokens)}. Connect the one that belongs to the embedding's CLIP vision model."
        )
    if len(tokens[encoder]) > 1:
        raise ValueError(
            f"{socket}: expected at most 75 tokens, which is what CLIP embeds at once, got more in {text[:40]!r}. Shorten the text."
        )
    _require_projection(clip, encoder)
    _, pooled = clip.encode_from_tokens(tokens, return_pooled=True)
    return pooled[0]


def require_same_space(text: torch.Tensor, image: torch.Tensor, socket: str) -> None:
    if text.shape[-1] != image.shape[-1]:
        raise ValueError(
            f"clip: expected the text encoder of {socket}'s CLIP model, {encoder_of(image.shape[-1])}, got one {encoder_of(text.shape[-1])}. "
            "Load that model's text encoder with Load CLIP, or encode the picture with this one's CLIP vision model."
        )


def _require_projection(clip: CLIP, encoder: str) -> None:
    """Without it in the file, ComfyUI projects with whatever the memory held: nothing of ours may rest on that."""
    weight = getattr(clip.cond_stage_model, f"clip_{encoder}").transformer.text_projection.weight.float()
    size = float(weight.square().mean().sqrt())
    if not 1e-3 < size < 10:  # trained ones are about 0.01 to 0.04; also false for nan
        raise ValueError(
            "clip: expected a text encoder with its projection into the space of pictures (text_projection.weight), got one whose file "
            "lacks it, as those of SD1.x checkpoints do. Load a whole CLIP model, such as openai/clip-vit-large-patch14, with Load CLIP."
        )
