"""scikit-image's bundled photographs, which no model of the world was trained on."""

from __future__ import annotations

from pathlib import Path

import skimage
import torch
import torch.nn.functional as F
from lab.world.scenes import SIZE
from skimage.io import imread
from torch import Tensor


def photograph(name: str) -> Tensor:
    """[3, H, W] in 0..1, as bundled with scikit-image."""
    pixels = torch.from_numpy(imread(Path(skimage.__file__).parent / "data" / name)).float() / 255
    if pixels.ndim == 2:
        pixels = pixels[..., None].expand(-1, -1, 3)
    return pixels[..., :3].permute(2, 0, 1).contiguous()


def central_square(name: str, size: int = SIZE) -> Tensor:
    """[1, 3, size, size]"""
    image = photograph(name)
    side = min(image.shape[1:])
    top, left = (image.shape[1] - side) // 2, (image.shape[2] - side) // 2
    crop = image[None, :, top : top + side, left : left + side]
    return F.interpolate(crop, (size, size), mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
