"""Where the edges of a picture run and in which direction: what tells a drawing that is slightly off from a drawing of something else.

As in histograms of oriented gradients (Dalal and Triggs 2005): directions without a sign, gathered from a few pixels around, strengths as square roots.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from kornia.filters import gaussian_blur2d
from torch import Tensor

DIRECTIONS = 8
AROUND = 2.5  # pixels, within which an edge may run elsewhere
STRIDE = 2  # pixels that are averaged before slopes are taken


def edges(pictures: Tensor) -> Tensor:
    """[B, DIRECTIONS, H / STRIDE, W / STRIDE] of pictures [B, 3, H, W]."""
    seen = F.avg_pool2d(pictures, STRIDE)
    across = F.pad(seen[..., 2:] - seen[..., :-2], (1, 1, 0, 0))
    down = F.pad(seen[..., 2:, :] - seen[..., :-2, :], (0, 0, 1, 1))
    strength, colour = (across.square() + down.square()).max(1, keepdim=True)
    across, down = across.gather(1, colour), down.gather(1, colour)
    angles = torch.arange(DIRECTIONS) * (math.pi / DIRECTIONS)
    along = across * angles.cos()[:, None, None] + down * angles.sin()[:, None, None]
    share = (along.square() / strength.clamp(min=1e-12)).square().square()
    sigma = AROUND / STRIDE
    return gaussian_blur2d(strength.sqrt().sqrt() * share, (7, 7), (sigma, sigma))


def likeness(a: Tensor, b: Tensor, area: Tensor) -> Tensor:
    """From 0 to 1, of `edges` [..., DIRECTIONS, H, W] within an area [..., H, W] of 0 to 1."""
    area = area[..., None, :, :]
    shared, own, other = ((x * y * area).sum((-3, -2, -1)) for x, y in ((a, b), (a, a), (b, b)))
    return shared / (own * other).sqrt().clamp(min=1e-9)
