"""Editing without inversion: a source and a target prompt pull at one picture, and only what they disagree on changes.

FlowEdit (2412.08629) follows z from the source picture, dz/dsigma = v_target(x_t) - v_source(x_s), where x_s is the source under
fresh noise and x_t = x_s + (z - source). Uni-Edit (2504.13109) samples an inverted picture and blends both prompts' velocities by
a mask of where they differ. Both are stated here in denoised predictions, v = (x - D) / sigma, so that any sampler takes the steps
and any prediction type serves.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

import comfy.samplers
import torch
import torch.nn.functional as F

from ..diffusion.conditioning import Conditioning
from ..diffusion.samplers import require_deterministic

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher

FLOW_EDIT, VELOCITY_MASK = "flow_edit", "velocity_mask"


@dataclass(frozen=True)
class Method:
    """strength: for FlowEdit the share of the steps, from the picture up, that are taken (n_max); averages: noises for each step
    (n_avg). omega: Uni-Edit's pull towards the target."""

    name: str
    strength: float = 0.65
    averages: int = 1
    omega: float = 5.0


class FlowEditGuider(comfy.samplers.CFGGuider):
    """A GUIDER of two pairs of prompts.

    With FlowEdit the sampler's x is start + (z - source), where start is what the sampler begins with: so z begins at the source
    exactly, whatever noise is connected, and equal prompts return the source picture bit for bit.
    """

    def __init__(
        self,
        model: ModelPatcher,
        target: tuple[Conditioning, Conditioning],
        source: tuple[Conditioning, Conditioning],
        cfg: float,
        cfg_source: float,
        method: Method,
        mask: torch.Tensor | None = None,
    ):
        super().__init__(model)
        names = ("positive", "negative", "source", "source_negative")
        self.inner_set_conds(dict(zip(names, (*target, *source), strict=True)))
        self.set_cfg(cfg)
        self.cfg_source = cfg_source
        self.method = method
        self.mask = mask
        self.start: torch.Tensor | None = None
        self.picture: torch.Tensor | None = None

    def sample(
        self, noise, latent_image, sampler, sigmas, denoise_mask=None, callback=None, disable_pbar=False, seed=None
    ):
        if self.method.name == VELOCITY_MASK:
            return super().sample(noise, latent_image, sampler, sigmas, denoise_mask, callback, disable_pbar, seed)
        require_deterministic(sampler)
        if not bool(latent_image.any()):
            raise ValueError(
                "latent_image: expected the picture to edit, got an empty latent. Connect VAE Encode to the sampler's latent_image."
            )
        steps = max(1, round(self.method.strength * (len(sigmas) - 1))) if self.method.strength > 0 else 0
        sigmas = sigmas[len(sigmas) - 1 - steps :]
        if len(sigmas) < 2:
            return latent_image
        if float(sigmas[-1]) != 0.0:
            raise ValueError(
                f"sigmas: expected a schedule that ends at 0, got {float(sigmas[-1]):.4g} at the end. Connect the whole schedule."
            )
        mask = self.mask
        if denoise_mask is not None:  # a sampler would mix noise into the source there
            both = [_fitted(each, latent_image) for each in (mask, denoise_mask) if each is not None]
            self.mask = torch.minimum(*torch.broadcast_tensors(both[0], both[-1]))
        try:
            result = super().sample(
                noise, latent_image, sampler, sigmas, None, callback and self._showing(callback), disable_pbar, seed
            )
            change = result - self.model_patcher.model.process_latent_out(self.start.to(result))
            return latent_image.to(result) + change
        finally:
            self.mask, self.start, self.picture = mask, None, None

    def inner_sample(self, noise, latent_image, device, sampler, sigmas, *args, **kwargs):
        if self.method.name == FLOW_EDIT:
            self.picture = self.inner_model.process_latent_in(latent_image)
            scale = self.inner_model.model_sampling.noise_scaling
            at_maximum = sampler.max_denoise(self, sigmas)
            zero = torch.zeros_like(noise)
            # The noise with which the sampler begins near 0, where x has the finest steps.
            noise = -scale(sigmas[0], zero.clone(), self.picture, at_maximum)
            noise = noise / scale(sigmas[0], torch.ones_like(noise), zero, at_maximum)
        return super().inner_sample(noise, latent_image, device, sampler, sigmas, *args, **kwargs)

    def predict_noise(self, x, timestep, model_options={}, seed=None):  # noqa: B006, core's signature
        if self.method.name == VELOCITY_MASK:
            source = self._guided("source", x, timestep, model_options)
            difference = self._guided("positive", x, timestep, model_options) - source
            mask = _by_difference(difference)
            weight = mask + self.method.omega * (1.0 + mask)
            return source + self._masked(weight * difference)
        if self.start is None:
            self.start = x.clone()
        z = self.picture + (x - self.start)
        change = torch.zeros_like(x)
        for average in range(self.method.averages):
            noise = noise_of_level(x, float(timestep[0]), (seed or 0) + average)
            noised = self.inner_model.model_sampling.noise_scaling(
                timestep.view(-1, *[1] * (x.ndim - 1)), noise, self.picture, False
            )
            source = self._guided("source", noised, timestep, model_options)
            target = self._guided("positive", noised + (z - self.picture), timestep, model_options)
            change += (target - source) / self.method.averages
        return self.start + self._masked(change)

    def _guided(self, prompt: str, x: torch.Tensor, timestep: torch.Tensor, model_options: dict) -> torch.Tensor:
        negative, cfg = ("negative", self.cfg) if prompt == "positive" else ("source_negative", self.cfg_source)
        return comfy.samplers.sampling_function(
            self.inner_model, x, timestep, self.conds[negative], self.conds[prompt], cfg, model_options
        )

    def _masked(self, change: torch.Tensor) -> torch.Tensor:
        return change if self.mask is None else change * _fitted(self.mask, change)

    def _showing(self, callback):
        """Previews show the edited picture, not the sampler's x."""

        def show(step: int, denoised: torch.Tensor, x: torch.Tensor, total: int) -> None:
            callback(step, denoised - self.start + self.picture, x, total)

        return show


