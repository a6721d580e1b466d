"""ComfyUI's tokens as columns of a model's attention to text."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import comfy.sd1_clip
import torch

from .columns import Chunks, Content, content_of, identity
from .other_encoders import other_prompt, reads_weights
from .prompt_tokens import PromptTokens

if TYPE_CHECKING:
    from comfy.sd import CLIP

# White space as CLIP's tokenizer sees it. "embedding: name" is one thing to core.
SPACES = re.compile(r"(?<!embedding:)(?<!\s)[^\S\x1c-\x1f]+")
SEPARATORS = "\u241f\u241e\u241d\u241c"  # symbols that hardly any prompt has
BEGIN = 49406  # CLIP's begin token


def tokenize(clip: CLIP, text: str) -> PromptTokens:
    """The prompt that clip.tokenize(text) makes, in the columns that clip encodes it to.

    Weights such as (word:1.2) are no part of its words where the encoder reads them as weights. SDXL's two encoders share one
    layout. Where a model reads several encoders one behind the other, a word has columns in each that is loaded.
    """
    encoders = clip.tokenize(text, return_word_ids=True)
    clips = {name: chunks for name, chunks in encoders.items() if _is_clip(chunks) and _is_loaded(clip, name)}
    others = _others(clip, encoders)
    if not others:
        return _of_words(_clip_prompt(clip, text, clips), lambda columns, word: columns)
    weighted = reads_weights(clip, others[0])
    words = [word for word in (spelled_words(text) if weighted else SPACES.split(text.lower())) if word]
    parts = [other_prompt(clip, name, text, words) for name in others]
    parts = [part if _is_loaded(clip, name) else _wordless(part) for name, part in zip(others, parts, strict=True)]
    if clips and _has_clip_columns(encoders):
        parts.insert(0, _of_words(_clip_prompt(clip, text, clips), lambda columns, word: word))
    return PromptTokens.joined(parts)


def columns_of_conditioning(embedding: torch.Tensor, options: dict[str, Any]) -> int:
    """How many columns of text a model's attention has for an entry of a CONDITIONING."""
    if "conditioning_llama3" in options:  # HiDream: T5, llama's last layer and one of its others
        return embedding.shape[1] + 2 * options["conditioning_llama3"].shape[-2]
    if "t5xxl_ids" in options:  # Anima: its adapter turns Qwen's states into one for each token of T5
        return len(options["t5xxl_ids"])
    return embedding.shape[1]


def _is_clip(chunks: Chunks) -> bool:
    return all(type(chunk[0][0]) is int and chunk[0][0] == BEGIN for chunk in chunks if chunk)


def _is_loaded(clip: CLIP, name: str) -> bool:
    """SD3 and HiDream work without some of their encoders. Core tokenises for those too, and encodes to nothing or zeros."""
    model = getattr(clip, "cond_stage_model", None)
    return all(getattr(model, attribute, True) is not None for attribute in (f"clip_{name}", name))


def _others(clip: CLIP, encoders: dict[str, Chunks]) -> list[str]:
    """Encoders that are no CLIPs and have columns, in their order."""
    others = {name for name, chunks in encoders.items() if not _is_clip(chunks)}
    if others == {"t5xxl", "llama"}:
        return ["t5xxl", "llama", "llama"]
    if "t5xxl" in others:
        return ["t5xxl"] if _is_loaded(clip, "t5xxl") else []
    if not others or len(encoders) == 1:
        return [*others]
    raise ValueError(
        f"clip: expected the text encoders of a model that this node knows, got {', '.join(sorted(encoders))}. Connect the CLIP that the "
        "model is loaded with."
    )


def _has_clip_columns(encoders: dict[str, Chunks]) -> bool:
    """SD3's attention reads CLIP's states before T5's; other models of several encoders read only their pooled ones."""
    return {"g", "t5xxl"} <= set(encoders) and "llama" not in encoders


def _wordless(prompt: PromptTokens) -> PromptTokens:
    nothing = ((),) * len(prompt.words)
    return replace(prompt, words=nothing, letters=nothing)


