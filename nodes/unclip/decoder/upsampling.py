"""Sampling with unCLIP's upsamplers: Karlo's 64 -> 256, whose last step has its own network, and DALL-E 2's 256 -> 1024."""

from __future__ import annotations

import math

import comfy.model_management
import comfy.utils
import latent_preview
import torch
from comfy.model_patcher import ModelPatcher

from ..respaced_schedule import RespacedSchedule, respaced
from .decoder_model import PixelSpace
from .loading import Upsampler

KARLO_STEPS, DALLE2_STEPS = 7, 15
OVERLAP = 32  # pixels that neighbouring tiles share, where their predictions are blended
LIVE_CHANNELS = 16  # channels of activations in memory at once at full resolution, in widths of the first level


def linear_betas() -> torch.Tensor:
    return torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)


def plan(upsampler: Upsampler, steps: int) -> tuple[RespacedSchedule, float]:
    """The levels to visit, and eta. steps 0: as many as published.

    Two networks: ancestral on the cosine schedule (Karlo). One: DDIM on the linear schedule (2204.06125, table 3, 256 -> 1024).
    """
    if upsampler.last is not None:
        return respaced(steps or KARLO_STEPS), 1.0
    return respaced(steps or DALLE2_STEPS, linear_betas()), 0.0


def upsample(upsampler: Upsampler, image: torch.Tensor, scale: int, steps: int, seed: int, tile: int) -> torch.Tensor:
    """IMAGE [B, H, W, 3] -> [B, scale H, scale W, 3], both in 0 .. 1. tile: the largest side of one network call, in pixels."""
    if image.ndim != 4 or image.shape[-1] < 3 or 0 in image.shape:
        raise ValueError(
            f"image: expected one or more pictures, [pictures, height, width, 3], got {list(image.shape)}. Connect a decoded picture."
        )
    schedule, eta = plan(upsampler, steps)
    device = upsampler.first.load_device
    small = image[..., :3].movedim(-1, 1).float() * 2 - 1
    size = [scale * side for side in small.shape[2:]]
    low_res = torch.nn.functional.interpolate(small, size, mode="bicubic", antialias=True).to(device)
    # Drawn on the CPU, as core draws its noise: the picture does not depend on the device.
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(low_res.shape, generator=generator).to(device)

    progress = comfy.utils.ProgressBar(len(schedule))
    previewer = latent_preview.get_previewer(device, PixelSpace())
    for i in range(len(schedule)):
        comfy.model_management.throw_exception_if_processing_interrupted()
        is_last = i == len(schedule) - 1
        network = upsampler.last if is_last and upsampler.last is not None else upsampler.first
        eps = predict(network, torch.cat([x, low_res], dim=1), int(schedule.timesteps[i]), tile)
        alpha_bar = float(schedule.alpha_bar[i])
        x0 = ((x - (1 - alpha_bar) ** 0.5 * eps) / alpha_bar**0.5).clamp(-1, 1)
        noise = torch.zeros_like(x) if is_last or eta == 0 else torch.randn(x.shape, generator=generator).to(device)
        x = schedule.step(i, x, x0, noise, eta)
        progress.update_absolute(
            i + 1, len(schedule), previewer and previewer.decode_latent_to_preview_image("JPEG", x0)
        )
    return (x.movedim(1, -1) * 0.5 + 0.5).clamp(0, 1).to(comfy.model_management.intermediate_device())


def predict(patcher: ModelPatcher, x: torch.Tensor, timestep: int, tile: int) -> torch.Tensor:
    """eps [B, 3, H, W] in float32. Pictures larger than a tile go through in overlapping tiles, smaller ones several at a time."""
    network = patcher.model
    dtype = network.compute_dtype
    at_once = max(1, tile**2 // (x.shape[2] * x.shape[3]))
    pixels = min(tile**2, len(x) * x.shape[2] * x.shape[3])
    memory = LIVE_CHANNELS * network.model_channels * pixels * comfy.model_management.dtype_size(dtype)
    comfy.model_management.load_models_gpu([patcher], memory_required=memory)

    def eps(rows: torch.Tensor) -> torch.Tensor:
        comfy.model_management.throw_exception_if_processing_interrupted()
        timesteps = torch.full((len(rows),), timestep, device=rows.device)
        return network(rows.to(dtype), timesteps).float()

    if max(x.shape[2:]) <= tile:
        return torch.cat([eps(rows) for rows in x.split(at_once)])
    height, width = (even_tile(side, tile, 2**network.halvings) for side in x.shape[2:])
    return comfy.utils.tiled_scale(x, eps, width, height, OVERLAP, 1, 3, x.device)


def even_tile(side: int, tile: int, multiple: int) -> int:
    """The side of as few tiles as possible, no larger than `tile` and about equal: a small last tile would show too little."""
    if side <= tile:
        return tile
    count = math.ceil((side - OVERLAP) / (tile - OVERLAP))
    wanted = math.ceil((side - OVERLAP) / count) + OVERLAP
    return min(tile, math.ceil(wanted / multiple) * multiple)
