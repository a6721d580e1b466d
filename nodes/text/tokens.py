"""ComfyUI's tokens as columns of cross-attention."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import comfy.sd1_clip

from .prompt_tokens import PromptTokens

if TYPE_CHECKING:
    from comfy.sd import CLIP

# White space as CLIP's tokenizer sees it. "embedding: name" is one thing to core.
SPACES = re.compile(r"(?<!embedding:)(?<!\s)[^\S\x1c-\x1f]+")
SEPARATORS = "\u241f\u241e\u241d\u241c"  # symbols that hardly any prompt has
BEGIN = 49406  # CLIP's begin token
Token = Any  # a number, or a textual inversion's vector
Content = list[tuple[str, int | None]]  # tokens of the text, each with its column; None where core leaves a vector out


def tokenize(clip: CLIP, text: str) -> PromptTokens:
    """The prompt that clip.tokenize(text) makes, in the columns that clip encodes it to.

    Weights such as (word:1.2) are no part of its words. SDXL's two encoders share one layout.
    """
    encoders = clip.tokenize(text, return_word_ids=True)
    firsts = {name: [chunk[0][0] for chunk in chunks if chunk] for name, chunks in encoders.items()}
    other = [name for name, tokens in firsts.items() if any(type(t) is not int or t != BEGIN for t in tokens)]
    if other:
        raise ValueError(
            f"clip: expected CLIP text encoders (SD1.x, SD2.x, SDXL), got one of another kind, {', '.join(other)}. Connect the CLIP "
            "of a UNet checkpoint."
        )
    spelled, pieces = _cut_at_spaces(clip, text)
    sizes = {tuple(map(len, chunks)) for chunks in encoders.values()}
    layouts = [_words(pieces[name], _content(clip, name, chunks)) for name, chunks in encoders.items()]
    words: dict[tuple[int, ...], str] = {}
    ids = [""] * sum(max(sizes))
    for word, *parts in zip(spelled, *layouts, strict=True):
        places = {tuple(column for _, column in part if column is not None) for part in parts} - {()}
        if len(places) > 1 or len(sizes) > 1:
            raise ValueError(
                f"clip: expected text whose words have the same position in both text encoders ({', '.join(encoders)}), got "
                f"{text!r} with a textual inversion that only one of them reads: the other leaves it out and moves what follows. "
                "Write it at the very end, or use one that was made for both."
            )
        words.update(dict.fromkeys(places, word))
        for token, column in (entry for part in parts for entry in part if entry[1] is not None):
            ids[column] = token
    return PromptTokens(text, tuple(ids), tuple(words), max(sizes)[0], tuple(words.values()))


def _content(clip: CLIP, name: str, chunks: list[list[tuple[Token, float, int]]]) -> Content:
    """A vector of another width than the encoder's is left out, and what follows in its chunk moves to the left."""
    content: Content = []
    for number, chunk in enumerate(chunks):
        column = number * len(chunk)
        for token, _, of_text in chunk:
            read = _is_read(clip, name, token)
            if of_text:
                content.append((_identity(clip, token), column if read else None))
            column += read
    return content


def _is_read(clip: CLIP, name: str, token: Token) -> bool:
    if isinstance(token, int):
        return True
    embedding = getattr(clip.cond_stage_model, f"clip_{name}").transformer.get_input_embeddings()
    return token.shape[-1] == embedding.weight.shape[-1]


def _identity(clip: CLIP, token: Token) -> str:
    if isinstance(token, int):
        return clip.tokenizer.untokenize([(token, 1.0)])[0][1]
    return f"vector {hashlib.sha256(token.detach().cpu().float().numpy().tobytes()).hexdigest()}"


def _cut_at_spaces(clip: CLIP, text: str) -> tuple[list[str], dict[str, list[list[str]]]]:
    """The words between spaces of the text without its weights, and for each encoder the tokens of each.

    Tokens do not say where spaces were. Each piece of the text that core tokenises by itself is tokenised once more with a
    separator at its spaces; CLIP's tokenizer cuts at spaces before all else, so that the other tokens stay the same.
    """
    separator = next((symbol for symbol in SEPARATORS if symbol not in text), None)
    if separator is None:
        raise ValueError(
            f"clip: expected text without one of the symbols {' '.join(SEPARATORS)}, got all of them. Leave one out."
        )
    marks = {name: _tokens(clip, chunks) for name, chunks in clip.tokenize(separator, return_word_ids=True).items()}
    spelled = [""]
    words: dict[str, list[list[str]]] = {name: [[]] for name in marks}
    for piece, _ in comfy.sd1_clip.token_weights(comfy.sd1_clip.escape_important(text), 1.0):
        first, *others = (word.lower() for word in SPACES.split(comfy.sd1_clip.unescape_important(piece)))
        spelled[-1] += first
        spelled += others
        marked = SPACES.sub(lambda space: f"{space[0]}{separator}{space[0]}", piece)
        for name, chunks in clip.tokenize(marked, return_word_ids=True, disable_weights=True).items():
            for token in _tokens(clip, chunks):
                words[name][-1].append(token)
                if words[name][-1][-len(marks[name]) :] == marks[name]:
                    del words[name][-1][-len(marks[name]) :]
                    words[name].append([])
    return spelled, words


def _tokens(clip: CLIP, chunks: list[list[tuple[Token, float, int]]]) -> list[str]:
    return [_identity(clip, token) for chunk in chunks for token, _, of_text in chunk if of_text]


def _words(pieces: list[list[str]], content: Content) -> Iterator[Content]:
    """The content, cut into words."""
    if [token for piece in pieces for token in piece] != [token for token, _ in content]:
        raise ValueError("clip: expected CLIP's tokenizer, which cuts text at spaces, got one that does not.")
    start = 0
    for piece in pieces:
        yield content[start : start + len(piece)]
        start += len(piece)
