"""A tokenised prompt as columns: the positions of the text encoder's output that a model's cross-attention reads."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class PromptTokens:
    """A tokenised prompt.

    ids: the token of each column, or anything hashable that stands for a textual inversion's vector.
    words: the columns of each word of the text, in order; all other columns are special tokens.
    chunk: columns in a chunk.
    spelled_words: the words as one reads them, without weights.
    """

    text: str
    ids: tuple[Hashable, ...]
    words: tuple[tuple[int, ...], ...]
    chunk: int
    spelled_words: tuple[str, ...] = ()

    @property
    def content(self) -> tuple[int, ...]:
        return tuple(column for word in self.words for column in word)

    def of(self, columns: Sequence[int]) -> tuple[Hashable, ...]:
        return tuple(self.ids[column] for column in columns)

    def find(self, phrase: Sequence[Hashable]) -> tuple[int, ...]:
        """The columns of every place where these tokens stand one after another; empty when there is none."""
        content, n = self.content, len(phrase)
        found = [
            content[i : i + n] for i in range(len(content) - n + 1) if self.of(content[i : i + n]) == tuple(phrase)
        ]
        return tuple(sorted({column for columns in found for column in columns}))
