"""docs/world.webp: what the world looks like."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
from lab.evidence.sheet import Sheet
from lab.world.backgrounds import BACKGROUNDS
from lab.world.captions import random_caption
from lab.world.kinds import COLOURS, KINDS
from lab.world.render import render
from lab.world.scenes import Scene, sample_scenes
from lab.world.styles import STYLES

COLUMNS, ROWS = 8, 5
SEED = 12


def write(docs: Path) -> None:
    chance = np.random.default_rng(SEED)
    scenes = shown()
    pictures = render(scenes).pictures
    sheet = Sheet(
        f"The toy world: {len(KINDS)} kinds of things in {len(COLOURS)} colours, {len(BACKGROUNDS)} backgrounds, {len(STYLES)} styles, "
        "and captions that leave some of it unsaid"
    )
    cells = [(picture, random_caption(scene, chance).text) for picture, scene in zip(pictures, scenes, strict=True)]
    for row in range(ROWS):
        sheet.add(cells[row * COLUMNS : (row + 1) * COLUMNS])
    sheet.save(docs / "world.webp")


def shown() -> list[Scene]:
    """The first that come of each style and background in turn."""
    wanted = itertools.cycle(itertools.product(range(len(BACKGROUNDS)), range(len(STYLES))))
    left = sample_scenes(40 * ROWS * COLUMNS, SEED)
    chosen = []
    for number, (background, style) in zip(range(ROWS * COLUMNS), wanted, strict=False):
        # Neighbours differ in both.
        names = list(BACKGROUNDS)[(background + number) % len(BACKGROUNDS)], STYLES[style]
        chosen.append(left.pop(next(i for i, scene in enumerate(left) if (scene.background, scene.style) == names)))
    return chosen
