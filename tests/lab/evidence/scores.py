"""What is measured of pictures beside the judge's words: where things are, and what stayed as it was."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from lab.world.judge import Reading, mask_iou
from torch import Tensor

MARGIN = 4  # pixels around things that count as theirs: one of the latent's, and what glows or is blurred


def things_iou(readings: Sequence[Reading], visible: Tensor) -> Tensor:
    """[B, 2]: how well what is seen covers each true mask [B, 2, H, W], whatever its kind; 0 where nothing known is seen."""
    found = torch.zeros(visible.shape[:2])
    for row, reading in enumerate(readings):
        for seen in reading.things:
            found[row] = torch.maximum(found[row], mask_iou(seen.mask, visible[row]))
    return found


def psnr(a: Tensor, b: Tensor, weights: Tensor | None = None) -> Tensor:
    """In dB of each picture [B, 3, H, W], where weights [B, H, W] count, if there are any."""
    errors = (a - b).square().mean(1)
    weights = torch.ones_like(errors) if weights is None else weights
    mean = (errors * weights).sum((1, 2)) / weights.sum((1, 2)).clamp(min=1e-6)
    return -10 * mean.clamp(min=1e-12).log10()


def grown(masks: Tensor, pixels: int = MARGIN) -> Tensor:
    """Masks [B, H, W]."""
    return F.max_pool2d(masks[:, None], 2 * pixels + 1, 1, pixels)[:, 0]
