"""How close two pictures are: PSNR, SSIM and a picture of the error."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F


def psnr(a: torch.Tensor, b: torch.Tensor) -> float:
    """Peak signal-to-noise ratio in dB over a whole batch of images [B, H, W, C] in 0..1; infinite for equal images."""
    mse = float(((a - b).cpu().double() ** 2).mean())
    return math.inf if mse == 0 else -10.0 * math.log10(mse)


def ssim(a: torch.Tensor, b: torch.Tensor) -> float:
    """Mean structural similarity of images [B, H, W, C] in 0..1 (Wang et al. 2004): gaussian window, sigma 1.5, 11 pixels."""
    size = 11
    if min(a.shape[1:3]) < size:
        raise ValueError(
            f"image_a, image_b: SSIM expects at least {size}x{size} pixels, got {a.shape[2]}x{a.shape[1]}."
        )
    offsets = torch.arange(size, dtype=torch.float64) - size // 2
    window = torch.exp(-(offsets**2) / (2 * 1.5**2))
    window = window / window.sum()

    def blur(x: torch.Tensor) -> torch.Tensor:
        return F.conv2d(F.conv2d(x, window.view(1, 1, -1, 1)), window.view(1, 1, 1, -1))

    x, y = (image.cpu().double().movedim(-1, 1).flatten(0, 1)[:, None] for image in (a, b))  # [B*C, 1, H, W]
    mx, my = blur(x), blur(y)
    vx, vy, cov = blur(x * x) - mx * mx, blur(y * y) - my * my, blur(x * y) - mx * my
    c1, c2 = 0.01**2, 0.03**2
    similarity = ((2 * mx * my + c1) * (2 * cov + c2)) / ((mx * mx + my * my + c1) * (vx + vy + c2))
    return float(similarity.mean())


def error_image(a: torch.Tensor, b: torch.Tensor, gain: float) -> torch.Tensor:
    """Absolute difference [B, H, W, C], brightened `gain` times."""
    return ((a - b).abs() * gain).clamp(0, 1)


def match(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Two IMAGE batches ready to be compared: alpha dropped, a batch of one repeated. Sizes must agree."""
    a, b = a[..., :3], b[..., :3]
    if a.shape[1:] != b.shape[1:] or (a.shape[0] != b.shape[0] and 1 not in (a.shape[0], b.shape[0])):
        raise ValueError(
            f"image_a, image_b: expected pictures of one size and batch, got {a.shape[0]} of {a.shape[2]}x{a.shape[1]} and "
            f"{b.shape[0]} of {b.shape[2]}x{b.shape[1]}. Put an image scale node in front of one of them."
        )
    batch = max(a.shape[0], b.shape[0])
    return a.expand(batch, -1, -1, -1), b.expand(batch, -1, -1, -1)
