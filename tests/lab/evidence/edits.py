"""Scenes with one thing about them changed: what a picture shows, what it should show, and the captions that say so."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import cycle, islice

import numpy as np
from lab.world.captions import MEDIA, caption
from lab.world.judge import Reading
from lab.world.kinds import COLOURS, KINDS
from lab.world.scenes import BOUNDS, Scene, Thing, sample_scenes
from lab.world.styles import STYLES

# Not which thing is to the left: the picture's layout shall come from the source.
SAID = ("first colour", "second colour", "background", "style")


@dataclass(frozen=True)
class Edit:
    change: str  # one of CHANGES
    source: Scene
    target: Scene
    number: int | None  # of the thing that is changed, from the farthest on; None if the whole picture is
    source_text: str
    target_text: str
    words: str  # what is changed, for people

    @property
    def other(self) -> int:
        """The thing that is not changed."""
        return 1 - self.changed

    @property
    def changed(self) -> int:
        if self.number is None:
            raise ValueError(f"{self.words}: no thing of its own is changed")
        return self.number

    @property
    def phrases(self) -> tuple[str, str]:
        """The thing that is changed, in the source's words and in the target's."""
        texts = (self.source, self.source_text), (self.target, self.target_text)
        return tuple(phrase_in(text, scene.things[self.changed]) for scene, text in texts)

    def is_done(self, reading: Reading) -> bool:
        """Whether the picture shows what the edit asks for; the rest of it may be anything."""
        if self.number is None:
            return reading.style == self.target.style
        seen = [(s.thing.kind, s.thing.colour) for s in reading.things]
        thing = self.target.things[self.number]
        if self.change == "weaken":  # any other colour
            return any(kind == thing.kind and colour != thing.colour for kind, colour in seen)
        return (thing.kind, thing.colour) in seen


def phrase_in(text: str, thing: Thing) -> str:
    """ "red cat", or "cat" where the text does not say its colour."""
    whole = f"{thing.colour} {thing.kind}"
    return whole if whole in text else thing.kind


def said(scene: Scene, without: Sequence[str] = ()) -> str:
    return caption(scene, [part for part in SAID if part not in without]).text


def recoloured(scene: Scene, number: int, chance: np.random.Generator) -> Edit:
    target = with_thing(scene, number, colour=_another(tuple(COLOURS), _colours(scene), chance))
    words = f"{scene.things[number].colour} to {target.things[number].colour} {scene.things[number].kind}"
    return Edit("colour", scene, target, number, said(scene), said(target), words)


def swapped(scene: Scene, number: int, chance: np.random.Generator) -> Edit:
    kinds = {thing.kind for thing in scene.things}
    target = with_thing(scene, number, kind=_another(tuple(KINDS), kinds, chance))
    words = f"{scene.things[number].kind} to {target.things[number].kind}"
    return Edit("kind", scene, target, number, said(scene), said(target), words)


def added(scene: Scene, number: int, chance: np.random.Generator) -> Edit:
    """A colour that the source's caption does not say."""
    edit = recoloured(scene, number, chance)
    unsaid = ("first colour", "second colour")[number]
    words = f"{edit.target.things[number].colour} before {scene.things[number].kind}"
    return replace(edit, change="add", source_text=said(scene, [unsaid]), words=words)


def weakened(scene: Scene, number: int, chance: np.random.Generator) -> Edit:
    """The same caption, whose colour of a thing shall count less or be pushed away."""
    words = f"less {scene.things[number].colour} of the {scene.things[number].kind}"
    return Edit("weaken", scene, scene, number, said(scene), said(scene), words)


def restyled(scene: Scene, number: int, chance: np.random.Generator) -> Edit:
    target = replace(scene, style=_another(STYLES, {scene.style}, chance))
    words = f"{MEDIA[scene.style]} to {MEDIA[target.style]}"
    return Edit("style", scene, target, None, said(scene), said(target), words)


CHANGES: dict[str, Callable[[Scene, int, np.random.Generator], Edit]] = {
    "style": restyled,
    "colour": recoloured,
    "kind": swapped,
    "add": added,
    "weaken": weakened,
}


def held_out_edits(count: int, seed: int, changes: Sequence[str]) -> list[Edit]:
    """Of `count` held-out scenes of two kinds of things, with the changes in turn, of one thing and the other."""
    chance = np.random.default_rng((seed, 1))
    scenes = [s for s in sample_scenes(2 * count + 8, seed, split="held_out") if len({t.kind for t in s.things}) == 2]
    numbers = [int(chance.integers(2)) for _ in range(count)]
    drawn = zip(scenes[:count], islice(cycle(changes), count), numbers, strict=True)
    return [CHANGES[change](scene, number, chance) for scene, change, number in drawn]


def with_thing(scene: Scene, number: int, *, kind: str | None = None, colour: str | None = None) -> Scene:
    """With one of its things exchanged, on the same ground."""
    things = list(scene.things)
    old = things[number]
    new = replace(old, kind=kind or old.kind, colour=colour or old.colour)
    things[number] = replace(new, y=old.y + (BOUNDS[old.kind][3] - BOUNDS[new.kind][3]) * old.radius)
    return replace(scene, things=tuple(things))


def _colours(scene: Scene) -> set[str]:
    return {thing.colour for thing in scene.things}


def _another(names: Sequence[str], taken: set[str], chance: np.random.Generator) -> str:
    return str(chance.choice([name for name in names if name not in taken]))
