"""DDIM inversion: carry a picture's latent up a sampling schedule to the noise that sampling turns back into it."""

from __future__ import annotations

import comfy.model_management
import comfy.samplers
import latent_preview
import torch
from comfy.model_patcher import ModelPatcher

from ..diffusion.trajectory import Conditioning, ModelFingerprint, Trajectory, require_descending_to_zero
from .solvers import Effort, Level, Solution, ddim_step, euler_step, fixed_point_step

METHODS = ("ddim", "euler", "fixed_point")
CONVERGED = 2e-3  # residual above which an artist is told that the inversion is not exact


class InversionSampler(comfy.samplers.Sampler):
    """Runs inside a guider like any sampler, so that loading, conditions, previews and cancel are ComfyUI's own."""

    def __init__(self, method: str, iterations: int) -> None:
        self.method = method
        self.iterations = iterations
        self.path: list[torch.Tensor] = []  # from the picture up, [B, C, H, W] on the CPU
        self.residuals: list[float] = []
        self.evaluations = 0

    def sample(
        self, model_wrap, sigmas, extra_args, callback, noise, latent_image=None, denoise_mask=None, disable_pbar=False
    ) -> torch.Tensor:
        sampling = model_wrap.inner_model.model_sampling
        total = len(sigmas) - 1
        x = latent_image
        ones = x.new_ones(x.shape[0])
        solution: Solution | None = None
        self.path.append(x.float().cpu())

        def denoise(x: torch.Tensor, sigma: float) -> torch.Tensor:
            self.evaluations += 1
            return model_wrap(x, ones * sigma, **extra_args)

        levels = sigmas.flip(0).tolist()
        for i, level in enumerate(map(Level, levels[:-1], levels[1:])):
            if self.method == "ddim":
                x = ddim_step(denoise, x, level, sampling)
                self.residuals.append(float("nan"))
            elif self.method == "euler":
                x = euler_step(denoise, x, level)
                self.residuals.append(float("nan"))
            else:
                d = solution.d if solution else None
                effort = Effort.for_step(self.iterations, self.evaluations, i, total)
                solution = fixed_point_step(denoise, x, level, d, effort)
                x = solution.x
                self.residuals.append(solution.residual)
            self.path.append(x.float().cpu())
            if callback is not None:
                callback(i, x / (level.high**2 + 1) ** 0.5, x, total)
        return x


def invert(
    model: ModelPatcher,
    positive: Conditioning,
    latent: torch.Tensor,
    sigmas: torch.Tensor,
    method: str = "fixed_point",
    iterations: int = 5,
) -> Trajectory:
    """The trajectory of `latent` [B, C, H, W] (as a VAE gives it) up the descending schedule `sigmas` [T+1], at guidance 1.

    `method`: "ddim" and "euler" spend T evaluations of the model, "fixed_point" at most `iterations` * T.
    """
    if method not in METHODS:
        raise ValueError(f"method: expected one of {', '.join(METHODS)}, got {method!r}.")
    require_descending_to_zero(sigmas)
    require_invertible_latent(model, latent)
    sampler = InversionSampler(method, iterations)
    guider = comfy.samplers.CFGGuider(model)
    guider.inner_set_conds({"positive": positive})
    guider.set_cfg(1.0)
    # The schedule's own device and order; the sampler walks it upwards.
    guider.sample(
        torch.zeros_like(latent),
        latent,
        sampler,
        sigmas,
        callback=latent_preview.prepare_callback(model, len(sigmas) - 1),
        disable_pbar=True,
        seed=0,
    )
    return Trajectory(
        latents=torch.stack(sampler.path[::-1]),
        sigmas=sigmas.float().cpu(),
        positive=positive,
        model=ModelFingerprint.of(model),
        method=method,
        residuals=torch.tensor(sampler.residuals[::-1], dtype=torch.float32),
    )


def require_invertible_latent(model: ModelPatcher, latent: torch.Tensor) -> None:
    channels = model.get_model_object("latent_format").latent_channels
    if latent.is_nested or latent.ndim != 4 or latent.shape[1] != channels:
        shape = "a nested latent" if latent.is_nested else tuple(latent.shape)
        raise ValueError(
            f"latent_image: expected a picture's latent of this model, [batch, {channels}, height, width], got {shape}. "
            "Encode the picture with the VAE that belongs to the model."
        )
    if not bool(latent.any()):
        raise ValueError("latent_image: expected the latent of a picture, got an empty one. Connect a VAE Encode node.")
    if not bool(torch.isfinite(latent).all()):
        raise ValueError(
            "latent_image: expected finite values, got NaN or infinity. Try the VAE in float32 (--fp32-vae)."
        )


def convergence_report(trajectory: Trajectory) -> tuple[str, bool]:
    """A line short enough for the node on how exact the inversion is, and whether fixed_point converged everywhere."""
    if trajectory.method != "fixed_point":
        return f"{trajectory.method}: approximate, residual not measured", True
    residuals = trajectory.residuals
    bad = int((residuals > CONVERGED).sum() + (~torch.isfinite(residuals)).sum())
    worst = f"residual {float(torch.nan_to_num(residuals, nan=torch.inf).max()):.1e}"
    if bad:
        return f"{worst}: {bad} of {trajectory.steps} steps not converged. Raise iterations.", False
    return f"{worst}: converged", True