def _of_words(prompt: PromptTokens, wanted: Callable[[tuple[int, ...], str], object]) -> PromptTokens:
    kept = [pair for pair in zip(prompt.words, prompt.spelled_words, strict=True) if wanted(*pair)]
    words, spelled = zip(*kept, strict=True) if kept else ((), ())
    return replace(prompt, words=words, spelled_words=spelled)


def _clip_prompt(clip: CLIP, text: str, encoders: dict[str, Chunks]) -> PromptTokens:
    """A word that the encoders do not see has no columns."""
    spelled, pieces = _cut_at_spaces(clip, text, encoders)
    sizes = {tuple(map(len, chunks)) for chunks in encoders.values()}
    layouts = [_words(pieces[name], content_of(clip, name, chunks)) for name, chunks in encoders.items()]
    words: list[tuple[int, ...]] = []
    ids = [""] * sum(max(sizes))
    for parts in zip(*layouts, strict=True):
        places = {tuple(column for _, column in part if column is not None) for part in parts} - {()}
        if len(places) > 1 or len(sizes) > 1:
            raise ValueError(
                f"clip: expected text whose words have the same position in both text encoders ({', '.join(encoders)}), got "
                f"{text!r} with a textual inversion that only one of them reads: the other leaves it out and moves what follows. "
                "Write it at the very end, or use one that was made for both."
            )
        words.append(places.pop() if places else ())
        for token, column in (entry for part in parts for entry in part if entry[1] is not None):
            ids[column] = token
    return PromptTokens(text, tuple(ids), tuple(words), max(sizes)[0], tuple(spelled))


def spelled_words(text: str) -> list[str]:
    """The words between spaces of the text without its weights."""
    spelled = [""]
    for piece, _ in comfy.sd1_clip.token_weights(comfy.sd1_clip.escape_important(text), 1.0):
        first, *others = (word.lower() for word in SPACES.split(comfy.sd1_clip.unescape_important(piece)))
        spelled[-1] += first
        spelled += others
    return spelled


def _cut_at_spaces(clip: CLIP, text: str, names: Sequence[str]) -> tuple[list[str], dict[str, list[list[str]]]]:
    """The words between spaces of the text without its weights, and for each encoder the tokens of each.

    Tokens do not say where spaces were. Each piece of the text that core tokenises by itself is tokenised once more with a
    separator at its spaces; CLIP's tokenizer cuts at spaces before all else, so that the other tokens stay the same.
    """
    separator = next((symbol for symbol in SEPARATORS if symbol not in text), None)
    if separator is None:
        raise ValueError(
            f"clip: expected text without one of the symbols {' '.join(SEPARATORS)}, got all of them. Leave one out."
        )
    tokens = clip.tokenize(separator, return_word_ids=True)
    marks = {name: _tokens(clip, name, tokens[name]) for name in names}
    words: dict[str, list[list[str]]] = {name: [[]] for name in names}
    for piece, _ in comfy.sd1_clip.token_weights(comfy.sd1_clip.escape_important(text), 1.0):
        marked = SPACES.sub(lambda space: f"{space[0]}{separator}{space[0]}", piece)
        encoders = clip.tokenize(marked, return_word_ids=True, disable_weights=True)
        for name in names:
            for token in _tokens(clip, name, encoders[name]):
                words[name][-1].append(token)
                if words[name][-1][-len(marks[name]) :] == marks[name]:
                    del words[name][-1][-len(marks[name]) :]
                    words[name].append([])
    return spelled_words(text), words


def _tokens(clip: CLIP, name: str, chunks: Chunks) -> list[str]:
    return [identity(clip, name, token) for chunk in chunks for token, _, of_text in chunk if of_text]


def _words(pieces: list[list[str]], content: Content) -> Iterator[Content]:
    """The content, cut into words."""
    if [token for piece in pieces for token in piece] != [token for token, _ in content]:
        raise ValueError("clip: expected CLIP's tokenizer, which cuts text at spaces, got one that does not.")
    start = 0
    for piece in pieces:
        yield content[start : start + len(piece)]
        start += len(piece)
