"""The path a picture takes between its latent and noise: the value that inversion makes and every editing node reads."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from .conditioning import Conditioning
from .samplers import LEAVES_OUT_A_LEVEL
from .schedule import require_descending_to_zero

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher

# Where ComfyUI's configurations of networks keep the width of the text they read, by family.
TEXT_WIDTHS = ("context_dim", "context_in_dim", "cap_feat_dim", "text_dim", "cond_seq_dim", "crossattn_emb_channels")
SAME_LATENT = 3e-3  # relative distance up to which two latents are one: float16 between two nodes costs 5e-4
SAME_DIRECTION = 1 - 1e-5  # cosine from which two latents differ by a factor at most
BESIDE = 0.5  # relative distance up to which a noisy start was meant to be the trajectory's
OTHER_NOISE = 0.3  # cosine below which a start has nothing of the trajectory's noise: a choice, not a mistake
TRAINING_STEPS = 1000  # of Stable Diffusion, from which ddim_uniform takes every n-th


@dataclass(frozen=True)
class ModelFingerprint:
    """What must agree between the model that made a trajectory and one that reads it.

    Fine-tunes and LoRAs of one family share a fingerprint on purpose: editing with another one is legitimate.
    """

    model_class: str
    latent_format: str
    sampling: tuple[str, ...]  # schedule and prediction, e.g. ("ModelSamplingDiscrete", "EPS")
    sigma_max: float
    text_width: int | None = (
        None  # None where it is not known, as in files of earlier versions: it then fits every width
    )

    @classmethod
    def of(cls, model: ModelPatcher) -> ModelFingerprint:
        sampling = model.get_model_object("model_sampling")
        network = model.model.model_config.unet_config
        return cls(
            model_class=type(model.model).__name__,
            latent_format=type(model.get_model_object("latent_format")).__name__,
            sampling=tuple(sorted(base.__name__ for base in type(sampling).__bases__)),
            sigma_max=float(sampling.sigma_max),
            text_width=next((network[key] for key in TEXT_WIDTHS if isinstance(network.get(key), int)), None),
        )

    def require_match(self, model: ModelPatcher) -> None:
        """Raise ValueError if `model` cannot follow a trajectory made by the model with this fingerprint."""
        other = ModelFingerprint.of(model)
        same_range = math.isclose(self.sigma_max, other.sigma_max, rel_tol=1e-3)
        same_text = self.text_width == other.text_width or None in (self.text_width, other.text_width)
        if (
            same_range
            and same_text
            and (self.model_class, self.latent_format, self.sampling)
            == (
                other.model_class,
                other.latent_format,
                other.sampling,
            )
        ):
            return
        raise ValueError(
            f"model: expected the kind of model the trajectory was made with, {self}, got {other}. "
            "Connect the same checkpoint (a LoRA or a fine-tune of it is fine), or invert the picture again with this one."
        )

    def __str__(self) -> str:
        text = "" if self.text_width is None else f", text of width {self.text_width}"
        return f"{self.model_class} ({self.latent_format}, {'+'.join(self.sampling)}, sigma up to {self.sigma_max:.4g}{text})"


@dataclass(frozen=True, eq=False)
class Trajectory:
    """One deterministic path from noise to a picture, in sampling order.

    latents: [T+1, B, C, H, W] float32 on the CPU, in the model's sampling space (after process_latent_in); video models
        have frames, [T+1, B, C, frames, H, W]; latents[i] is the state at sigmas[i], latents[T] the picture's own latent.
    sigmas: [T+1] float32, strictly descending to 0.
    positive: the conditioning the path was made with.
    cfg: the guidance it was made with; None where a guider has a guidance of its own kind.
    method: "ddim", "euler", "fixed_point" for an inversion, "sampled" for a recorded generation.
    residuals: [T] float32, for the step between sigmas[i] and sigmas[i+1] the relative error by which one Euler step
        misses the next latent; NaN where it was not measured.

    A path of method "ddim" needs nothing more to be retraced exactly: at sigmas[i] the model was asked about latents[i + 1],
    scaled so that the network's input is what it would be at sigmas[i + 1].
    """

    latents: torch.Tensor
    sigmas: torch.Tensor
    positive: Conditioning = field(repr=False)
    model: ModelFingerprint
    method: str
    residuals: torch.Tensor
    cfg: float | None = 1.0

    def __post_init__(self) -> None:
        if self.latents.ndim not in (5, 6) or self.latents.dtype != torch.float32:
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

    def require_steps(self, sigmas: torch.Tensor, socket: str = "sigmas", sampler: str = "") -> None:
        """Raise ValueError unless every level of a sampler's `sigmas` is one of this trajectory's.

        sampler: its name, where it is known.
        """
        missing = [float(s) for s in sigmas if self.step_of(float(s)) is None]
        if not missing:
            return
        what_to_do = "Use the same scheduler, steps and denoise for the sampler as for the inversion."
        if sampler in LEAVES_OUT_A_LEVEL:
            what_to_do = (
                f"With {sampler}, KSampler computes one step more and leaves out the second to last noise "
                "level, so its levels differ from the inversion's. Use euler."
            )
        elif len(sigmas) > len(self.sigmas) and TRAINING_STEPS % self.steps:
            what_to_do += (
                " With ddim_uniform, KSampler takes more steps than it is told if their number does not divide "
                f"{TRAINING_STEPS}. Use 20, 25, 40 or 50 steps for both."
            )
        raise ValueError(
            f"{socket}: expected noise levels of the trajectory, which has {self.steps} steps from "
            f"{float(self.sigmas[0]):.4f} to 0; got {len(sigmas) - 1} steps with {len(missing)} other levels, the first "
            f"{missing[0]:.4f}. {what_to_do}"
        )

    def require_start(self, x: torch.Tensor, sigma: float, noise_added: bool) -> None:
        """Raise ValueError for a start x [N, C, ...] at `sigma`, a level of this trajectory, that was meant to lie on it and does not.

        Let through are: its latent at that level; other noise altogether; and, where the sampler adds no noise, a latent that
        another run has left at that level. Refused are its latent of another level, and what lies close beside it.
        """
        step = self.step_of(sigma)
        here, path = x.detach().float().cpu().flatten(1), self.latents.flatten(2)
        distances = (here - path[step]).norm(dim=1) / path[step].norm(dim=1)
        alike = torch.stack([F.cosine_similarity(here, start.expand_as(here)) for start in path])  # [T+1, N]
        misplaced = alike.max(0).values > SAME_DIRECTION
        beside = (alike[step] >= OTHER_NOISE) & ((distances <= BESIDE) | torch.tensor(step == 0)) & noise_added
        wrong = distances[(distances > SAME_LATENT) & (misplaced | beside)]
        if not len(wrong):
            return
        distance = float(wrong.max())
        raise ValueError(
            f"noise, latent_image: expected a start on the trajectory, its latent at sigma {sigma:.4f} "
            f"(number {step} of {self.steps}), got one that differs from it by {100 * distance:.3g} %. "
            "Connect the sampler's sigmas to Trajectory Start and its noise to the sampler; for KSampler "
            "(Advanced) connect its latent, with add_noise disabled."
        )


def require_whole_latent(latent: torch.Tensor, model: ModelPatcher, socket: str = "latent_image") -> None:
    """Raise ValueError unless `latent` holds pictures, or clips without sound, of the kind of latents that `model` has."""
    fmt = model.get_model_object("latent_format")
    frames = ("frames",) if fmt.latent_dimensions == 3 else ()
    if (
        latent.is_nested
        or latent.ndim != 4 + len(frames)
        or latent.shape[1] != fmt.latent_channels
        or 0 in latent.shape
    ):
        wanted = ", ".join(map(str, ("batch", fmt.latent_channels, *frames, "height", "width")))
        shape = "a nested latent" if latent.is_nested else tuple(latent.shape)
        raise ValueError(
            f"{socket}: expected a latent of this model, [{wanted}], got {shape}. "
            "Encode the picture with the VAE that belongs to the model."
        )
