"""Captions in several wordings, with a record of what they leave unsaid."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
from lab.world.scenes import Scene

PLACES = {
    "meadow": "in a meadow",
    "beach": "on a beach",
    "night": "at night",
    "room": "in a room",
    "snow": "in the snow",
    "city": "in a city",
}
MEDIA = {"flat": "flat drawing", "pencil": "pencil drawing", "mosaic": "mosaic", "neon": "neon sign"}
ATTRIBUTES = (
    "first colour",
    "second colour",
    "side",
    "background",
    "style",
)  # of the things from the farthest to the nearest
SAID_OFTEN = 0.8  # how often a caption of the training says an attribute


@dataclass(frozen=True)
class Caption:
    """What kinds of things there are is always said; `said` holds those of ATTRIBUTES that are."""

    text: str
    said: frozenset[str]


def phrase(scene: Scene, number: int, colour: bool = True) -> str:
    """One of the things: "a red cat"."""
    thing = scene.things[number]
    words = f"{thing.colour} {thing.kind}" if colour else thing.kind
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def caption(scene: Scene, said: Collection[str] = ATTRIBUTES, *, order: int = 0, wording: int = 0) -> Caption:
    """`order` 1 names the nearer thing first; `wording` 0 begins with the things, 1 with the style, 2 with the place."""
    if len({thing.kind for thing in scene.things}) < len(scene.things):
        said = {*said, *ATTRIBUTES[:2]}  # two of a kind are told apart
    told = {attribute for attribute in said if len(scene.things) == 2 or attribute not in ("second colour", "side")}
    phrases = [
        phrase(scene, k, colour)
        for k, colour in zip(range(len(scene.things)), ("first colour" in told, "second colour" in told), strict=False)
    ]
    words = phrases[0]
    if len(phrases) == 2:
        first, second = (1, 0) if order else (0, 1)
        left = scene.things[first].x < scene.things[second].x
        joined = f"to the {'left' if left else 'right'} of" if "side" in told else ("and", "next to", "and")[wording]
        words = f"{phrases[first]} {joined} {phrases[second]}"
    where = PLACES[scene.background] if "background" in told else ""
    medium = MEDIA[scene.style] if "style" in told else ""
    if wording == 1 and medium:
        text = f"a {medium} of {words} {where}"
    elif wording == 2 and where:
        text = f"{where}, {words}{', ' + medium if medium else ''}"
    else:
        text = f"{words} {where}".rstrip() + (f", {medium}" if medium else "")
    return Caption(text.strip(), frozenset(told))


def random_caption(scene: Scene, chance: np.random.Generator) -> Caption:
    """As a network is trained on: any wording, each attribute unsaid now and then, the side more often than not."""
    often = [0.4 if attribute == "side" else SAID_OFTEN for attribute in ATTRIBUTES]
    said = [name for name, share in zip(ATTRIBUTES, often, strict=True) if chance.random() < share]
    return caption(scene, said, order=int(chance.integers(2)), wording=int(chance.integers(3)))
