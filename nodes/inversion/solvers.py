"""One upward step of an inversion: from a latent at one noise level to the latent at the next higher one.

All three solve the same equation of DDIM with eta 0, which in sigma space is Euler's step (2010.02502 eq. 12; 2206.00364):
x(low) = x(high) + d(x(high), sigma(high)) * (sigma(low) - sigma(high)), with d(x, sigma) = (x - denoised(x, sigma)) / sigma.
They differ in where d is evaluated while x(high) is still unknown.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from ..diffusion.retracing import DDIMStep

Denoiser = Callable[[torch.Tensor, float], torch.Tensor]  # (x [B, ...], sigma) -> denoised [B, ...]


@dataclass(frozen=True)
class Level:
    """One step of the inversion: x at `low` (0 at the picture) is carried up to `high`."""

    low: float
    high: float

    @property
    def width(self) -> float:
        return self.high - self.low


def slope(x: torch.Tensor, denoised: torch.Tensor, sigma: float) -> torch.Tensor:
    return (x - denoised) / sigma


def euler_step(denoise: Denoiser, x: torch.Tensor, level: Level) -> torch.Tensor:
    """d at the source level, as CompVis' PnP and DDPM_inversion do. At sigma 0, where d has no value, at the target level."""
    sigma = level.low if level.low > 0 else level.high
    return x + slope(x, denoise(x, sigma), sigma) * level.width


def ddim_step(denoise: Denoiser, x: torch.Tensor, level: Level, sampling: Any) -> torch.Tensor:
    """d from the source latent at the target timestep, as null-text inversion, pnp-diffusers and diffusers' DDIMInverseScheduler do.

    The network sees exactly the input it would see at `low`, with the timestep of `high`; its answer is then read at `low`.
    sampling: the model's sampling object.
    """
    step = DDIMStep(level.low, level.high, sampling)
    asked = x * step.scale
    return x + step.slope(asked, denoise(asked, level.high)) * level.width


@dataclass(frozen=True)
class Solution:
    x: torch.Tensor
    residual: float  # relative error by which one Euler step from the last guess missed the latent below; x is one update better
    d: torch.Tensor  # slope last evaluated; the first guess of the next step
    evaluations: int


@dataclass(frozen=True)
class Effort:
    """What one step of fixed_point may spend: until `exact` within `iterations`, until `sufficient` within `most`.

    rounding: of the numbers the network computes in. A residual below it that an evaluation no longer halves is noise.
    """

    iterations: int
    most: int
    rounding: float = 0.0
    exact: float = 1e-6  # relative residual; below it float32 networks answer with rounding noise
    sufficient: float = 5e-4
    BORROWING: ClassVar[int] = 4

    @classmethod
    def for_step(cls, iterations: int, spent: int, step: int, steps: int, rounding: float = 0.0) -> Effort:
        """The whole inversion never costs more than iterations * steps evaluations, `spent` of them before this step.

        The steps next to the picture, which come first, are the hard ones, and most others converge early: from
        BORROWING iterations on, every later step lends one evaluation. A hard step takes half of what there is to lend.
        """
        kept = iterations - 1 if iterations >= cls.BORROWING else iterations
        spare = iterations * steps - spent - iterations - kept * (steps - step - 1)
        return cls(iterations, iterations + spare // 2, rounding)

    def is_enough(self, evaluations: int, residual: float, before: float) -> bool:
        """before: the residual of the evaluation before this one, infinite at the first."""
        return (
            residual <= self.exact
            or before / 2 < residual <= self.rounding
            or evaluations >= self.most
            or (evaluations >= self.iterations and residual <= self.sufficient)
        )


def fixed_point_step(
    denoise: Denoiser, x: torch.Tensor, level: Level, d: torch.Tensor | None, effort: Effort
) -> Solution:
    """Solve y = x + d(y, high) * width for y: the exact inverse of the Euler step down from `high`.

    Fixed-point iteration (2312.12540; ReNoise 2403.14602) with Anderson mixing (Walker & Ni 2011, type II): plain iteration
    contracts only like 1 - low/high, which is slow where sigma drops by a large factor in one step.
    `d` is a guess of the slope.
    """
    y = x if d is None else x + d * level.width
    mixing = AndersonMixing(depth=3)
    before = math.inf
    for evaluations in itertools.count(1):
        d = slope(y, denoise(y, level.high), level.high)
        mapped = x + d * level.width
        residual = relative_error(y, mapped)
        y = mapped if residual <= effort.exact else mixing.next(y, mapped)
        if effort.is_enough(evaluations, residual, before):
            return Solution(y, residual, d, evaluations)
        before = residual


class AndersonMixing:
    """Anderson acceleration of y <- g(y), for each row of the batch on its own, so that rows cannot influence each other."""

    def __init__(self, depth: int) -> None:
        self.depth = depth
        self.history: list[tuple[torch.Tensor, torch.Tensor]] = []  # (g(y), g(y) - y), each [B, N]

    def next(self, y: torch.Tensor, mapped: torch.Tensor) -> torch.Tensor:
        flat = mapped.flatten(1)
        residual = flat - y.flatten(1)
        self.history = [*self.history[-self.depth :], (flat, residual)]
        if len(self.history) == 1:
            return mapped
        d_residual = torch.stack([residual - r for _, r in self.history[:-1]], dim=2)  # [B, N, k]
        d_mapped = torch.stack([flat - g for g, _ in self.history[:-1]], dim=2)
        # A k x k system for each row, k <= depth: solved on the CPU, because float64 is not to be had on every device.
        gram = (d_residual.mT @ d_residual).cpu().double()
        ridge = 1e-10 * gram.diagonal(dim1=1, dim2=2).amax(1).clamp_min(1e-300)
        gram = gram + torch.diag_embed(ridge[:, None].expand(-1, gram.shape[1]))
        gamma = (
            torch.linalg.solve(gram, (d_residual.mT @ residual[:, :, None]).cpu().double())
            .to(flat.dtype)
            .to(flat.device)
        )
        return (flat - (d_mapped @ gamma)[:, :, 0]).view_as(mapped)


def relative_error(a: torch.Tensor, b: torch.Tensor) -> float:
    """Largest over the batch of |a - b| / |b|, Euclidean norms per row."""
    difference = torch.linalg.vector_norm((a - b).flatten(1), dim=1)
    return float((difference / torch.linalg.vector_norm(b.flatten(1), dim=1).clamp_min(1e-12)).max())
