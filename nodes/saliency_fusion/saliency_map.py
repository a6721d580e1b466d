"""What a fusion guider decides at one latent, without sampling."""

from __future__ import annotations

from dataclasses import replace

import comfy.sample
import comfy.samplers
import latent_preview
import torch
import torch.nn.functional as F

from ..diffusion.trajectory import Trajectory
from .guider import Decision, FusionGuider

PIXELS = 8  # of a picture, for each of a latent


def decide_along(guider: FusionGuider, trajectory: Trajectory, step: int) -> Decision:
    """At the trajectory's latent of that step."""
    trajectory.model.require_match(guider.model_patcher)
    _require_step(step, trajectory.sigmas, "trajectory")
    latent = guider.model_patcher.model.process_latent_out(trajectory.latents[-1])
    return _decide(
        guider, _Look(step, trajectory.latents[step]), latent, torch.zeros_like(latent), trajectory.sigmas, 0
    )


def decide_at(guider: FusionGuider, latent: dict, noise, sigmas: torch.Tensor, step: int) -> Decision:
    """At a LATENT under that step's amount of `noise`, or, where that is None, at one that is already as noisy."""
    _require_step(step, sigmas, "sigmas")
    samples = comfy.sample.fix_empty_latent_channels(guider.model_patcher, latent["samples"])
    added = torch.zeros_like(samples) if noise is None else noise.generate_noise({**latent, "samples": samples})
    seed = 0 if noise is None else noise.seed
    return _decide(guider, _Look(step), samples, added, sigmas, seed)


def _require_step(step: int, sigmas: torch.Tensor, socket: str) -> None:
    if not 0 <= step < len(sigmas) - 1:
        raise ValueError(
            f"step: expected 0 to {len(sigmas) - 2}, the steps of `{socket}`, got {step}. Choose one of them; 0 is the noisiest."
        )


def _decide(guider: FusionGuider, look: _Look, latent, noise, sigmas: torch.Tensor, seed: int) -> Decision:
    experts = [replace(own.expert, span=(0.0, 1.0), takes_over=False) for own in guider.experts]
    looking = FusionGuider(guider.general, experts, guider.blending)
    callback = latent_preview.prepare_callback(looking.model_patcher, 1)
    looking.sample(noise, latent, look, sigmas, callback=callback, disable_pbar=True, seed=seed)
    if look.decision is None:
        raise ValueError(
            "guider: expected one with an expert that its mask lets in somewhere, got none. Change the mask."
        )
    return look.decision


class _Look(comfy.samplers.Sampler):
    """Evaluates the models at one level inside ComfyUI's own loading, conditions and progress."""

    def __init__(self, step: int, x: torch.Tensor | None = None):
        self.step = step
        self.x = x
        self.decision: Decision | None = None
        # For model patches that follow a trajectory: it stays on the levels of one.
        euler = comfy.samplers.sampler_object("euler")
        self.sampler_function, self.extra_options = euler.sampler_function, euler.extra_options

    def sample(
        self, model_wrap, sigmas, extra_args, callback, noise, latent_image=None, denoise_mask=None, disable_pbar=False
    ):
        sigma = sigmas[self.step]
        if self.x is None:
            at_maximum = self.max_denoise(model_wrap, sigmas[self.step :])
            x = model_wrap.inner_model.model_sampling.noise_scaling(sigma, noise, latent_image, at_maximum)
        else:
            x = self.x.to(noise)
        denoised = model_wrap(x, sigma.expand(len(x)), **extra_args)
        self.decision = model_wrap.decision
        callback(0, denoised, x, 1)
        return latent_image


def mask_of(decision: Decision, expert: int) -> torch.Tensor:
    """[B, 8 H, 8 W]: the part of the guider's expert, counted from 0; none of it where its own mask keeps it out."""
    if expert not in decision.experts:
        return torch.zeros_like(_enlarged(decision.weights[0]))
    return _enlarged(decision.weights[1 + decision.experts.index(expert)])


def saliency_of(decision: Decision) -> torch.Tensor:
    """[B, 8 H, M x 8 W] in 0..1: every model's map side by side, the general one's first, on one scale."""
    maps = torch.cat([_enlarged(log_map.exp()) for log_map in decision.log_maps], -1)
    return maps / maps.amax((1, 2), keepdim=True).clamp_min(1e-12)


def _enlarged(maps: torch.Tensor) -> torch.Tensor:
    """Pixels [B, ..., H, W] as squares [B, 8 H, 8 W], frames one after another."""
    return F.interpolate(maps.float().cpu().flatten(0, -3)[:, None], scale_factor=PIXELS, mode="nearest")[:, 0]
