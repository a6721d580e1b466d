"""Ancestral sampling with the variance that the decoder predicts, as published (2102.09672; Karlo)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import comfy.model_patcher
import comfy.samplers
import torch
from comfy.k_diffusion.sampling import default_noise_sampler

from ..respaced_schedule import RespacedSchedule, respaced, visiting
from .decoder_model import UnCLIPDecoder
from .decoder_network import VARIANCE

SPACINGS = ("published", "sigmas")
NoiseSampler = Callable[[float, float], torch.Tensor]


class LearnedVariance:
    """Collects the variance channels of model calls, and combines those of positive conditions as core combines predictions."""

    def __init__(self) -> None:
        self._rows: dict[Any, torch.Tensor] = {}

    def __call__(self, variance: torch.Tensor, transformer_options: Mapping[str, Any]) -> None:
        uuids = transformer_options["uuids"]
        self._rows.update(zip(uuids, variance.chunk(len(uuids)), strict=True))

    def of(self, positive: list[dict], x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        """[B, C, H, W], about -1 (the posterior's variance) to 1 (beta). Guidance does not act on it."""
        total, weight = torch.zeros_like(x), torch.full_like(x, 1e-37)
        for cond in positive:
            part = comfy.samplers.get_area_and_mult(cond, x, sigma)
            if part is None or cond["uuid"] not in self._rows:
                continue
            top, left, height, width = (0, 0, *x.shape[2:])
            if part.area is not None:
                height, width, top, left = part.area
            place = (..., slice(top, top + height), slice(left, left + width))
            total[place] += self._rows[cond["uuid"]].to(total) * part.mult
            weight[place] += part.mult
        self._rows.clear()
        return total / weight


def levels_of(sigmas: torch.Tensor, sampling: Any, spacing: str) -> RespacedSchedule:
    """The training steps to visit: those nearest to the sigmas, or for a whole schedule as many steps, spaced as published."""
    whole = float(sigmas[0]) >= float(sampling.sigma_max) * (1 - 1e-5) and float(sigmas[-1]) == 0.0
    if spacing == "published" and whole and len(sigmas) > 2:
        return respaced(len(sigmas) - 1)
    levels = sampling.timestep(sigmas.clamp_min(1e-12)).cpu()
    levels[sigmas.cpu() == 0] = -1
    return visiting(torch.unique_consecutive(levels))


@torch.no_grad()
def sample_unclip(
    model: comfy.samplers.KSamplerX0Inpaint,
    x: torch.Tensor,
    sigmas: torch.Tensor,
    extra_args: dict[str, Any],
    callback: Callable[[dict], None] | None = None,
    disable: bool | None = None,
    spacing: str = "published",
    noise_sampler: NoiseSampler | None = None,
) -> torch.Tensor:
    """A sampler function like core's: x [B, C, H, W] at sigmas[0] -> x at sigmas[-1]. The decoder's MODEL clips x0 itself."""
    guider = model.inner_model
    require_learned_variance(guider)
    require_schedule(sigmas)
    noise_sampler = noise_sampler or default_noise_sampler(x, seed=extra_args.get("seed"))
    variance = LearnedVariance()
    options = comfy.model_patcher.create_model_options_clone(extra_args["model_options"])
    options.setdefault("transformer_options", {})[VARIANCE] = variance
    extra_args = {**extra_args, "model_options": options}

    schedule = levels_of(sigmas, guider.inner_model.model_sampling, spacing)
    ones = x.new_ones(x.shape[0])
    x = x / (1 + sigmas[0] ** 2) ** 0.5  # variance-preserving, as the posterior is written
    for i in range(len(schedule)):
        alpha_bar, alpha_bar_next = float(schedule.alpha_bar[i]), float(schedule.alpha_bar_next[i])
        sigma, scaled = ones * (1 / alpha_bar - 1) ** 0.5, x / alpha_bar**0.5
        denoised = model(scaled, sigma, **extra_args)
        if callback is not None:
            callback({"i": i, "x": scaled, "sigma": sigma[0], "sigma_hat": sigma[0], "denoised": denoised})
        x = schedule.posterior_mean(i, x, denoised)
        if alpha_bar_next < 1:
            log_variance = schedule.learned_log_variance(i, variance.of(guider.conds["positive"], scaled, sigma))
            x = x + (0.5 * log_variance).exp() * noise_sampler(sigma[0], (1 / alpha_bar_next - 1) ** 0.5)
    return x * (1 + sigmas[-1] ** 2) ** 0.5


def require_schedule(sigmas: torch.Tensor) -> None:
    """Infinite or NaN levels would sample a picture of NaN, ascending ones a picture of noise."""
    if bool(torch.isfinite(sigmas).all()) and bool((sigmas[1:] <= sigmas[:-1]).all()) and float(sigmas[-1]) >= 0:
        return
    got = ", ".join(f"{float(sigma):.4g}" for sigma in sigmas[:6]) + (", ..." if len(sigmas) > 6 else "")
    raise ValueError(
        f"sigmas: expected noise levels from high to low, all finite, got {got}. Choose another scheduler or more steps (kl_optimal "
        "needs at least 2), and do not flip the sigmas."
    )


def require_learned_variance(guider: comfy.samplers.CFGGuider) -> None:
    model = guider.inner_model
    if not isinstance(model, UnCLIPDecoder) or not model.diffusion_model.learns_variance:
        raise ValueError(
            f"sampler: expected an unCLIP decoder, whose network learned a variance, got {type(model).__name__}. Connect the model of "
            "unCLIP Load Decoder, or another sampler to this one."
        )
    if "positive" not in guider.conds:
        raise ValueError(
            f"sampler: expected a guider with a positive conditioning, got one with {', '.join(guider.conds) or 'none'}. Use CFGGuider."
        )
