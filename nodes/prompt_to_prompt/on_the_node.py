"""What the browser draws on the nodes: where a prompt's words are in a picture, and what an edit does to each word."""

from __future__ import annotations

import base64

import torch

from ..text.prompt_tokens import PromptTokens
from .prompt_edit import PromptEdit


def word_heat(prompt: PromptTokens, maps: torch.Tensor, picture: str | None, chosen_by: str) -> dict[str, list[dict]]:
    """The map of each word [words, h, w], in multiples of its mean, as bytes up to its peak. Read by js/word_map.mjs.

    chosen_by: the socket that says which words the mask covers, `words` or `edit`.
    """
    peaks = maps.amax((1, 2)).clamp_min(1e-12)
    shades = (maps / peaks[:, None, None] * 255).round().byte()
    words = [
        {"word": word, "peak": round(float(peak), 3), "map": base64.b64encode(shade.numpy().tobytes()).decode()}
        for word, peak, shade in zip(prompt.spelled_words, peaks, shades, strict=True)
    ]
    height, width = maps.shape[-2:]
    drawn = {"picture": picture, "width": width, "height": height, "chosen_by": chosen_by, "words": words}
    return {"palimpsest_words": [drawn]}


def described_edit(edit: PromptEdit) -> dict[str, list[dict]]:
    """The words of both prompts in groups that follow each other, in reading order. Read by js/edit_words.mjs."""
    return {"palimpsest_edit": [{"mode": edit.mode, "groups": [_group(edit, *words) for words in _followers(edit)]}]}


def _group(edit: PromptEdit, old: list[int], new: list[int]) -> dict:
    source, target = (
        [prompt.spelled_words[i] for i in words] for prompt, words in ((edit.source, old), (edit.target, new))
    )
    if source and target:
        kind = "kept" if source == target else "exchanged"
    else:
        kind = "added" if target else "gone"
    columns = [column for i in new for column in edit.target.words[i]]
    weights = edit.equalizer[columns].unique().tolist()
    blends = {column for i in old for column in edit.source.words[i]} & {*edit.source_blend} or {*columns} & {
        *edit.target_blend
    }
    return {
        "kind": kind,
        "source": source,
        "target": target,
        "weight": weights[0] if len(weights) == 1 else 1.0,
        "blends": bool(blends),
    }


def _followers(edit: PromptEdit) -> list[tuple[list[int], list[int]]]:
    """Numbers of source words and of the target words that follow them; words alone on their side stand alone."""
    word_at = {column: i for i, columns in enumerate(edit.source.words) for column in columns}
    sources_of: dict[int, set[int]] = {}
    for old, new in edit.alignment.mapper.nonzero().tolist():
        if old in word_at:
            sources_of.setdefault(new, set()).add(word_at[old])
    follows = [set().union(*(sources_of.get(column, ()) for column in new)) for new in edit.target.words]
    groups: list[tuple[list[int], list[int]]] = []
    at = 0  # source words before this one are in a group
    for number, sources in enumerate(follows):
        if not sources:
            groups.append(([], [number]))
            continue
        if max(sources) < at:
            next(group for group in groups if max(sources) in group[0])[1].append(number)
            continue
        first = max(min(sources), at)
        groups += [([i], []) for i in range(at, first)]
        groups.append((list(range(first, max(sources) + 1)), [number]))
        at = max(sources) + 1
    return groups + [([i], []) for i in range(at, len(edit.source.words))]
