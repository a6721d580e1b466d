"""What a fusion guider decides at one latent, without sampling."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import comfy.sample
import torch
import torch.nn.functional as F

from ..diffusion.evaluation import Inside, run_inside
from ..diffusion.trajectory import Trajectory
from .blending import Decision
from .guider import FusionGuider
from .windows import Window


@dataclass(frozen=True)
class Looked:
    """What to look at: x at every step of a schedule.

    latent: [B, C, ...] as a VAE gives it, with `noise` and `seed` as a sampler would start from it. noisy: x of a step, counted from 0.
    """

    latent: torch.Tensor
    sigmas: torch.Tensor
    noisy: Callable[[Inside, int], torch.Tensor]
    noise: torch.Tensor | None = None
    seed: int = 0

    def require_step(self, step: int, socket: str) -> None:
        if not 0 <= step < len(self.sigmas) - 1:
            raise ValueError(
                f"step: expected 0 to {len(self.sigmas) - 2}, the steps of `{socket}`, got {step}. Choose one of them; 0 is the noisiest."
            )


def along(guider: FusionGuider, trajectory: Trajectory) -> Looked:
    """The trajectory's latents."""
    trajectory.model.require_match(guider.model_patcher)
    latent = guider.model_patcher.model.process_latent_out(trajectory.latents[-1])
    return Looked(latent, trajectory.sigmas, lambda inside, step: trajectory.latents[step].to(inside.noise))


def under_noise(guider: FusionGuider, latent: dict, noise, sigmas: torch.Tensor) -> Looked:
    """A LATENT under each step's amount of `noise`, or, where that is None, one that is already as noisy."""
    ratios = {key: latent[key] for key in ("downscale_ratio_spacial", "downscale_ratio_temporal") if key in latent}
    samples = comfy.sample.fix_empty_latent_channels(guider.model_patcher, latent["samples"], **ratios)
    added = torch.zeros_like(samples) if noise is None else noise.generate_noise({**latent, "samples": samples})

    def noised(inside: Inside, step: int) -> torch.Tensor:
        at_maximum = inside.sampler.max_denoise(inside.guider, inside.sigmas[step:])
        return inside.model.model_sampling.noise_scaling(inside.sigmas[step], inside.noise, inside.latent, at_maximum)

    return Looked(samples, sigmas, noised, added, 0 if noise is None else noise.seed)


def decide(guider: FusionGuider, looked: Looked, step: int) -> Decision:
    experts = [replace(own.expert, takes_over=False) for own in guider.experts]
    looking = FusionGuider(guider.general, experts, guider.blending, maps_everything=True)
    for own in looking.experts:
        own.window = Window.around(float(looked.sigmas[step]))
    decisions: list[Decision | None] = []

    def look(inside: Inside) -> None:
        x = looked.noisy(inside, step)
        denoised = inside.guided(x, float(inside.sigmas[step]))
        decisions.append(looking.decision)
        inside.show(0, denoised, x)

    run_inside(looking, looked.latent, looked.sigmas, 1, look, looked.noise, looked.seed)
    if decisions[0] is None:
        raise ValueError(
            "guider: expected at least one expert whose mask lets it draw somewhere, got none. Change the mask."
        )
    return decisions[0]


def mask_of(guider: FusionGuider, decision: Decision, expert: int) -> torch.Tensor:
    """[B, H, W] in pixels of the picture: the part of the guider's expert, counted from 0; none of it where its own mask keeps it out."""
    if expert not in decision.experts:
        return torch.zeros_like(_in_pixels(guider, decision.weights[0]))
    return _in_pixels(guider, decision.weights[1 + decision.experts.index(expert)])


def saliency_of(guider: FusionGuider, decision: Decision) -> torch.Tensor:
    """[B, H, M x W] in 0..1, in pixels of the picture: every model's map side by side, the general one's first, on one scale."""
    maps = torch.cat([_in_pixels(guider, log_map.exp()) for log_map in decision.log_maps], -1)
    return maps / maps.amax((1, 2), keepdim=True).clamp_min(1e-12)


def _in_pixels(guider: FusionGuider, maps: torch.Tensor) -> torch.Tensor:
    """Places [B, ..., H, W] of a latent as squares of the picture, frames one after another."""
    factor = guider.model_patcher.get_model_object("latent_format").spacial_downscale_ratio
    return F.interpolate(maps.float().cpu().flatten(0, -3)[:, None], scale_factor=factor, mode="nearest")[:, 0]
