"""Who draws where at every step of a path: small pictures with each expert's part tinted, as sampling shares them out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import latent_preview
import numpy as np
import torch
from PIL import Image

from ..diffusion.evaluation import Inside, run_inside
from .guider import FusionGuider
from .preview import overlaid
from .saliency_map import Looked

if TYPE_CHECKING:
    from comfy.latent_formats import LatentFormat

SIDE = 256  # pixels, of the longer side of a picture
GREY = (128, 128, 128)  # where ComfyUI knows no colours for the latent


def look_at_every_step(guider: FusionGuider, looked: Looked) -> Iterator[tuple[torch.Tensor, str]]:
    """The first picture as predicted at each step [H, W, 3], and a line about the step. Windows count, unlike on the map of one step."""
    experts = [own.expert for own in guider.experts]
    sampling = FusionGuider(guider.general, experts, guider.blending)
    steps = len(looked.sigmas) - 1
    frames: list[tuple[Image.Image, str]] = []

    def look(inside: Inside) -> None:
        for step in range(steps):
            x, sigma = looked.noisy(inside, step), float(inside.sigmas[step])
            denoised = inside.guided(x, sigma)
            parts, who = _parts(sampling, denoised, sigma)
            picture = overlaid(_small(denoised, sampling.model_patcher.model.latent_format), parts)
            frames.append((picture, f"step {step} of {steps}, sigma {sigma:.3g}: {who}"))
            inside.show(step, denoised, x)

    run_inside(sampling, looked.latent, looked.sigmas, steps, look, looked.noise, looked.seed)
    return ((torch.from_numpy(np.array(picture)) / 255.0, line) for picture, line in frames)


def _parts(guider: FusionGuider, denoised: torch.Tensor, sigma: float) -> tuple[dict[int, torch.Tensor], str]:
    """Each expert's part, by its number counted from 0, [B, ..., H, W]; and the same in words."""
    decision = guider.decision
    if decision is not None:
        shares = [f"expert {n + 1} {100 * float(part.mean()):.0f} %" for n, part in decision.parts.items()]
        return decision.parts, ", ".join(shares)
    for number, own in enumerate(guider.experts):
        if own.is_alone_at(sigma):
            return {number: torch.ones_like(denoised[:, 0])}, f"expert {number + 1} alone"
    return {}, "the general model alone"


def _small(denoised: torch.Tensor, latent_format: LatentFormat) -> Image.Image:
    """In the latent's own colours."""
    height, width = denoised.shape[-2:]
    picture = Image.new("RGB", (width, height), GREY)
    if latent_format.latent_rgb_factors is not None:
        reshape = getattr(latent_format, "latent_rgb_factors_reshape", None)
        colours = (latent_format.latent_rgb_factors, latent_format.latent_rgb_factors_bias, reshape)
        picture = latent_preview.Latent2RGBPreviewer(*colours).decode_latent_to_preview(denoised.float())
    scale = SIDE / max(picture.size)
    return picture.resize((round(picture.width * scale), round(picture.height * scale)), Image.Resampling.BILINEAR)
