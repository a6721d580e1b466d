"""Reference pictures of scenes' objects: the same shape, colour and texture, drawn again and cut out."""

import random
from collections.abc import Sequence
from dataclasses import replace

import torch
from lab.toy.scenes import SIZE, STUDIO, Scene, allowed_pairs, render
from torch import Tensor

REFERENCE_SIZE = 64
JITTER = 2.0
RADIUS = (26.0, 31.0)
NOISE_SHARE = 0.5  # of the pictures, whose background is noise, as it was in FastComposer's training


def object_words(scene: Scene) -> str:
    return f"a {scene.texture} {scene.colour} {scene.shape}"


def reference_pictures(scenes: Sequence[Scene], rng: random.Random) -> Tensor:
    """[B, 3, REFERENCE_SIZE, REFERENCE_SIZE] in 0..1."""
    again = [
        replace(
            scene,
            position="centre",
            background=rng.choice([name for name in STUDIO if (scene.colour, name) in allowed_pairs()]),
            dx=rng.uniform(-JITTER, JITTER),
            dy=rng.uniform(-JITTER, JITTER),
            radius=rng.uniform(*RADIUS),
        )
        for scene in scenes
    ]
    images, masks = render(again)
    generator = torch.Generator().manual_seed(rng.randrange(2**31))
    noisy = torch.tensor([rng.random() < NOISE_SHARE for _ in scenes])[:, None, None, None]
    noise = torch.rand(images.shape, generator=generator)
    images = torch.where(noisy, torch.lerp(noise, images, masks[:, None]), images)
    edge = (SIZE - REFERENCE_SIZE) // 2
    return images[:, :, edge:-edge, edge:-edge]
