"""Tokens of one encoder, each in the column that the encoder gives it."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from comfy.sd import CLIP

Token = Any  # a number, or a textual inversion's vector
Chunks = list[list[tuple[Token, float, int]]]
Content = list[tuple[str, int | None]]  # tokens of the text, each with its column; None where core leaves a vector out
VECTOR = "vector "


def content_of(clip: CLIP, name: str, chunks: Chunks) -> Content:
    """A vector of another width than the encoder's is left out, and what follows in its chunk moves to the left."""
    content: Content = []
    for number, chunk in enumerate(chunks):
        column = number * len(chunk)
        for token, _, of_text in chunk:
            read = _is_read(clip, name, token)
            if of_text:
                content.append((identity(clip, name, token), column if read else None))
            column += read
    return content


def identity(clip: CLIP, name: str, token: Token) -> str:
    """As the encoder's vocabulary writes it."""
    if isinstance(token, int):
        return vocabulary(clip, name).untokenize([(token, 1.0)])[0][1]
    return f"{VECTOR}{hashlib.sha256(token.detach().cpu().float().numpy().tobytes()).hexdigest()}"


def vocabulary(clip: CLIP, name: str) -> Any:
    """The tokenizer of one of a CLIP's encoders."""
    return getattr(clip.tokenizer, f"clip_{name}", None) or getattr(clip.tokenizer, name, clip.tokenizer)


def _is_read(clip: CLIP, name: str, token: Token) -> bool:
    if isinstance(token, int):
        return True
    model = clip.cond_stage_model
    encoder = getattr(model, f"clip_{name}", None) or getattr(model, name)
    return token.shape[-1] == encoder.transformer.get_input_embeddings().weight.shape[-1]
