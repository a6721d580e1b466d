"""Which of a source prompt's attention columns a target prompt's columns follow (prompt-to-prompt, 2208.01626).

Columns are the positions of the text encoder's output: one chunk of 77 after another, each with its begin token, words, end
token and padding. Encoders whose columns follow each other are aligned each by itself; columns of T5 and of language models
that belong to no word keep their own attention. `replace_alignment` and `refine_alignment` are the authors' two, with their costs and tie order, but for two
errors that docs/differences.md describes. `auto_alignment` is our own and needs no choice between them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import groupby

import torch

from ..text.prompt_tokens import PromptTokens

GAP, MATCH, MISMATCH = 0, 1, -1
Pair = tuple[int, int, float]  # columns of source and target, and how much of the one's attention the other takes


@dataclass(frozen=True)
class Alignment:
    """edit(A_src, A_tgt) = (A_src @ mapper) * aligned + A_tgt * (1 - aligned), for maps [..., columns].

    mapper: [source columns, target columns]; aligned: [target columns], 1 where the source has a counterpart, else 0.
    """

    mapper: torch.Tensor
    aligned: torch.Tensor


def replace_alignment(source: PromptTokens, target: PromptTokens) -> Alignment:
    """Word i of the target follows word i of the source; both have the same number of words."""
    if len(source.words) != len(target.words):
        raise ValueError(
            f"mode: expected as many words in both prompts for replace, got {len(source.words)} in source_text and "
            f"{len(target.words)} in target_text. Use refine, which may add and remove words, or auto."
        )
    return _word_by_word(source, target, [(k, k) for k in range(len(source.words))])


def auto_alignment(source: PromptTokens, target: PromptTokens) -> Alignment:
    """Exchanged, added and removed words at once, by a comparison of the two lists of words.

    Runs of equal words follow each other. A run of words in the place of as many others follows them word by word, as in
    replace. All other words of the target are new. Punctuation around a word does not make it another word.
    """
    old, new = ([_bare(word) for word in prompt.spelled_words] for prompt in (source, target))
    pairs: list[tuple[int, int]] = []
    for _, i, i_end, j, j_end in SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        if i_end - i == j_end - j:
            pairs += zip(range(i, i_end), range(j, j_end), strict=True)
    return _word_by_word(source, target, pairs)


def refine_alignment(source: PromptTokens, target: PromptTokens) -> Alignment:
    """Each word token of the target follows the source token that a global alignment finds for it, if any."""

    def pairs(source: PromptTokens, target: PromptTokens) -> list[Pair]:
        old, new = source.content, target.content
        return [(old[i], new[j], 1.0) for i, j in global_alignment(source.of(old), target.of(new))]

    return _alignment(source, target, pairs)


def global_alignment(x: Sequence[Hashable], y: Sequence[Hashable]) -> list[tuple[int, int]]:
    """Needleman-Wunsch: the pairs (i, j) of x[i] aligned with y[j]. Ties go left (skip in y), then up (skip in x)."""
    score = [[j * GAP for j in range(len(y) + 1)]]
    for i in range(len(x)):
        row = [(i + 1) * GAP]
        for j in range(len(y)):
            diagonal = score[i][j] + (MATCH if x[i] == y[j] else MISMATCH)
            row.append(max(row[j] + GAP, score[i][j + 1] + GAP, diagonal))
        score.append(row)
    pairs = []
    i, j = len(x), len(y)
    while i and j:
        if score[i][j] == score[i][j - 1] + GAP:
            j -= 1
        elif score[i][j] == score[i - 1][j] + GAP:
            i -= 1
        else:
            i, j = i - 1, j - 1
            pairs.append((i, j))
    return pairs[::-1]


def _bare(word: str) -> str:
    return re.sub(r"^\W+|\W+$", "", word) or word


def _word_by_word(source: PromptTokens, target: PromptTokens, words: list[tuple[int, int]]) -> Alignment:
    """Columns of n source tokens spread evenly over m target tokens; tokens that both words begin or end with stay paired."""

    def pairs(source: PromptTokens, target: PromptTokens) -> list[Pair]:
        found: list[Pair] = []
        for i, j in words:
            old, new = source.words[i], target.words[j]
            if len(old) == len(new):
                found += [(a, b, 1.0) for a, b in zip(old, new, strict=True)]
                continue
            first = _common_start(source.of(old), target.of(new))
            shorter = min(len(old), len(new)) - first
            last = min(_common_start(source.of(old)[::-1], target.of(new)[::-1]), shorter)
            found += [(old[k], new[k], 1.0) for k in (*range(first), *range(-last, 0))]
            middle = new[first : len(new) - last]
            found += [(a, b, 1.0 / len(middle)) for a in old[first : len(old) - last] for b in middle]
        return found

    return _alignment(source, target, pairs)


def _common_start(a: Sequence[Hashable], b: Sequence[Hashable]) -> int:
    return next((k for k, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _alignment(
    source: PromptTokens, target: PromptTokens, pairs: Callable[[PromptTokens, PromptTokens], list[Pair]]
) -> Alignment:
    """pairs: of the words' columns in one encoder."""
    mapper = torch.zeros(len(source.ids), len(target.ids))
    aligned = torch.zeros(len(target.ids))
    for (first, old), (own_first, new) in zip(source.encodings, target.encodings, strict=True):
        for i, j, weight in [*pairs(old, new), *_special_pairs(old, new)]:
            mapper[first + i, own_first + j] = weight
            aligned[own_first + j] = 1.0
    return Alignment(mapper, aligned)


def _special_pairs(source: PromptTokens, target: PromptTokens) -> list[Pair]:
    """Begin follows begin, end follows end; padding keeps its column, or takes the first that is padding there."""
    pairs: list[Pair] = []
    if source.letters is not None:
        return pairs
    for (begin, end, padding), (own_begin, own_end, own_padding) in zip(
        _specials(source), _specials(target), strict=False
    ):
        pairs += [(begin, own_begin, 1.0), (end, own_end, 1.0)]
        if padding:
            pairs += [(max(column, padding[0]), column, 1.0) for column in own_padding]
    return pairs


def _specials(prompt: PromptTokens) -> list[tuple[int, int, Sequence[int]]]:
    """The begin column, the end column and the columns of padding of each chunk."""
    chunks = {
        number: list(columns) for number, columns in groupby(prompt.content, lambda column: column // prompt.chunk)
    }
    found = []
    for begin in range(0, len(prompt.ids), prompt.chunk):
        end = max(chunks.get(begin // prompt.chunk, [begin])) + 1
        found.append((begin, end, range(end + 1, begin + prompt.chunk)))
    return found
