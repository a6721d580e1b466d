"""What the parts of the toy's unCLIP are trained on: scenes in families whose members differ in one attribute."""

import random
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from lab.toy import scenes
from lab.toy.scenes import Scene
from torch import Tensor
from tqdm import trange

ATTRIBUTES = {
    "shape": scenes.SHAPES,
    "colour": tuple(scenes.COLOURS),
    "texture": scenes.TEXTURES,
    "position": tuple(scenes.POSITIONS),
    "background": tuple(scenes.BACKGROUNDS),
}
FAMILIES = 3072
# What a family's members differ in from its first one. Shapes are learnt last, and so are shown most.
DIFFERENCES = ("shape", "shape", "shape", "texture", "texture", "position", "any")
MEMBERS = 1 + len(DIFFERENCES)
SMALL, MEDIUM = 32, 64  # pixels of what decoder and image encoder see, and of what the first upsampler paints


def families(seed: int) -> list[Scene]:
    """FAMILIES * MEMBERS scenes of the training split, those of a family next to each other."""
    rng = random.Random(seed)
    return [
        member
        for base in scenes.sample_scenes(FAMILIES, seed + 5, split="train")
        for member in (base, *(_relative(base, difference, rng) for difference in DIFFERENCES))
    ]


def _relative(base: Scene, difference: str, rng: random.Random) -> Scene:
    """Another in that attribute, or in any where the other split has all of those."""
    options = [
        (name, value)
        for name, values in ATTRIBUTES.items()
        for value in values
        if value != getattr(base, name) and _may_be(replace(base, **{name: value}))
    ]
    wanted = [option for option in options if option[0] == difference]
    name, value = rng.choice(wanted or options)
    place = {"dx": rng.uniform(-scenes.JITTER, scenes.JITTER), "dy": rng.uniform(-scenes.JITTER, scenes.JITTER)}
    return replace(base, **{name: value}, **place, radius=rng.uniform(*scenes.RADIUS))


def _may_be(scene: Scene) -> bool:
    return not scenes.held_out(scene) and (scene.colour, scene.background) in scenes.allowed_pairs()


def shrunk(images: Tensor, size: int) -> Tensor:
    """[..., SIZE, SIZE] -> [..., size, size], each pixel the mean of those it takes the place of."""
    return F.avg_pool2d(images, scenes.SIZE // size)


def drawn_small(drawn: list[Scene], cache_file: Path) -> tuple[Tensor, Tensor]:
    """Pictures [N, 3, SMALL, SMALL] and their objects' masks [N, SMALL, SMALL], both in bytes."""
    if cache_file.exists():
        return tuple(torch.load(cache_file, weights_only=True))
    parts = []
    for start in trange(0, len(drawn), 64, desc="drawing scenes"):
        images, masks = scenes.render(drawn[start : start + 64])
        parts.append([(shrunk(part, SMALL) * 255).round().byte() for part in (images, masks)])
    pictures, masks = (torch.cat(found) for found in zip(*parts, strict=True))
    torch.save([pictures, masks], cache_file)
    return pictures, masks


def drawn_large(drawn: list[Scene]) -> Tensor:
    """Pictures [N, 3, SIZE, SIZE] in bytes."""
    starts = trange(0, len(drawn), 64, desc="drawing large scenes")
    return torch.cat([(scenes.render(drawn[start : start + 64])[0] * 255).round().byte() for start in starts])
