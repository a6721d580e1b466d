"""Batches of scenes to train on, each determined by a seed and its number alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from lab.world.captions import Caption, random_caption
from lab.world.render import render
from lab.world.scenes import SIZE, Scene, sample_scenes
from torch import Tensor

ALONE = 0.15  # scenes of one thing
CELLS = 16  # along a picture, of the map that says which thing is where


@dataclass(frozen=True)
class Batch:
    pictures: Tensor  # uint8 [B, SIZE, SIZE, 3]
    masks: Tensor  # uint8 [B, 2, SIZE, SIZE], what is visible of each thing
    captions: list[Caption]
    scenes: list[Scene]


def batch(seed: int, number: int, size: int, split: str = "train") -> Batch:
    chance = np.random.default_rng((seed, number))
    alone = int(chance.binomial(size, ALONE))
    scenes = sample_scenes(alone, (seed, number, 1), split=split, things=1)
    scenes += sample_scenes(size - alone, (seed, number, 2), split=split)
    drawn = render(scenes)
    return Batch(
        pictures=_bytes(drawn.pictures).movedim(1, -1),
        masks=_bytes(drawn.visible),
        captions=[random_caption(scene, chance) for scene in scenes],
        scenes=scenes,
    )


def batches(seed: int, size: int, split: str = "train", start: int = 0) -> Iterator[Batch]:
    """Without end; `start` is the number of the first, for a training that is taken up again."""
    number = start
    while True:
        yield batch(seed, number, size, split)
        number += 1


def drawn(number: int, seed: int, size: int) -> tuple[np.ndarray, np.ndarray, list[Scene]]:
    """A batch as arrays, which travel between processes."""
    made = batch(seed, number, size)
    return made.pictures.numpy(), _cells(made.masks), made.scenes


def told(
    number: int, seed: int, size: int, wordings: int
) -> tuple[np.ndarray, np.ndarray, list[Scene], list[list[str]]]:
    """`drawn`, and so many captions of each scene."""
    chance = np.random.default_rng((seed, number, 3))
    pictures, things, scenes = drawn(number, seed, size)
    return pictures, things, scenes, [[random_caption(scene, chance).text for _ in range(wordings)] for scene in scenes]


def arrays(scenes: list[Scene]) -> tuple[np.ndarray, np.ndarray, list[Scene]]:
    """The same of those scenes."""
    made = render(scenes)
    return _bytes(made.pictures).movedim(1, -1).numpy(), _cells(_bytes(made.visible)), scenes


def _cells(masks: Tensor) -> np.ndarray:
    """[B, CELLS, CELLS]: 0 where nothing is, 1 and 2 where a thing is."""
    cells = F.avg_pool2d(masks.float() / 255, SIZE // CELLS)
    return torch.cat([1 - cells.sum(1, keepdim=True), cells], 1).argmax(1).byte().numpy()


def _bytes(values: Tensor) -> Tensor:
    return (values * 255).round().to(torch.uint8)
