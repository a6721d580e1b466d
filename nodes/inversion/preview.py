"""A trajectory as pictures, from noise to picture."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from comfy.latent_formats import LatentFormat

from ..diffusion.trajectory import Trajectory

Decoder = Callable[[torch.Tensor], torch.Tensor]  # latents as a VAE takes them [N, C, H, W] -> images [N, H, W, 3]


def preview_steps(trajectory: Trajectory, frames: int) -> torch.Tensor:
    """At most so many steps, evenly spaced from the first state to the last."""
    return torch.linspace(0, trajectory.steps, min(frames, trajectory.steps + 1)).round().long().unique()


def preview_frames(trajectory: Trajectory, steps: torch.Tensor, decode: Decoder | None) -> torch.Tensor:
    """[B, steps, H, W, 3] in 0..1: the states, each scaled to unit variance; latent colours without a decoder.

    Of a clip the first frame is shown.
    """
    x = trajectory.latents[steps]
    if x.ndim == 6:
        x = x[:, :, :, :1]
    if "CONST" not in trajectory.model.sampling:  # flow models mix picture and noise, the others add them
        x = x / (trajectory.sigmas[steps] ** 2 + 1).sqrt().view(-1, *[1] * (x.ndim - 1))
    latents = x.transpose(0, 1).flatten(0, 1)  # [B * frames, C, H, W], rows of the batch first
    if decode is not None:
        images = decode(_latent_format(trajectory).process_out(latents))[..., :3].float().cpu()
        images = images.flatten(0, -4)  # a video VAE gives each frame an axis
    else:
        images = _latent_colours(trajectory, latents if latents.ndim == 4 else latents[:, :, 0])
    return images.unflatten(0, (trajectory.batch, len(steps))).clamp(0, 1)


def strip(frames: torch.Tensor) -> torch.Tensor:
    """Frames [B, n, H, W, 3] side by side: [B, H, n W, 3]."""
    return torch.cat(frames.unbind(1), dim=2)


def _latent_colours(trajectory: Trajectory, latents: torch.Tensor) -> torch.Tensor:
    fmt = _latent_format(trajectory)
    if fmt.latent_rgb_factors is None or len(fmt.latent_rgb_factors) != latents.shape[1]:
        raise ValueError(f"vae: {trajectory.model.latent_format} latents have no quick preview. Connect the VAE.")
    bias = torch.zeros(3) if fmt.latent_rgb_factors_bias is None else torch.tensor(fmt.latent_rgb_factors_bias)
    colours = latents.movedim(1, -1) @ torch.tensor(fmt.latent_rgb_factors) + bias
    images = (colours + 1) / 2
    return F.interpolate(images.movedim(-1, 1), scale_factor=8, mode="nearest").movedim(1, -1)


def _latent_format(trajectory: Trajectory) -> LatentFormat:
    wanted, known = trajectory.model.latent_format, [LatentFormat]
    for fmt in known:  # core's, and those other packs derive from them
        if fmt.__name__ == wanted:
            return fmt()
        known += fmt.__subclasses__()
    raise ValueError(
        f"trajectory: expected a latent format that this ComfyUI knows, got {wanted!r}. Update ComfyUI, or install the pack that "
        "the trajectory's model came from."
    )
