"""A source and a target prompt as one edit: their alignment, the weights of words and the words that may change pixels."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

import torch

from ..text.prompt_tokens import PromptTokens
from .alignment import Alignment, refine_alignment, replace_alignment

MODES = ("auto", "replace", "refine")
PROMPT = "palimpsest.prompt"  # in the dict of a CONDITIONING entry: the text it encodes

Tokenize = Callable[[str], PromptTokens]


@dataclass(frozen=True)
class PromptEdit:
    """What prompt-to-prompt does to a target prompt's cross-attention.

    equalizer: [target columns], the factor of each; blend columns: of the words whose pixels may change, in each prompt.
    """

    source: PromptTokens = field(repr=False)
    target: PromptTokens = field(repr=False)
    mode: str
    alignment: Alignment = field(repr=False)
    equalizer: torch.Tensor = field(repr=False)
    source_blend: tuple[int, ...]
    target_blend: tuple[int, ...]

    @property
    def blends(self) -> bool:
        return bool(self.source_blend or self.target_blend)


def prompt_edit(
    tokenize: Tokenize, source_text: str, target_text: str, mode: str, reweight: str, blend_words: str
) -> PromptEdit:
    source, target = (
        tokenize_prompt(tokenize, source_text, "source_text"),
        tokenize_prompt(tokenize, target_text, "target_text"),
    )
    if mode == "auto":
        mode = "replace" if len(source.words) == len(target.words) else "refine"
    alignment = (replace_alignment if mode == "replace" else refine_alignment)(source, target)
    equalizer = torch.ones(len(target.ids))
    for phrase, weight in parse_reweight(reweight):
        equalizer[list(columns_of(tokenize, phrase, "reweight", target_text=target))] = weight
    source_blend: set[int] = set()
    target_blend: set[int] = set()
    for phrase in phrases(blend_words):
        columns_of(tokenize, phrase, "blend_words", source_text=source, target_text=target)
        tokens = _words(tokenize, phrase)
        source_blend.update(source.find(tokens))
        target_blend.update(target.find(tokens))
    return PromptEdit(
        source, target, mode, alignment, equalizer, tuple(sorted(source_blend)), tuple(sorted(target_blend))
    )


def tokenize_prompt(tokenize: Tokenize, text: str, socket: str) -> PromptTokens:
    prompt = tokenize(text)
    if not prompt.words:
        raise ValueError(
            f"{socket}: expected a prompt with at least one word, got {text!r}. "
            f"Write what the picture {'is to show' if socket == 'target_text' else 'shows'}."
        )
    return prompt


def phrases(text: str) -> list[str]:
    """Words or groups of words between commas, semicolons or line ends."""
    return [phrase for part in re.split(r"[,;\n]", text) if (phrase := part.strip())]


def parse_reweight(text: str) -> list[tuple[str, float]]:
    """("fluffy", 2.0), ("red", -1.0) of "fluffy: 2, red: -1"."""
    parsed = []
    for entry in phrases(text):
        words, colon, number = (part.strip() for part in entry.rpartition(":"))
        try:
            weight = float(number)
        except ValueError:
            weight = math.nan
        if not (colon and words and math.isfinite(weight)):
            raise ValueError(
                f"reweight: expected words of target_text with a number each, after a colon, got {entry!r} in {text!r}. "
                "Write them like 'fluffy: 2, red: -1'."
            )
        parsed.append((words, weight))
    return parsed


def columns_of(tokenize: Tokenize, phrase: str, socket: str, **prompts: PromptTokens) -> tuple[int, ...]:
    """Columns of the phrase in the first of `prompts` (by socket) that has it; ValueError when none does."""
    tokens = _words(tokenize, phrase)
    for prompt in prompts.values():
        if tokens and (columns := prompt.find(tokens)):
            return columns
    longest = max(len(prompt.content) for prompt in prompts.values())
    why = f" It has {len(tokens)} tokens, and no prompt more than {longest}." if len(tokens) > longest else ""
    texts = " and ".join(f"{name} {prompt.text!r}" for name, prompt in prompts.items())
    raise ValueError(
        f"{socket}: expected words as they stand in {' or '.join(prompts)}, got {phrase!r}, which is not in {texts}.{why} "
        "Separate several words or groups of words by commas."
    )


def _words(tokenize: Tokenize, phrase: str) -> tuple[Hashable, ...]:
    prompt = tokenize(phrase)
    return prompt.of(prompt.content)
