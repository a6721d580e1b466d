"""What can be said against the words of an edit before anything runs, from the texts alone.

The encoders are not at hand yet. A word is refused here only when none of them could find it; the others are left to the run.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from itertools import pairwise

from ..text.prompt_tokens import cuts
from ..text.tokens import spelled_words
from .prompt_edit import not_there, parse_reweight, parse_windows, phrases


def refusal(
    source_text: str | None,
    target_text: str | None,
    reweight: str | None = None,
    blend_words: str | None = None,
    keep_words: str | None = None,
    word_windows: str | None = None,
) -> str | None:
    """Why no run can make an edit of these texts, if that is certain. None stands for what another node gives."""
    target = {"target_text": target_text}
    both = {"source_text": source_text, **target}
    try:
        lists = (
            ("reweight", [words for words, _ in parse_reweight(reweight or "")], target),
            ("word_windows", [words for words, _, _ in parse_windows(word_windows or "")], target),
            ("blend_words", phrases(blend_words or ""), both),
            ("keep_words", phrases(keep_words or ""), both),
        )
    except ValueError as error:
        return str(error)
    for socket, wanted, prompts in lists:
        texts = {name: text for name, text in prompts.items() if text is not None}
        for phrase in wanted if texts == prompts else ():
            if not any(may_stand_in(phrase, text) for text in texts.values()):
                return not_there(socket, phrase, texts)
    return None


def may_stand_in(phrase: str, text: str) -> bool:
    """Whether some encoder could find the phrase in the text.

    Encoders differ in how they read weights, rare forms of letters and punctuation. A textual inversion is known by its vectors.
    """
    if "embedding:" in phrase:
        return True
    return any(
        ours.isspace() or ours in theirs for ours, theirs in zip(_readings(phrase), _readings(text), strict=True)
    )


def _readings(text: str) -> Iterator[str]:
    for read in (text, " ".join(spelled_words(text))):
        for form in ("NFC", "NFKC"):
            yield _words(unicodedata.normalize(form, read).casefold())


def _words(text: str) -> str:
    """The words and numbers, each between spaces, cut where a phrase may begin or end."""
    parted = text[:1] + "".join(f" {after}" if cuts(before, after) else after for before, after in pairwise(text))
    spelled = "".join(character if character.isalnum() else " " for character in parted)
    return f" {' '.join(spelled.split())} "
