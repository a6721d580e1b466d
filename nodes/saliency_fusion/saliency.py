"""How much a model's guidance has to say at each place of a latent (MagicFusion, 2303.13126, section 3.3)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

BOX_WIDTH = 4
# The standard deviation of a box four pixels wide.
GAUSSIAN_SIGMA = ((BOX_WIDTH**2 - 1) / 12) ** 0.5
GAUSSIAN_RADIUS = 4
# Of a response in eps units: what half precision rounds. A model whose mean response is below it has nothing to say.
QUIET = 1e-3


def box_blur(x: torch.Tensor) -> torch.Tensor:
    """x [N, C, H, W] as the published code blurs it: the mean over 4 x 4 pixels, zeros beyond the edge counted, then the
    H-1 x W-1 result resized back by bilinear interpolation. A border row has 0.75 of a constant's value, a corner 0.5625."""
    pooled = F.avg_pool2d(x, BOX_WIDTH, stride=1, padding=1)
    return F.interpolate(pooled, x.shape[-2:], mode="bilinear", align_corners=False)


def gaussian_blur(x: torch.Tensor) -> torch.Tensor:
    """x [N, C, H, W] under a gaussian as wide as the box; beyond an edge its pixels are repeated, so edges do not darken."""
    offsets = torch.arange(-GAUSSIAN_RADIUS, GAUSSIAN_RADIUS + 1, device=x.device, dtype=x.dtype)
    kernel = torch.exp(-0.5 * (offsets / GAUSSIAN_SIGMA) ** 2)
    kernel = (kernel / kernel.sum()).expand(x.shape[1], 1, -1)
    padded = F.pad(x, (GAUSSIAN_RADIUS,) * 4, mode="replicate")
    rows = F.conv2d(padded, kernel[:, :, None, :], groups=x.shape[1])
    return F.conv2d(rows, kernel[:, :, :, None], groups=x.shape[1])


BLURS = {"box": box_blur, "gaussian": gaussian_blur}


def strength(response: torch.Tensor, blur: str) -> torch.Tensor:
    """[B, ..., H, W]: the smoothed size of a guidance response [B, C, ..., H, W] in eps units, averaged over channels."""
    sizes = response.float().abs().movedim(1, -3)  # frames, where there are any, blur on their own
    return BLURS[blur](sizes.reshape(-1, *sizes.shape[-3:])).mean(1).view(*sizes.shape[:-3], *sizes.shape[-2:])


@dataclass(frozen=True)
class Sharpness:
    """How sharply a model's saliency stands out.

    relative: `value` counts the response in multiples of its mean over the picture, so that guidance does not change the
    saliency. Otherwise the response itself is multiplied, guidance and all: the published k.
    """

    value: float
    relative: bool = True

    def __post_init__(self) -> None:
        if not self.value > 0.0:
            name = "sharpness" if self.relative else "k"
            raise ValueError(f"{name}: expected a number above 0, got {self.value:g}. 1 is a good start.")


def log_saliency(strengths: torch.Tensor, sharpness: Sharpness, cfg: float) -> torch.Tensor:
    """Logarithm of a model's saliency: a softmax over the H x W pixels of each map [..., H, W].

    strengths: of what its guidance would add at guidance 2. The logarithm orders two maps as the softmax does, also where a
    high sharpness makes the softmax zero.
    """
    flat = strengths.flatten(-2)
    scale = 1.0 / flat.mean(-1, keepdim=True).clamp_min(QUIET) if sharpness.relative else cfg
    return torch.log_softmax(sharpness.value * (scale * flat), -1).view_as(strengths)
