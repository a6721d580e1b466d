"""Record the path a sampler takes, so that a generated picture can be edited like an inverted one."""

from __future__ import annotations

from typing import Any

import comfy.samplers
import latent_preview
import torch

from ..diffusion.conditioning import Conditioning
from ..diffusion.samplers import require_deterministic, sampler_name
from ..diffusion.schedule import require_descending_to_zero
from ..diffusion.trajectory import ModelFingerprint, Trajectory


class RecordingSampler(comfy.samplers.KSAMPLER):
    """Samples as another sampler does and keeps x at every level, before ComfyUI rescales the result."""

    def __init__(self, sampler: comfy.samplers.KSAMPLER) -> None:
        super().__init__(sampler.sampler_function, sampler.extra_options, sampler.inpaint_options)
        self.path: dict[int, torch.Tensor] = {}

    def sample(
        self, model_wrap, sigmas, extra_args, callback, noise, latent_image=None, denoise_mask=None, disable_pbar=False
    ) -> torch.Tensor:
        def record(i: int, denoised: torch.Tensor, x: torch.Tensor, total: int) -> None:
            self.path[i] = x.float().cpu().clone()
            if callback is not None:
                callback(i, denoised, x, total)

        x = super().sample(model_wrap, sigmas, extra_args, record, noise, latent_image, denoise_mask, disable_pbar)
        self.path[len(sigmas) - 1] = x.float().cpu().clone()
        return x


def sample_trajectory(
    guider: comfy.samplers.CFGGuider,
    noise: Any,
    sampler: comfy.samplers.KSAMPLER,
    sigmas: torch.Tensor,
    latent: dict,
    disable_pbar: bool,
) -> tuple[torch.Tensor, Trajectory]:
    """Sample as SamplerCustomAdvanced does; returns the samples [B, C, H, W] and the trajectory they came by."""
    require_deterministic(sampler)
    require_descending_to_zero(sigmas)
    model = guider.model_patcher
    recorder = RecordingSampler(sampler)
    samples = guider.sample(
        noise.generate_noise(latent),
        latent["samples"],
        recorder,
        sigmas,
        denoise_mask=latent.get("noise_mask"),
        callback=latent_preview.prepare_callback(model, len(sigmas) - 1),
        disable_pbar=disable_pbar,
        seed=noise.seed,
    )
    if len(recorder.path) != len(sigmas):
        raise ValueError(
            f"sampler: expected one state for each of {len(sigmas)} sigmas, {sampler_name(sampler)} reported {len(recorder.path)}. "
            "Use euler."
        )
    trajectory = Trajectory(
        latents=torch.stack([recorder.path[i] for i in range(len(sigmas))]),
        sigmas=sigmas.float().cpu(),
        positive=original_conditioning(guider),
        model=ModelFingerprint.of(model),
        method="sampled",
        residuals=torch.full((len(sigmas) - 1,), float("nan")),
    )
    return samples, trajectory


def original_conditioning(guider: comfy.samplers.CFGGuider) -> Conditioning:
    """The CONDITIONING a guider was given as positive; undoes comfy.sampler_helpers.convert_cond."""
    conditioning = []
    for cond in guider.original_conds.get("positive", []):
        extra = {key: value for key, value in cond.items() if key not in ("cross_attn", "model_conds", "uuid")}
        conditioning.append([cond.get("cross_attn"), extra])
    if not conditioning:
        raise ValueError(
            "guider: expected one with a positive conditioning, whose text the trajectory keeps as its source, "
            f"got {type(guider).__name__} with {', '.join(guider.original_conds) or 'none'}."
        )
    return conditioning
