"""A tokenised prompt as columns: the positions of the text encoder's output that a model's attention reads."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

# CLIP's vocabulary writes every byte of a token's UTF-8 as one printable character (GPT-2's table) and ends words with this.
WORD_END = "</w>"
_PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_OTHERS = [byte for byte in range(0x100) if byte not in _PRINTABLE]
BYTES = {chr(byte): byte for byte in _PRINTABLE} | {chr(0x100 + i): byte for i, byte in enumerate(_OTHERS)}

Letters = tuple[tuple[str, tuple[int, ...]], ...]

WITHOUT_SPACES = ("CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR")  # scripts, by their Unicode names


@dataclass(frozen=True)
class PromptTokens:
    """A tokenised prompt.

    ids: the token of each column as the encoder's vocabulary writes it, or a name for a textual inversion's vector.
    words: the columns of each word, in order; words are what stands between spaces. All other columns are special tokens.
    spelled_words: the words as one reads them, in lower case, without weights and escapes.
    chunk: columns in a chunk.
    letters: each word's characters with the columns that they stand in; None where `ids` spell them, as CLIP's do.
    parts: of several encoders whose columns follow each other; a word has columns in each. Empty for one encoder.
    """

    text: str
    ids: tuple[str, ...]
    words: tuple[tuple[int, ...], ...]
    chunk: int
    spelled_words: tuple[str, ...]
    letters: tuple[Letters, ...] | None = None
    parts: tuple[PromptTokens, ...] = ()

    @classmethod
    def joined(cls, parts: Sequence[PromptTokens]) -> PromptTokens:
        """Encodings of one text, one behind the other, each with the same words."""
        if len(parts) == 1:
            return parts[0]
        starts = _starts(parts)
        words = tuple(
            tuple(start + column for start, columns in zip(starts, word, strict=True) for column in columns)
            for word in zip(*(part.words for part in parts), strict=True)
        )
        ids = tuple(token for part in parts for token in part.ids)
        return cls(parts[0].text, ids, words, len(ids), parts[0].spelled_words, None, tuple(parts))

    @property
    def encodings(self) -> list[tuple[int, PromptTokens]]:
        """The first column of each part, and the part."""
        parts = self.parts or (self,)
        return list(zip(_starts(parts), parts, strict=True))

    @property
    def content(self) -> tuple[int, ...]:
        return tuple(column for word in self.words for column in word)

    def of(self, columns: Sequence[int]) -> tuple[str, ...]:
        return tuple(self.ids[column] for column in columns)

    def find(self, phrase: PromptTokens) -> tuple[int, ...]:
        """The columns of every place where the phrase stands, also between brackets, quotes or other punctuation.

        A token that the phrase shares with its surroundings, such as `),`, is one of them. Empty when there is no such place.
        """
        columns: set[int] = set()
        if self.parts:
            for (start, part), wanted in zip(self.encodings, phrase.parts, strict=True):
                columns.update(start + column for column in part.find(wanted))
            return tuple(sorted(columns))
        own, wanted = self._spelling, [character for character, _ in phrase._spelling]
        for first in range(len(own) - len(wanted) + 1 if wanted else 0):
            last = first + len(wanted)
            if [character for character, _ in own[first:last]] == wanted and self._cuts(first) and self._cuts(last):
                columns.update(column for _, columns in own[first:last] for column in columns)
        return tuple(sorted(columns))

    @cached_property
    def _spelling(self) -> list[tuple[str, tuple[int, ...]]]:
        """Each character with the columns that it stands in; between words a space, which has none."""
        spelling: list[tuple[str, tuple[int, ...]]] = []
        for letters in self.letters or map(self._spell, self.words):
            spelling += [(" ", ()), *letters]
        return spelling[1:]

    def _spell(self, word: Sequence[int]) -> Iterator[tuple[str, tuple[int, ...]]]:
        """A token may be a part of a character: an emoji has up to four bytes. A vector counts as one character."""
        character, columns = b"", ()
        for column in word:
            symbols = self.ids[column].removesuffix(WORD_END)
            if not all(symbol in BYTES for symbol in symbols):
                yield symbols, (column,)
                continue
            for symbol in symbols:
                character += bytes([BYTES[symbol]])
                columns = (*columns, column) if column not in columns else columns
                try:
                    yield character.decode(), columns
                except UnicodeDecodeError:
                    continue
                character, columns = b"", ()

    def _cuts(self, place: int) -> bool:
        """Whether a phrase may begin or end in front of this character: not inside a word or a number."""
        if place in (0, len(self._spelling)):
            return True
        (before, _), (after, _) = self._spelling[place - 1], self._spelling[place]
        return cuts(before, after)


def cuts(before: str, after: str) -> bool:
    """Whether a phrase may begin or end between these two characters of a text."""
    if unicodedata.category(after[0]).startswith("M") or "\N{ZERO WIDTH JOINER}" in (before, after):
        return False
    letters = before.isalpha() and after.isalpha()
    spaced = not any(unicodedata.name(letter[0], "").startswith(WITHOUT_SPACES) for letter in (before, after))
    return not ((letters and spaced) or (before.isdigit() and after.isdigit()))


def _starts(parts: Sequence[PromptTokens]) -> list[int]:
    return [0, *accumulate(len(part.ids) for part in parts[:-1])]
