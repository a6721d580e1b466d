"""T5 and language models as text encoders: which columns of the encoding belong to which words of the text.

Their tokens are compared with the text character by character, because each vocabulary treats spaces and rare characters in its own
way. Language models read the text inside a template, which is found by encoding a mark in its place.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from difflib import SequenceMatcher
from typing import TYPE_CHECKING

from .columns import VECTOR, Chunks, content_of
from .prompt_tokens import BYTES, PromptTokens

if TYPE_CHECKING:
    from comfy.sd import CLIP

MARK = "zxqj"  # letters that no template has
UNKNOWN, OBJECT = "\N{REPLACEMENT CHARACTER}", "\N{OBJECT REPLACEMENT CHARACTER}"
TURN, USER, NEW_LINE = 151644, 872, 198  # tokens of Qwen's vocabulary: <|im_start|>, user, line feed
Letter = tuple[str, tuple[int, ...]]  # a character, and the columns that it stands in


def reads_weights(clip: CLIP, name: str) -> bool:
    """Whether (word:1.2) is a weight to this encoder, and not text."""
    chunks = clip.tokenize(f"({MARK}:1.2)", return_word_ids=True)[name]
    return not any("(" in token for token, _ in content_of(clip, name, chunks))


def other_prompt(clip: CLIP, name: str, text: str, words: Sequence[str]) -> PromptTokens:
    """words: of the text, as one reads them. A word that the encoder does not see has no columns."""
    chunks = clip.tokenize(text, return_word_ids=True)[name]
    content = content_of(clip, name, chunks)
    pieces = any("\u2581" in token for token, _ in _content(clip, name, "a a"))
    before, _, behind = _text(_letters(_content(clip, name, MARK), pieces)).partition(MARK)
    cut = _template_end(chunks) if name == "qwen25_7b" else 0
    letters = [(letter, column - cut) for letter, column in _letters(content, pieces)]
    if _text(letters).startswith(before) and _text(letters).endswith(behind):  # a text may bring a template of its own
        letters = letters[len(before) : len(letters) - len(behind)]
    ids = [""] * sum(map(len, chunks))
    for token, column in content:
        if column is not None:
            ids[column] = token
    spelled = [_plain(word) for word in words]
    found = _along(letters, " ".join(spelled))
    by_word, columns, taken = [], [], set()
    for word in spelled:
        own = [(letter, tuple(sorted(found.pop(0) - taken))) for letter in word]
        columns.append(tuple(sorted({column for _, places in own for column in places})))
        taken.update(columns[-1])
        by_word.append(tuple(own))
        del found[:1]  # the space behind it
    ids = tuple(ids[cut:])
    return PromptTokens(text, ids, tuple(columns), len(ids), tuple(words), tuple(by_word))


def _content(clip: CLIP, name: str, text: str) -> list[tuple[str, int | None]]:
    return content_of(clip, name, clip.tokenize(text, return_word_ids=True)[name])


def _text(letters: Iterable[tuple[str, int]]) -> str:
    return "".join(letter for letter, _ in letters)


def _template_end(chunks: Chunks) -> int:
    """Columns that Qwen-Image's encoder cuts off: up to the second turn of its template and the name of its speaker."""
    tokens = [token for token, *_ in chunks[0]]
    turns = [place for place, token in enumerate(tokens) if token is TURN or token == TURN][:2]
    end = turns[-1] if turns else len(tokens) - 1
    return end + 3 if len(tokens) > end + 3 and tokens[end + 1 : end + 3] == [USER, NEW_LINE] else end


def _letters(content: Sequence[tuple[str, int | None]], pieces: bool) -> Iterator[tuple[str, int]]:
    """Characters of tokens. pieces: of SentencePiece, else of a vocabulary of bytes."""
    character, columns = b"", []
    for token, column in content:
        if column is None:
            continue
        for byte in _bytes(token, pieces):
            character, columns = character + bytes([byte]), [*columns, column]
            try:
                letter = character.decode()
            except UnicodeDecodeError as error:
                if error.reason == "unexpected end of data":
                    continue
                letter = UNKNOWN
            yield from ((part, columns[0]) for part in _plain(letter))
            # A character of several tokens counts for each of them.
            yield from ((UNKNOWN, other) for other in dict.fromkeys(columns[1:]) if other != columns[0])
            character, columns = b"", []


def _bytes(token: str, pieces: bool) -> bytes:
    if token.startswith(VECTOR):
        return OBJECT.encode()
    if token == "<unk>":
        return UNKNOWN.encode()
    if pieces:
        byte = re.fullmatch(r"<0x([0-9A-F]{2})>", token)
        return bytes([int(byte[1], 16)]) if byte else token.replace("\u2581", " ").encode()
    return bytes(BYTES[symbol] for symbol in token) if all(symbol in BYTES for symbol in token) else token.encode()


def _plain(text: str) -> str:
    """As vocabularies write rare forms of letters."""
    return re.sub(r"\s", " ", unicodedata.normalize("NFKC", text).lower())


def _along(letters: Sequence[tuple[str, int]], wanted: str) -> list[set[int]]:
    """The columns of each character of `wanted`; where the letters differ, of those that stand in its place."""
    found: list[set[int]] = [set() for _ in wanted]
    for tag, i, i_end, j, j_end in SequenceMatcher(None, _text(letters), wanted, autojunk=False).get_opcodes():
        if tag == "delete" and wanted:
            j, j_end = max(j - 1, 0), max(j, 1)
        n, m = i_end - i, j_end - j
        for k in range(max(n, m) if n and m else 0):
            letter, column = letters[i + k * n // max(n, m)]
            if letter != " ":
                found[j + k * m // max(n, m)].add(column)
    return found
