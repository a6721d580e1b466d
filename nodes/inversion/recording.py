"""Record the path a sampler takes, so that a generated picture can be edited like an inverted one."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import comfy.samplers
import latent_preview
import torch

from ..diffusion.conditioning import Conditioning
from ..diffusion.samplers import RECORDABLE, require_deterministic
from ..diffusion.schedule import require_descending_to_zero
from ..diffusion.trajectory import ModelFingerprint, Trajectory, require_whole_latent


class Asked:
    """Stands between core's masking of the latent and the guider: keeps the last x that the guider was asked about."""

    def __init__(self, guider: comfy.samplers.CFGGuider) -> None:
        self.guider = guider
        self.x: torch.Tensor | None = None

    def __call__(self, x: torch.Tensor, sigma: torch.Tensor, **options: Any) -> torch.Tensor:
        self.x = x
        return self.guider(x, sigma, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.guider, name)


def recorded(sampler: comfy.samplers.KSAMPLER, path: list[torch.Tensor]) -> comfy.samplers.KSAMPLER:
    """The sampler, which in its run also writes x at every level to `path`, on the CPU, as the model is asked about it.

    A sampler calls back once in each step, after the evaluation at the step's own level. What it hands over there is not
    always that level's x: deis and ipndm hand over the x of the first step, uni_pc one that it has corrected since.
    """
    function = sampler.sampler_function

    @functools.wraps(function)
    def recording(
        model: comfy.samplers.KSamplerX0Inpaint,
        x: torch.Tensor,
        sigmas: torch.Tensor,
        extra_args: dict[str, Any],
        callback: Callable[[dict[str, Any]], None],
        disable: bool | None,
        **options: Any,
    ) -> torch.Tensor:
        del path[-1:]  # a guider that samples in stages goes on where the stage before ended
        asked = Asked(model.inner_model)
        model = copy.copy(model)
        model.inner_model = asked

        def step_done(state: dict[str, Any]) -> None:
            path.append(asked.x.to(device="cpu", dtype=torch.float32, copy=True))
            callback(state)

        x = function(model, x, sigmas, extra_args=extra_args, callback=step_done, disable=disable, **options)
        path.append(asked.inner_model.model_sampling.inverse_noise_scaling(sigmas[-1], x).float().cpu())
        return x

    recorder = copy.copy(sampler)
    recorder.sampler_function = recording
    return recorder


def sample_trajectory(
    guider: comfy.samplers.CFGGuider,
    noise: Any,
    sampler: comfy.samplers.KSAMPLER,
    sigmas: torch.Tensor,
    latent: dict,
    disable_pbar: bool,
) -> tuple[torch.Tensor, Trajectory]:
    """Sample as SamplerCustomAdvanced does; returns the samples [B, C, H, W] and the trajectory they came by."""
    require_deterministic(sampler, allowed=RECORDABLE)
    require_descending_to_zero(sigmas)
    positive = original_conditioning(guider)
    model = guider.model_patcher
    require_whole_latent(latent["samples"], model)
    path: list[torch.Tensor] = []
    samples = guider.sample(
        noise.generate_noise(latent),
        latent["samples"],
        recorded(sampler, path),
        sigmas.clone(),  # uni_pc writes into it
        denoise_mask=latent.get("noise_mask"),
        callback=latent_preview.prepare_callback(model, len(sigmas) - 1),
        disable_pbar=disable_pbar,
        seed=noise.seed,
    )
    trajectory = Trajectory(
        latents=torch.stack(path),
        sigmas=sigmas.float().cpu(),
        positive=positive,
        model=ModelFingerprint.of(model),
        method="sampled",
        residuals=torch.full((len(sigmas) - 1,), float("nan")),
        cfg=classifier_free_guidance(guider),
    )
    return samples, trajectory


def classifier_free_guidance(guider: comfy.samplers.CFGGuider) -> float | None:
    """None for a guider that is set otherwise than by one cfg, such as DualCFGGuider, whose `cfg` nothing sets."""
    own = type(guider).set_cfg is not comfy.samplers.CFGGuider.set_cfg
    return None if own else float(guider.cfg)


def original_conditioning(guider: comfy.samplers.CFGGuider) -> Conditioning:
    """The CONDITIONING a guider was given as positive; undoes comfy.sampler_helpers.convert_cond."""
    conditioning = []
    for cond in guider.original_conds.get("positive", []):
        extra = {key: value for key, value in cond.items() if key not in ("cross_attn", "model_conds", "uuid")}
        conditioning.append([cond.get("cross_attn"), extra])
    if not conditioning:
        raise ValueError(
            "guider: expected one with a positive conditioning, whose text the trajectory keeps as its source, "
            f"got {type(guider).__name__} with {', '.join(guider.original_conds) or 'none'}. Use CFG Guider or Basic Guider."
        )
    return conditioning