def noise_of_level(like: torch.Tensor, sigma: float, seed: int) -> torch.Tensor:
    """New noise for each level, the same whenever a sampler asks at that level again."""
    level = int.from_bytes(struct.pack("<f", sigma), "little")
    generator = torch.Generator().manual_seed((seed * 0x9E3779B1 + level) % 2**63)
    return torch.randn(like.shape, generator=generator, dtype=torch.float32).to(like)


def _by_difference(difference: torch.Tensor) -> torch.Tensor:
    """[B, 1, ...] in 0 .. 1: where two predictions differ most."""
    mean = difference.abs().mean(1, keepdim=True)
    low, high = mean.flatten(1).amin(1), mean.flatten(1).amax(1)
    shape = (-1, *[1] * (mean.ndim - 1))
    return (mean - low.view(shape)) / (high - low).clamp_min(1e-12).view(shape)


def _fitted(mask: torch.Tensor, latent: torch.Tensor) -> torch.Tensor:
    """A mask [pictures or frames, height, width] at a latent's size, to multiply it with."""
    values = mask.to(latent.device, torch.float32)
    values = values.reshape(-1, 1, *values.shape[-2:])
    if latent.ndim == 5 and latent.shape[2] > 1 and len(values) not in (1, len(latent)):
        clips = len(latent) if len(values) % len(latent) == 0 else 1
        values = values.view(clips, 1, -1, *values.shape[-2:])
        return F.interpolate(values, latent.shape[-3:], mode="trilinear", align_corners=False).clamp(0.0, 1.0)
    values = F.interpolate(values, latent.shape[-2:], mode="bilinear", align_corners=False).clamp(0.0, 1.0)
    return values.view(len(values), 1, *[1] * (latent.ndim - 4), *values.shape[-2:])
