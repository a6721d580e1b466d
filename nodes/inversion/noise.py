"""Start values for a sampler that is to retrace a trajectory."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from comfy.model_patcher import ModelPatcher

from ..diffusion.trajectory import Trajectory


@dataclass(frozen=True, eq=False)
class TrajectoryNoise:
    """A NOISE whose sampler starts exactly at one of the trajectory's latents, whatever latent is connected to it.

    Samplers begin with `noise_scaling(sigmas[0], noise, latent)`, which multiplies by sigma, by sqrt(1 + sigma^2) at the
    model's maximum, and mixes the latent in for flow models. It is linear in the noise, so it can be asked for its two
    coefficients and undone without knowing the kind of model.
    """

    start: torch.Tensor  # [B, C, H, W] or [B, C, frames, H, W] in the model's sampling space
    sigma: float
    model: ModelPatcher
    seed: int = 0

    def generate_noise(self, input_latent: dict) -> torch.Tensor:
        latent = input_latent["samples"]
        if latent.shape[1:] != self.start.shape[1:] or self.start.shape[0] not in (1, latent.shape[0]):
            raise ValueError(
                f"noise: this trajectory starts from latents of shape {tuple(self.start.shape)}, but the sampler's latent_image is "
                f"{tuple(latent.shape)}. Connect a latent of the inverted picture's size and batch."
            )
        latent = latent.to(device="cpu", dtype=torch.float32)
        if bool(latent.any()):  # core leaves an empty latent unshifted
            latent = self.model.get_model_object("latent_format").process_in(latent)
        sampling = self.model.get_model_object("model_sampling")
        sigma = torch.tensor(self.sigma)
        sigma_max = float(sampling.sigma_max)
        at_max = math.isclose(sigma_max, self.sigma, rel_tol=1e-5) or self.sigma > sigma_max
        zero, one = torch.zeros_like(latent), torch.ones_like(latent)
        offset = sampling.noise_scaling(sigma, zero.clone(), latent, at_max)
        scale = sampling.noise_scaling(sigma, one, zero, at_max)
        return ((self.start - offset) / scale).expand_as(latent).contiguous()


def trajectory_noise(model: ModelPatcher, trajectory: Trajectory, step: int = 0) -> TrajectoryNoise:
    return TrajectoryNoise(trajectory.latents[step], float(trajectory.sigmas[step]), model)


def trajectory_latent(model: ModelPatcher, trajectory: Trajectory, step: int = 0) -> torch.Tensor:
    """The start as a latent [B, C, H, W] for samplers that add no noise of their own (KSamplerAdvanced, add_noise disabled)."""
    sampling = model.get_model_object("model_sampling")
    zero = torch.zeros(())
    kept = float(sampling.noise_scaling(trajectory.sigmas[step], zero.clone(), zero + 1, False))
    # A flow model scales the latent by 1 - sigma; at sigma 1 nothing of it is left and only the NOISE output can start there.
    start = trajectory.latents[step]
    return model.get_model_object("latent_format").process_out(start / kept if kept > 0 else start.clone())


def start_step(trajectory: Trajectory, sigmas: torch.Tensor) -> int:
    """The step of `trajectory` at which a sampler with these sigmas starts."""
    step = trajectory.step_of(float(sigmas[0])) if len(sigmas) else None
    if step is None or step == trajectory.steps:
        levels = ", ".join(f"{float(level):.4f}" for level in trajectory.sigmas[:3])
        got = f"{float(sigmas[0]):.4f}" if len(sigmas) else "no sigmas"
        raise ValueError(
            f"sigmas: expected to start at a level of the trajectory, {levels} ..., got {got}. Use the inversion's scheduler "
            "with the same steps and the low part of Split Sigmas, or with fewer steps whose levels are among the inversion's."
        )
    return step
