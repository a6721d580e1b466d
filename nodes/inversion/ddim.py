"""DDIM inversion: carry a picture's latent up a sampling schedule to the noise that sampling turns back into it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import comfy.model_patcher
import comfy.sample
import comfy.samplers
import torch
from comfy.model_patcher import ModelPatcher

from ..attention.calls import ModelOptions
from ..diffusion.conditioning import Conditioning, at_guidance_1, is_guidance_distilled
from ..diffusion.evaluation import Inside, run_inside
from ..diffusion.hooks import follow_schedules
from ..diffusion.patched_model import require_repeatable, require_unedited, without_step_caches
from ..diffusion.schedule import require_descending_to_zero, require_whole_picture
from ..diffusion.trajectory import ModelFingerprint, Trajectory, require_whole_latent
from .solvers import Effort, Level, ddim_step, euler_step, fixed_point_step

if TYPE_CHECKING:
    from comfy.model_base import BaseModel

METHODS = ("ddim", "euler", "fixed_point")
CONVERGED = 2e-3  # residual above which an artist is told that the inversion is not exact


def invert(
    model: ModelPatcher,
    positive: Conditioning,
    latent: torch.Tensor,
    sigmas: torch.Tensor,
    method: str = "fixed_point",
    iterations: int = 5,
    negative: Conditioning | None = None,
    cfg: float = 1.0,
) -> Trajectory:
    """The trajectory of `latent` [B, C, H, W] or [B, C, frames, H, W] (as a VAE gives it) up the descending schedule `sigmas` [T+1].

    `method`: "ddim" and "euler" spend T evaluations of the model, "fixed_point" at most `iterations` * T.
    `negative` is read if `cfg` is not 1: then each of them evaluates both prompts, as a sampler would.
    A guidance-distilled model reads its guidance as 1, at which such models are published to be inverted, whatever the prompts say.
    """
    if method not in METHODS:
        raise ValueError(f"method: expected one of {', '.join(METHODS)}, got {method!r}.")
    guided = not math.isclose(cfg, 1.0)
    if guided and negative is None:
        raise ValueError(
            f"negative: expected a negative prompt, because cfg is {cfg:g}, got none. Connect the sampler's negative prompt, or set cfg to 1."
        )
    if is_guidance_distilled(model):
        positive, negative = at_guidance_1(positive), at_guidance_1(negative or [])
    require_descending_to_zero(sigmas)
    require_unedited(model)
    _require_noise(model, float(sigmas[0]))
    latent = comfy.sample.fix_empty_latent_channels(model, latent)  # video models take one picture as a frame
    require_invertible_latent(model, latent)
    guider = comfy.samplers.CFGGuider(without_step_caches(model))
    guider.inner_set_conds({"positive": positive, "negative": negative if guided else positive})
    guider.set_cfg(cfg if guided else 1.0)
    if guided:
        require_whole_picture(guider.original_conds)
    else:
        guider.model_options = without_guidance(guider.model_options)
    found: list[Climb] = []

    def walk(inside: Inside) -> None:
        require_repeatable(inside)
        found.append(climb(inside, method, iterations))

    run_inside(guider, latent, sigmas, len(sigmas) - 1, walk)
    [(path, residuals)] = found
    return Trajectory(
        latents=torch.stack(path[::-1]),
        sigmas=sigmas.float().cpu(),
        positive=positive,
        model=ModelFingerprint.of(model),
        method=method,
        residuals=torch.tensor(residuals[::-1], dtype=torch.float32),
        cfg=float(guider.cfg),
    )


def without_guidance(model_options: ModelOptions) -> ModelOptions:
    """A copy with which guidance of any strength and kind does nothing: the negative prompt is the positive, and evaluated with it.

    At guidance 1 core leaves the negative out, and guidance of other nodes then compares the positive with nothing.
    """
    options = comfy.model_patcher.create_model_options_clone(model_options)
    # Guidance that says that it reads the negative may do so inside the network, where it has to be evaluated by itself.
    if not options.get("disable_cfg1_optimization") and "sampler_calc_cond_batch_function" not in options:
        options["sampler_calc_cond_batch_function"] = _evaluated_once
    options["disable_cfg1_optimization"] = True
    return options


def _evaluated_once(args: dict[str, Any]) -> list[torch.Tensor]:
    positive, _ = args["conds"]
    [denoised] = comfy.samplers.calc_cond_batch(
        args["model"], [positive], args["input"], args["sigma"], args["model_options"]
    )
    return [denoised, denoised.clone()]


Climb = tuple[list[torch.Tensor], list[float]]


def climb(inside: Inside, method: str, iterations: int = 1) -> Climb:
    """x [B, C, H, W] on the CPU at every level and the residual of every step, both from the picture up, as the guider predicts."""
    path: list[torch.Tensor] = []
    residuals: list[float] = []
    total = len(inside.sigmas) - 1
    levels = inside.sigmas.flip(0).tolist()
    sampling = inside.model.model_sampling
    precision = rounding(inside.model)
    asked = math.nan

    def guided(x: torch.Tensor, sigma: float) -> torch.Tensor:
        nonlocal asked
        if sigma != asked:
            follow_schedules(inside, sigma)
            asked = sigma
        return inside.guided(x, sigma)

    x, d, spent = inside.latent, None, 0
    path.append(x.float().cpu())
    for i, level in enumerate(map(Level, levels[:-1], levels[1:])):
        residual = math.nan
        if method == "ddim":
            x = ddim_step(guided, x, level, sampling)
        elif method == "euler":
            x = euler_step(guided, x, level)
        else:
            effort = Effort.for_step(iterations, spent, i, total, precision)
            solution = fixed_point_step(guided, x, level, d, effort)
            x, d, residual = solution.x, solution.d, solution.residual
            spent += solution.evaluations
        path.append(x.float().cpu())
        residuals.append(residual)
        inside.show(i, x / (level.high**2 + 1) ** 0.5, x)
    return path, residuals


def _require_noise(model: ModelPatcher, sigma: float) -> None:
    """Raise ValueError for models that turn one picture into another, as those that see depth: they start from no noise."""
    sampling = model.get_model_object("model_sampling")
    zero = torch.zeros(())
    if float(sampling.noise_scaling(torch.tensor(sigma), zero + 1, zero, True)) == 0.0:
        raise ValueError(
            "model: expected one that draws a picture from noise, got one that turns one picture into another. Connect an image model."
        )


def require_invertible_latent(model: ModelPatcher, latent: torch.Tensor) -> None:
    require_whole_latent(latent, model)
    if not bool(latent.any()):
        raise ValueError("latent_image: expected the latent of a picture, got an empty latent. Connect VAE Encode.")
    if not bool(torch.isfinite(latent).all()):
        raise ValueError(
            "latent_image: expected finite values, got NaN or infinity. Run the VAE in float32: start ComfyUI with --fp32-vae."
        )


def rounding(model: BaseModel) -> float:
    """Of the numbers the network computes in: 8e-3 in bfloat16, 1e-3 in float16."""
    return torch.finfo(model.get_dtype_inference()).eps


def convergence_report(trajectory: Trajectory, precision: float = 0.0) -> tuple[str, bool]:
    """A line short enough for the node on how exact the inversion is, and whether fixed_point converged everywhere.

    precision: the model's `rounding`, below which no iteration can bring a residual.
    """
    if trajectory.method != "fixed_point":
        return f"{trajectory.method}: approximate, residual not measured", True
    residuals = trajectory.residuals
    bad = int((residuals > max(CONVERGED, precision)).sum() + (~torch.isfinite(residuals)).sum())
    worst = f"residual {float(torch.nan_to_num(residuals, nan=torch.inf).max()):.1e}"
    if bad:
        return f"{worst}: {bad} of {trajectory.steps} steps not converged. Raise iterations.", False
    return f"{worst}: converged", True
