"""The path a picture takes between its latent and noise: the value that inversion makes and every editing node reads."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from .conditioning import Conditioning
from .schedule import require_descending_to_zero

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher


@dataclass(frozen=True)
class ModelFingerprint:
    """What must agree between the model that made a trajectory and one that reads it.

    Fine-tunes and LoRAs of one family share a fingerprint on purpose: editing with another one is legitimate.
    """

    model_class: str
    latent_format: str
    sampling: tuple[str, ...]  # schedule and prediction, e.g. ("ModelSamplingDiscrete", "EPS")
    sigma_max: float

    @classmethod
    def of(cls, model: ModelPatcher) -> ModelFingerprint:
        sampling = model.get_model_object("model_sampling")
        return cls(
            model_class=type(model.model).__name__,
            latent_format=type(model.get_model_object("latent_format")).__name__,
            sampling=tuple(sorted(base.__name__ for base in type(sampling).__bases__)),
            sigma_max=float(sampling.sigma_max),
        )

    def require_match(self, model: ModelPatcher) -> None:
        """Raise ValueError if `model` cannot follow a trajectory made by the model with this fingerprint."""
        other = ModelFingerprint.of(model)
        same_range = math.isclose(self.sigma_max, other.sigma_max, rel_tol=1e-3)
        if same_range and (self.model_class, self.latent_format, self.sampling) == (
            other.model_class,
            other.latent_format,
            other.sampling,
        ):
            return
        raise ValueError(
            f"model: expected the kind of model the trajectory was made with, {self}, got {other}. "
            "Connect the same checkpoint (a LoRA or a fine-tune of it is fine), or invert the picture again with this one."
        )

    def __str__(self) -> str:
        return f"{self.model_class} ({self.latent_format}, {'+'.join(self.sampling)}, sigma up to {self.sigma_max:.4g})"


@dataclass(frozen=True)
class Trajectory:
    """One deterministic path from noise to a picture, in sampling order.

    latents: [T+1, B, C, H, W] float32 on the CPU, in the model's sampling space (after process_latent_in);
        latents[i] is the state at sigmas[i], latents[T] the picture's own latent.
    sigmas: [T+1] float32, strictly descending to 0.
    positive: the conditioning the path was made with.
    method: "ddim", "euler", "fixed_point" for an inversion, "sampled" for a recorded generation.
    residuals: [T] float32, for the step between sigmas[i] and sigmas[i+1] the relative error by which one Euler step
        misses the next latent; NaN where it was not measured.
    """

    latents: torch.Tensor
    sigmas: torch.Tensor
    positive: Conditioning = field(repr=False)
    model: ModelFingerprint
    method: str
    residuals: torch.Tensor

    def __post_init__(self) -> None:
        if self.latents.ndim != 5 or self.latents.dtype != torch.float32:
            raise ValueError(
                f"latents: expected float32 [T+1,B,C,H,W], got {self.latents.dtype} {tuple(self.latents.shape)}"
            )
        require_descending_to_zero(self.sigmas)
        if len(self.sigmas) != len(self.latents):
            raise ValueError(f"sigmas: expected {len(self.latents)} values, one per latent, got {len(self.sigmas)}")
        if self.residuals.shape != (self.steps,):
            raise ValueError(
                f"residuals: expected {self.steps} values, one per step, got {tuple(self.residuals.shape)}"
            )

    @property
    def steps(self) -> int:
        return len(self.sigmas) - 1

    @property
    def batch(self) -> int:
        return self.latents.shape[1]

    @property
    def start(self) -> torch.Tensor:
        """The noisiest latent, [B, C, H, W]."""
        return self.latents[0]

    def step_of(self, sigma: float) -> int | None:
        """Index i with sigmas[i] == sigma up to float32 noise, None when the grid has no such value."""
        distance = (self.sigmas - sigma).abs()
        i = int(distance.argmin())
        return i if float(distance[i]) <= 1e-4 * max(sigma, 1e-3) else None

    def require_steps(self, sigmas: torch.Tensor, socket: str = "sigmas") -> None:
        """Raise ValueError unless every level of a sampler's `sigmas` is one of this trajectory's."""
        missing = [float(s) for s in sigmas if self.step_of(float(s)) is None]
        if missing:
            raise ValueError(
                f"{socket}: expected levels of the trajectory, which has {self.steps} steps from "
                f"{float(self.sigmas[0]):.4f} to 0; got {len(sigmas) - 1} steps with {len(missing)} other levels, the first "
                f"{missing[0]:.4f}. Use the same scheduler, steps and denoise for the sampler as for the inversion."
            )
