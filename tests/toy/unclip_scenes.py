"""What the parts of the toy's unCLIP are trained on: scenes in families whose members differ in one attribute."""

import random
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from toy import scenes
from toy.scenes import Scene
from tqdm import trange

ATTRIBUTES = {
    "shape": scenes.SHAPES,
    "colour": tuple(scenes.COLOURS),
    "texture": scenes.TEXTURES,
    "position": tuple(scenes.POSITIONS),
    "background": tuple(scenes.BACKGROUNDS),
}
FAMILIES = 3072
MEMBERS = 4
SMALL, MEDIUM = 32, 64  # pixels of the decoder's pictures, and of those that the image encoder sees


def families(seed: int) -> list[Scene]:
    """FAMILIES * MEMBERS scenes of the training split, those of a family next to each other."""
    rng = random.Random(seed)
    return [
        member
        for base in scenes.sample_scenes(FAMILIES, seed + 5, split="train")
        for member in (base, *(_relative(base, rng) for _ in range(MEMBERS - 1)))
    ]


def _relative(base: Scene, rng: random.Random) -> Scene:
    while True:
        attribute = rng.choice(list(ATTRIBUTES))
        value = rng.choice([value for value in ATTRIBUTES[attribute] if value != getattr(base, attribute)])
        made = replace(
            base,
            **{attribute: value},
            dx=rng.uniform(-scenes.JITTER, scenes.JITTER),
            dy=rng.uniform(-scenes.JITTER, scenes.JITTER),
            radius=rng.uniform(*scenes.RADIUS),
        )
        if not scenes.held_out(made) and (made.colour, made.background) in scenes.allowed_pairs():
            return made


def shrunk(images: Tensor, size: int) -> Tensor:
    """[B, 3, SIZE, SIZE] -> [B, 3, size, size], each pixel the mean of those it takes the place of."""
    return F.avg_pool2d(images, scenes.SIZE // size)


def pictures(drawn: list[Scene], cache_file: Path, *sizes: int) -> list[Tensor]:
    """The scenes rendered and shrunk to each of these sizes, in bytes."""
    if cache_file.exists():
        return torch.load(cache_file, weights_only=True)
    made: list[list[Tensor]] = [[] for _ in sizes]
    for start in trange(0, len(drawn), 64, desc="drawing scenes"):
        images = scenes.render(drawn[start : start + 64])[0]
        for size, parts in zip(sizes, made, strict=True):
            parts.append((shrunk(images, size) * 255).round().byte())
    found = [torch.cat(parts) for parts in made]
    torch.save(found, cache_file)
    return found
