"""What unCLIP's networks read of a text: CLIP's hidden states, its projected embedding, and which tokens are the text's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from comfy.sd import CLIP
    from comfy.sd1_clip import SDClipModel


@dataclass(frozen=True)
class TextStates:
    """states: [B, 77, width] of the last layer, after its LayerNorm; pooled: [B, width], projected, not normalised.

    mask: [B, 77] bool, True for start token, text and end token, False for padding, whose states must not be read.
    unread: how many tokens of each text were cut off.
    """

    states: torch.Tensor
    pooled: torch.Tensor
    mask: torch.Tensor
    unread: tuple[int, ...]


def text_states(clip: CLIP, texts: Sequence[str], width: int | None, what: str) -> TextStates:
    """Encode texts with the encoder of this width in a stock CLIP: of SDXL's two, 1280 is the G. None: with its only encoder.

    Texts are cut after 75 tokens, as published. what: the network that reads the states, for errors, as in "the prior".
    """
    require_last_layer(clip, what)
    name, encoder = _encoder(clip, width, what)
    _require_projection(encoder, what)
    chunks, lengths, unread = [], [], []
    for text in texts:
        chunk, length, left = _one_chunk(clip.tokenize(text, return_word_ids=True)[name], encoder)
        chunks.append(chunk)
        lengths.append(length)
        unread.append(left)
    clip.load_model({name: chunks})
    encoder.reset_clip_options()
    try:
        options = {"layer": None, "projected_pooled": True, "execution_device": clip.patcher.load_device}
        encoder.set_clip_options(options)
        encoded = [encoder.encode_token_weights([chunk])[:2] for chunk in chunks]
    finally:
        encoder.reset_clip_options()
    states, pooled = (torch.cat(parts).float() for parts in zip(*encoded, strict=True))
    mask = torch.arange(states.shape[1], device=states.device) < torch.tensor(lengths, device=states.device)[:, None]
    return TextStates(states, pooled, mask, tuple(unread))


def require_last_layer(clip: CLIP, what: str) -> None:
    if clip.layer_idx not in (None, -1):
        raise ValueError(
            f"clip: expected its last layer, which {what} was trained with, got layer {clip.layer_idx}. Remove CLIP "
            "Set Last Layer before this node."
        )


def _encoder(clip: CLIP, width: int | None, what: str) -> tuple[str, SDClipModel]:
    """A CLIP text encoder of that width: its name among the tokens, and the model."""
    found = {}
    for name in clip.tokenize(""):
        encoder = getattr(clip.cond_stage_model, f"clip_{name}", None)
        projection = getattr(getattr(encoder, "transformer", None), "text_projection", None)
        if projection is not None:
            found[projection.weight.shape[0]] = name, encoder
    got = ", ".join(str(size) for size in sorted(found)) or "an encoder of another kind"
    if width is None and len(found) > 1:
        raise ValueError(
            f"clip: expected a single CLIP text encoder where no model is connected, got encoders of width {got}. Connect the model, "
            f"which tells the width that {what} reads."
        )
    if width is None and found:
        [width] = found
    if width not in found:
        usual = {768: "CLIP ViT-L/14, as of SD1.x", 1280: "CLIP ViT-bigG/14, as of SDXL"}.get(
            width, "the one it came with"
        )
        raise ValueError(
            f"clip: expected a CLIP text encoder{'' if width is None else f' of width {width}'}, which {what} was trained with, got {got}. "
            f"Connect {usual}."
        )
    return found[width]


def _require_projection(encoder: SDClipModel, what: str) -> None:
    """Checkpoints of SD1.x have no text_projection: ComfyUI then leaves the parameter uninitialised."""
    weight = encoder.transformer.text_projection.weight.detach().float()
    rms = float(weight.square().mean().sqrt()) * weight.shape[1] ** 0.5
    if not (0.01 < rms < 100.0 and float((weight == 0).float().mean()) < 0.1):  # a NaN fails the first
        raise ValueError(
            f"clip: expected a text encoder with its projection into the space of image embeddings, text_projection.weight, which {what} "
            "needs, got one without. Checkpoints of SD1.x lack it. Load CLIP with the text encoder of the published CLIP, "
            "such as model.safetensors of openai/clip-vit-large-patch14."
        )


def _one_chunk(chunks: list[list[tuple]], encoder: SDClipModel) -> tuple[list[tuple], int, int]:
    """(77 tokens with weights, how many of them are start, text and end, how many tokens of the text were cut off)."""
    special, length = encoder.special_tokens, encoder.max_length
    own = [(token, weight) for chunk in chunks for token, weight, word in chunk if word]
    read = own[: length - 2]
    chunk = [(special["start"], 1.0), *read, (special["end"], 1.0)]
    padding = [(special["pad"], 1.0)] * (length - len(chunk))
    return chunk + padding, len(chunk), len(own) - len(read)
