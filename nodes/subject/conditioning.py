"""Text conditioning with reference pictures of its subjects (FastComposer, 2305.10431)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ..diffusion.conditioning import Conditioning
from ..text.text_states import require_last_layer
from .encoder import SubjectEncoder
from .markers import EXAMPLE, MarkedPrompt, own_columns, parse
from .reference_pictures import Reference, prepared

if TYPE_CHECKING:
    from comfy.sd import CLIP


def subject_conditioning(
    clip: CLIP, encoder: SubjectEncoder, text: str, references: list[Reference]
) -> tuple[Conditioning, Conditioning, MarkedPrompt]:
    """(conditioning with the pictures, plain conditioning, the prompt). They differ at the last token of each marked noun.

    The network was trained on text without weights. So the weight of a noun is applied after its picture was put in, as ComfyUI
    applies weights to what the text encoder gives.
    """
    _require_sd1(clip)
    prompt = parse(clip, text)
    if len(prompt.slots) != len(references):
        raise ValueError(
            f"text: expected one marker for each of the {len(references)} reference pictures, as in {EXAMPLE}, got "
            f"{len(prompt.slots)} in {text!r}. The first picture belongs to the first marker, and so on."
        )
    tokens = clip.tokenize(prompt.text, return_word_ids=True)
    columns = _columns(prompt, own_columns(tokens))
    [chunks] = tokens.values()
    weights = [token[1] for chunk in chunks for token in chunk]

    positive = clip.encode_from_tokens_scheduled(clip.tokenize(prompt.text))
    width = positive[0][0].shape[-1]
    if width != encoder.width:
        raise ValueError(
            f"clip: expected a text encoder of the subject encoder's width, {encoder.width}, got {width}. Connect `clip` of Load Subject "
            "Encoder."
        )
    unweighted = empty = positive
    if any(weight != 1.0 for weight in weights):
        unweighted = clip.encode_from_tokens_scheduled(_without_weights(tokens))
        empty = clip.encode_from_tokens_scheduled(clip.tokenize(""))
    pictures = encoder.embed(torch.stack([prepared(reference, encoder.image_size) for reference in references]))

    with_pictures = []
    for (states, extra), (plain, _), (nothing, _) in zip(positive, unweighted, empty, strict=True):
        states = states.clone()
        fused = encoder.fuse(plain[0, columns], pictures).to(states)
        for column, state in zip(columns, fused, strict=True):
            if weights[column] != 1.0:
                origin = nothing[0, column % len(chunks[0])]
                state = origin + weights[column] * (state - origin)
            states[0, column] = state
        with_pictures.append([states, extra.copy()])
    return with_pictures, positive, prompt


def _require_sd1(clip: CLIP) -> None:
    encoders = list(clip.tokenize(""))
    if encoders != ["l"]:
        raise ValueError(
            f"clip: expected SD1.x's text encoder, CLIP ViT-L, which the subject encoder was trained with, got {', '.join(encoders)}. "
            "Connect `clip` of Load Subject Checkpoint, or of an SD1.x checkpoint."
        )
    require_last_layer(clip, "the subject encoder")


def _columns(prompt: MarkedPrompt, own: list[int]) -> list[int]:
    """Columns of the conditioning that the pictures go to. Tokenisers of other packs may cut off long texts; ComfyUI's does not."""
    for noun, slot in zip(prompt.nouns, prompt.slots, strict=True):
        if slot >= len(own):
            raise ValueError(
                f"text: expected every subject among the {len(own)} tokens that this clip reads, got {noun!r} at token {slot + 1}. Move "
                "the subjects to the front, or shorten the text."
            )
    return [own[slot] for slot in prompt.slots]


def _without_weights(tokens: dict[str, list[list[tuple]]]) -> dict[str, list[list[tuple]]]:
    return {name: [[(token[0], 1.0) for token in chunk] for chunk in chunks] for name, chunks in tokens.items()}
