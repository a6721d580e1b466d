"""Crops of scikit-image's bundled photographs, some of them under a colour treatment that their caption names."""

import math
import random
from functools import cache
from pathlib import Path

import skimage
import torch
import torch.nn.functional as F
from lab.toy.scenes import SIZE
from skimage.io import imread
from torch import Tensor

# File, the words for it, and how often it is drawn. Chelsea the cat is never trained on: she is the demo photograph.
HELD_OUT = "chelsea.png"
TRAINING = {
    "astronaut.png": ("an astronaut", 3),
    "coffee.png": ("a cup of coffee", 3),
    "rocket.jpg": ("a rocket", 3),
    "motorcycle_left.png": ("a motorcycle", 1),
    "camera.png": ("a man with a camera", 2),
    "retina.jpg": ("a retina", 1),
    "ihc.png": ("cells", 1),
    "moon.png": ("the moon", 1),
    "coins.png": ("coins", 1),
    "brick.png": ("a brick wall", 1),
    "grass.png": ("grass", 1),
    "gravel.png": ("gravel", 1),
}

_LUMA = torch.tensor([0.299, 0.587, 0.114])


def _toned(image: Tensor, dark: tuple[float, float, float], light: tuple[float, float, float]) -> Tensor:
    luma = torch.einsum("c,...chw->...hw", _LUMA, image)[..., None, :, :]
    return torch.lerp(torch.tensor(dark)[:, None, None], torch.tensor(light)[:, None, None], luma)


LOOKS = {
    "gray": lambda image: _toned(image, (0.02, 0.02, 0.02), (0.98, 0.98, 0.98)),
    "sepia": lambda image: _toned(image, (0.16, 0.08, 0.02), (1.0, 0.90, 0.70)),
    "night": lambda image: _toned(image, (0.00, 0.02, 0.12), (0.45, 0.62, 1.0)),
    "sunset": lambda image: _toned(image, (0.25, 0.02, 0.22), (1.0, 0.80, 0.35)),
    "green": lambda image: _toned(image, (0.00, 0.10, 0.04), (0.75, 1.0, 0.60)),
    "negative": lambda image: 1 - image,
}


@cache
def photograph(name: str) -> Tensor:
    """[3, H, W] in 0..1, as bundled with scikit-image."""
    pixels = torch.from_numpy(imread(Path(skimage.__file__).parent / "data" / name)).float() / 255
    if pixels.ndim == 2:
        pixels = pixels[..., None].expand(-1, -1, 3)
    return pixels[..., :3].permute(2, 0, 1).contiguous()


def held_out_photo(size: int = SIZE) -> Tensor:
    """The demo photograph as [1, 3, size, size]."""
    return central_square(HELD_OUT, size)


def central_square(name: str, size: int = SIZE) -> Tensor:
    """[1, 3, size, size]"""
    image = photograph(name)
    side = min(image.shape[1:])
    top, left = (image.shape[1] - side) // 2, (image.shape[2] - side) // 2
    crop = image[None, :, top : top + side, left : left + side]
    return F.interpolate(crop, (size, size), mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)


def random_crop(rng: random.Random, size: int = SIZE) -> tuple[Tensor, str]:
    """One training crop [3, size, size], at a random scale and mirrored half of the time, and its subject."""
    name = rng.choices(list(TRAINING), [weight for _, weight in TRAINING.values()])[0]
    image = photograph(name)
    height, width = image.shape[1:]
    # Log-uniform between the whole photograph and crops at its own resolution.
    side = round(math.exp(rng.uniform(math.log(min(160, height, width)), math.log(min(height, width)))))
    top, left = rng.randint(0, height - side), rng.randint(0, width - side)
    crop = image[None, :, top : top + side, left : left + side]
    crop = F.interpolate(crop, (size, size), mode="bicubic", antialias=True, align_corners=False)[0].clamp(0, 1)
    return (crop.flip(-1) if rng.random() < 0.5 else crop), TRAINING[name][0]


def training_photo(rng: random.Random) -> tuple[Tensor, str]:
    """A crop and its caption, two in three of them under one of the looks."""
    image, subject = random_crop(rng)
    words = "photo"
    if rng.random() < 2 / 3:
        look = rng.choice(list(LOOKS))
        image, words = LOOKS[look](image), f"{look} photo"
    text = f"a {words}"
    return image, text + (f" of {subject}" if rng.random() < 0.6 else "")
