"""Markers in a prompt, each after the noun that a reference picture belongs to."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from typing import TYPE_CHECKING

import comfy.sd1_clip

if TYPE_CHECKING:
    from comfy.sd import CLIP

MARKERS = ("<|image|>", "<subject>")  # the published one, and one without the bars of {dynamic|prompts}
MARKER = re.compile("|".join(re.escape(marker) for marker in MARKERS))
EXAMPLE = f"'a man {MARKERS[0]} and a dog {MARKERS[0]} on a beach'"


@dataclass(frozen=True)
class MarkedPrompt:
    """text: the prompt without its markers, but with its weights; nouns: the noun before each marker.

    slots: the index of each noun's last token among the tokens of the text, without start, end and padding.
    """

    text: str
    nouns: tuple[str, ...]
    slots: tuple[int, ...]


def parse(clip: CLIP, text: str) -> MarkedPrompt:
    """Markers are cut out before the text is tokenised, and separate words like spaces."""
    # The space keeps the words beside the marker apart; tokenisers ignore it.
    cleaned = re.sub(rf"\s*(?:{MARKER.pattern})(?=(\S?))", lambda match: " " if match[1] else "", text)
    nouns: list[str] = []
    slots: list[int] = []
    count, before = 0, ""
    for segment, _ in comfy.sd1_clip.token_weights(comfy.sd1_clip.escape_important(text), 1.0):
        pieces = MARKER.split(comfy.sd1_clip.unescape_important(segment))
        for i, piece in enumerate(pieces):
            if i > 0:
                _require_noun(clip, text, before, count - 1 in slots, len(nouns) + 1)
                nouns.append(before.split()[-1])
                slots.append(count - 1)
            count += _length(clip, piece)
            before += piece if i == 0 else f" {piece}"
    return MarkedPrompt(cleaned, tuple(nouns), tuple(slots))


def own_columns(tokens: dict[str, list[list[tuple]]]) -> list[int]:
    """Columns of the text's own tokens in all chunks joined, without start, end and padding: those with a word id."""
    [chunks] = tokens.values()
    return [i for i, (*_, word) in enumerate(token for chunk in chunks for token in chunk) if word]


def _length(clip: CLIP, text: str) -> int:
    """How many tokens the text has, counted word by word, so that a tokeniser that cuts off long texts cuts none."""
    words = (clip.tokenize(word, return_word_ids=True, disable_weights=True) for word in text.split())
    return sum(len(own_columns(tokens)) for tokens in words)


def _require_noun(clip: CLIP, text: str, before: str, taken: bool, number: int) -> None:
    before = before.rstrip()
    if not before:
        what = "nothing"
    elif taken:
        what = "another marker"
    elif unicodedata.category(before[-1]).startswith("P"):
        what = repr(before[-1])
    elif not _length(clip, before.split()[-1]):
        what = f"{before.split()[-1]!r}, which this clip reads as nothing,"
    else:
        return
    raise ValueError(
        f"text: expected a noun right before each marker, as in {EXAMPLE}, got {what} before marker {number} in {text!r}. Move the "
        "marker to the end of the subject's noun."
    )
