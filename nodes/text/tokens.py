"""ComfyUI's tokens as columns of cross-attention."""

from __future__ import annotations

from collections.abc import Hashable
from typing import TYPE_CHECKING

import comfy.sd1_clip

from .prompt_tokens import PromptTokens

if TYPE_CHECKING:
    from comfy.sd import CLIP


def tokenize(clip: CLIP, text: str) -> PromptTokens:
    """The prompt that clip.tokenize(text) makes. Weights such as (word:1.2) are no part of its words.

    SDXL's two encoders tokenise alike except for padding, so that one layout stands for both.
    """
    encoders = clip.tokenize(text, return_word_ids=True)
    layouts = {name: [token for chunk in chunks for token in chunk] for name, chunks in encoders.items()}
    chunk = len(next(iter(encoders.values()))[0])
    columns = {name: [i for i, (*_, word) in enumerate(layout) if word] for name, layout in layouts.items()}
    shapes = {
        name: ({len(c) for c in chunks}, len(layouts[name]), tuple(columns[name])) for name, chunks in encoders.items()
    }
    if any(shape != ({chunk}, *next(iter(shapes.values()))[1:]) for shape in shapes.values()):
        raise ValueError(
            f"clip: expected CLIP text encoders, which tokenise alike (SD1.x, SD2.x, SDXL), got {', '.join(encoders)} with other "
            "layouts. Connect the CLIP of a UNet checkpoint."
        )
    name = next(iter(encoders))
    ids = tuple(_identity(token) for token, *_ in layouts[name])
    words, spelled = _words(clip, text, ids, columns[name])
    return PromptTokens(text, ids, words, chunk, spelled)


def _identity(token: object) -> Hashable:
    """A textual inversion's vectors are tensors where other tokens are numbers."""
    return token if isinstance(token, int) else token.detach().cpu().float().numpy().tobytes()


def _words(clip: CLIP, text: str, ids: tuple[Hashable, ...], columns: list[int]) -> tuple[tuple, tuple]:
    """Columns of each word between spaces of the text without its weights."""
    segments = comfy.sd1_clip.token_weights(comfy.sd1_clip.escape_important(text), 1.0)
    plain = "".join(comfy.sd1_clip.unescape_important(segment) for segment, _ in segments)
    words, spelled, rest = [], [], columns
    for word in plain.split():
        alone = next(iter(clip.tokenize(word, return_word_ids=True, disable_weights=True).values()))
        tokens = [_identity(token) for chunk in alone for token, _, number in chunk if number]
        if [ids[column] for column in rest[: len(tokens)]] != tokens:
            raise ValueError(
                f"text: expected weights such as (word:1.2) around whole words, got {text!r}, where {word!r} is cut in pieces."
            )
        if tokens:
            words.append(tuple(rest[: len(tokens)]))
            spelled.append(word.lower())
        rest = rest[len(tokens) :]
    return tuple(words), tuple(spelled)
