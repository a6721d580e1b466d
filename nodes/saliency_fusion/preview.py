"""The step's mask drawn over ComfyUI's own latent preview."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import comfy.utils
import latent_preview
import torch
from PIL import Image

from .blending import Decision

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher

SHARE = 0.1  # of the time, at most, goes into drawing; ComfyUI's own preview of each step shows in between
OPACITY = 0.45
# One for each expert, apart in lightness as well as in hue; the general model's places keep the picture's own colours.
COLOURS = ((255, 140, 0), (0, 158, 250), (230, 60, 160), (120, 200, 40))


def with_mask(callback: Callable, patcher: ModelPatcher, decision: Callable[[], Decision | None]) -> Callable:
    """A sampler's callback that goes on to show the mask of the fusion guider's current decision."""
    previewer = latent_preview.get_previewer(patcher.load_device, patcher.model.latent_format)
    if previewer is None:
        return callback
    bar = comfy.utils.ProgressBar(1)
    last, cost = -math.inf, 0.0

    def show(step: int, x0: torch.Tensor, x: torch.Tensor, total: int) -> None:
        nonlocal last, cost
        callback(step, x0, x, total)
        began = time.monotonic()
        current = decision()
        if current is None or began - last < cost / SHARE:
            return
        kind, image, size = previewer.decode_latent_to_preview_image("JPEG", x0)
        bar.update_absolute(step + 1, total, (kind, overlaid(image, current.parts), size))
        last = time.monotonic()
        cost = last - began

    return show


def overlaid(image: Image.Image, parts: dict[int, torch.Tensor]) -> Image.Image:
    """The first picture of the batch with each expert's part tinted; `parts`: [B, ..., H, W] by the expert's number."""
    for expert, weights in parts.items():
        weight = weights[0].float().cpu()
        weight = weight if weight.ndim == 2 else weight[0]  # the first frame
        part = Image.fromarray((weight * (OPACITY * 255)).round().to(torch.uint8).numpy())
        part = part.resize(image.size, Image.Resampling.NEAREST)
        image = Image.composite(
            Image.new("RGB", image.size, COLOURS[expert % len(COLOURS)]), image.convert("RGB"), part
        )
    return image
