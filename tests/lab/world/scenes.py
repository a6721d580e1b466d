"""What a picture of the world shows, and which scenes are kept from training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from lab.world.backgrounds import BACKGROUNDS, HORIZON, PAN, SIZE, TILT
from lab.world.kinds import COLOURS, KINDS
from lab.world.styles import STYLES

NAMES, PALETTE, PLACES = tuple(KINDS), tuple(COLOURS), tuple(BACKGROUNDS)
BOUNDS = {name: kind.bounds for name, kind in KINDS.items()}
RADIUS = (19.0, 30.0)  # pixels a unit of the outlines, from the horizon to the nearest
TURN = 14.0  # degrees to either side
MARGIN = 3.0  # pixels that stay free at the sides of a picture
OVERLAP = 0.12  # of their widths, by which a nearer thing may stand in front of another


@dataclass(frozen=True)
class Thing:
    """(x, y): the outlines' origin in pixels; radius: pixels a unit; lift: pixels above the ground."""

    kind: str
    colour: str
    x: float
    y: float
    radius: float
    turn: float = 0.0
    mirrored: bool = False
    lift: float = 0.0

    @property
    def ground(self) -> float:
        """Where it would touch the ground."""
        return self.y + BOUNDS[self.kind][3] * self.radius + self.lift


@dataclass(frozen=True)
class Scene:
    """`things` from the farthest to the nearest; `pan` and `tilt` choose a part of the wide background."""

    things: tuple[Thing, ...]
    background: str
    style: str
    pan: int = 24
    tilt: int = 8
    lit_from_left: bool = False


def held_out(scene: Scene) -> bool:
    """Whether no training draw has this scene: it holds a colour, a style or a pair of kinds that is kept back."""
    kinds = [NAMES.index(thing.kind) for thing in scene.things]
    coloured = any(
        thing.colour == PALETTE[(3 * kind + 1) % len(PALETTE)] for kind, thing in zip(kinds, scene.things, strict=True)
    )
    # Every second kind is kept from one style.
    styled = any(kind % 2 == 0 and STYLES.index(scene.style) == kind // 2 % len(STYLES) for kind in kinds)
    paired = len(kinds) == 2 and sum(kinds) % 11 == 3
    return coloured or styled or paired


def sample_scenes(count: int, seed: int | Sequence[int], *, split: str = "train", things: int = 2) -> list[Scene]:
    """`count` random scenes of the split "train" or "held_out", each of that many things (1 or 2)."""
    chance = np.random.default_rng(seed)
    scenes: list[Scene] = []
    while len(scenes) < count:
        scene = _sample(chance, things)
        if scene is not None and held_out(scene) == (split == "held_out"):
            scenes.append(scene)
    return scenes


def _sample(chance: np.random.Generator, count: int) -> Scene | None:
    kinds = [NAMES[i] for i in chance.integers(0, len(NAMES), count)]
    colours = [PALETTE[i] for i in chance.permutation(len(PALETTE))[:count]]
    tilt = int(chance.integers(0, TILT + 1))
    placed = [_placed(kind, colour, HORIZON - tilt, chance) for kind, colour in zip(kinds, colours, strict=True)]
    lefts, rights = zip(*(_sides(thing) for thing in placed), strict=True)
    if count == 1:
        centres = [chance.uniform(MARGIN - lefts[0], SIZE - MARGIN - rights[0])]
    else:
        least = (rights[0] - lefts[1]) * (1 - OVERLAP)
        first, last = MARGIN - lefts[0], SIZE - MARGIN - rights[1]
        spare = last - first - least
        if spare < 0:
            return None
        a, b = np.sort(chance.uniform(0, spare, 2))
        centres = [first + a, first + a + least + (b - a)]
    placed = [
        Thing(t.kind, t.colour, float(x), t.y, t.radius, t.turn, t.mirrored, t.lift)
        for t, x in zip(placed, centres, strict=True)
    ]
    return Scene(
        things=tuple(sorted(placed, key=lambda thing: thing.ground)),
        background=PLACES[chance.integers(0, len(PLACES))],
        style=STYLES[chance.integers(0, len(STYLES))],
        pan=int(chance.integers(0, PAN + 1)),
        tilt=tilt,
        lit_from_left=bool(chance.random() < 0.5),
    )


def _placed(kind: str, colour: str, horizon: float, chance: np.random.Generator) -> Thing:
    """At x = 0. What stands nearer is larger and lower."""
    near = chance.uniform(0, 1)
    radius = (RADIUS[0] + (RADIUS[1] - RADIUS[0]) * near) * chance.uniform(0.94, 1.06)
    _, top, _, bottom = BOUNDS[kind]
    ground = horizon + 18 + near * (SIZE - 5 - horizon - 18)
    lift = KINDS[kind].lift * radius * chance.uniform(0, 1)
    lift = max(min(lift, ground - radius * (bottom - top) - MARGIN), 0.0)
    return Thing(
        kind=kind,
        colour=colour,
        x=0.0,
        y=ground - lift - bottom * radius,
        radius=radius,
        turn=chance.uniform(-TURN, TURN),
        mirrored=bool(chance.random() < 0.5),
        lift=lift,
    )


def _sides(thing: Thing) -> tuple[float, float]:
    """How far it reaches to the left (negative) and to the right of its x, not turned."""
    left, _, right, _ = BOUNDS[thing.kind]
    left, right = (-right, -left) if thing.mirrored else (left, right)
    return left * thing.radius, right * thing.radius
