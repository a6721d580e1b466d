"""A source and a target prompt as one edit: their alignment, the weights of words and the words that may change pixels."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from ..diffusion.conditioning import Conditioning
from ..text.prompt_tokens import PromptTokens
from .alignment import Alignment, auto_alignment, refine_alignment, replace_alignment

ALIGNMENTS = {"auto": auto_alignment, "replace": replace_alignment, "refine": refine_alignment}
MODES = tuple(ALIGNMENTS)
PROMPT = "palimpsest.prompt"  # in the dict of a CONDITIONING entry: the text it encodes

Tokenize = Callable[[str], PromptTokens]


@dataclass(frozen=True)
class PromptEdit:
    """What prompt-to-prompt does to a target prompt's cross-attention.

    equalizer: [target columns], the factor of each.
    blend, kept: columns of the words whose place may change, and of those whose place must not, in each prompt.
    windows: columns of target words, and the shares of the steps between which they are edited.
    encoded_source: the source prompt as CONDITIONING, where it has been encoded.
    """

    source: PromptTokens = field(repr=False)
    target: PromptTokens = field(repr=False)
    mode: str
    alignment: Alignment = field(repr=False)
    equalizer: torch.Tensor = field(repr=False)
    source_blend: tuple[int, ...]
    target_blend: tuple[int, ...]
    source_kept: tuple[int, ...] = ()
    target_kept: tuple[int, ...] = ()
    windows: tuple[tuple[tuple[int, ...], float, float], ...] = ()
    encoded_source: Conditioning = field(default_factory=list, repr=False)

    @property
    def blends(self) -> bool:
        return bool(self.source_blend or self.target_blend)


def prompt_edit(
    tokenize: Tokenize,
    source_text: str,
    target_text: str,
    mode: str,
    reweight: str,
    blend_words: str,
    keep_words: str = "",
    word_windows: str = "",
) -> PromptEdit:
    source, target = (
        tokenize_prompt(tokenize, source_text, "source_text"),
        tokenize_prompt(tokenize, target_text, "target_text"),
    )
    equalizer = torch.ones(len(target.ids))
    for phrase, weight in parse_reweight(reweight):
        equalizer[list(columns_of(tokenize, phrase, "reweight", target_text=target))] = weight
    windows = tuple(
        (columns_of(tokenize, phrase, "word_windows", target_text=target), start, end)
        for phrase, start, end in parse_windows(word_windows)
    )
    source_blend, target_blend = _in_both(tokenize, blend_words, "blend_words", source, target)
    source_kept, target_kept = _in_both(tokenize, keep_words, "keep_words", source, target)
    return PromptEdit(
        source,
        target,
        mode,
        ALIGNMENTS[mode](source, target),
        equalizer,
        source_blend,
        target_blend,
        source_kept,
        target_kept,
        windows,
    )


def _in_both(
    tokenize: Tokenize, text: str, socket: str, source: PromptTokens, target: PromptTokens
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Columns in each prompt of phrases of which each stands in at least one."""
    columns: tuple[set[int], set[int]] = set(), set()
    for phrase in phrases(text):
        columns_of(tokenize, phrase, socket, source_text=source, target_text=target)
        for prompt, found in zip((source, target), columns, strict=True):
            found.update(prompt.find(tokenize(phrase)))
    return tuple(sorted(columns[0])), tuple(sorted(columns[1]))


def tokenize_prompt(tokenize: Tokenize, text: str, socket: str) -> PromptTokens:
    prompt = tokenize(text)
    if not prompt.words:
        raise ValueError(
            f"{socket}: expected a prompt with at least one word, got {text!r}. "
            f"Write what the picture {'should show' if socket == 'target_text' else 'shows'}."
        )
    return prompt


def phrases(text: str) -> list[str]:
    """Words or groups of words between commas, semicolons (also those of Chinese and Japanese) or line ends."""
    return [phrase for part in re.split(r"[,;\n，、；]", text) if (phrase := part.strip())]


def parse_reweight(text: str) -> list[tuple[str, float]]:
    """("fluffy", 2.0), ("red", -1.0) of "fluffy: 2, red: -1"."""
    parsed = []
    for entry in phrases(text):
        words, colon, number = (part.strip() for part in entry.replace("：", ":").rpartition(":"))
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


def parse_windows(text: str) -> list[tuple[str, float, float]]:
    """("fluffy", 0.2, 0.8), ("red", 0.0, 0.4) of "fluffy: 0.2-0.8, red: 0.4"."""
    parsed = []
    for entry in phrases(text):
        form = re.fullmatch(r"(.+)[:：]\s*(?:([\d.]+)\s*-)?\s*([\d.]+)", entry, re.DOTALL)
        try:
            words, start, end = form[1].strip(), float(form[2] or 0.0), float(form[3])
        except (TypeError, ValueError):
            words, start, end = "", 0.0, 0.0
        if not (words and 0.0 <= start <= end <= 1.0):
            raise ValueError(
                f"word_windows: expected words of target_text with shares of the steps between 0 and 1, after a colon, got {entry!r} in "
                f"{text!r}. Write them like 'fluffy: 0.2-0.8, red: 0.4'."
            )
        parsed.append((words, start, end))
    return parsed


def columns_of(tokenize: Tokenize, phrase: str, socket: str, **prompts: PromptTokens) -> tuple[int, ...]:
    """Columns of the phrase in the first of `prompts` (by socket) that has it; ValueError when none does."""
    wanted = tokenize(phrase)
    for prompt in prompts.values():
        if columns := prompt.find(wanted):
            return columns
    tokens, longest = len(wanted.content), max(len(prompt.content) for prompt in prompts.values())
    why = f" It has {tokens} tokens, and no prompt more than {longest}." if tokens > longest else ""
    raise ValueError(not_there(socket, phrase, {name: prompt.text for name, prompt in prompts.items()}, why))


def not_there(socket: str, phrase: str, texts: dict[str, str], why: str = "") -> str:
    """What an artist is told of a phrase that is in none of the texts, by socket."""
    own = " nor ".join(f"{name} {text!r}" for name, text in texts.items())
    return (
        f"{socket}: expected words as they stand in {' or '.join(texts)}, got {phrase!r}, which is {'in neither' if len(texts) > 1 else 'not in'} "
        f"{own}.{why} Write it as it stands there, or remove it. Separate several words or groups of words by commas."
    )
