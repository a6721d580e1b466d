"""The cosine noise schedule of DALL-E 2 and Karlo, and the levels of it that sampling visits."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch

TRAIN_STEPS = 1000
SMALLEST_VARIANCE = 1e-20  # as published: the last step's variance is 0, whose logarithm is not finite


def squaredcos_cap_v2(train_steps: int = TRAIN_STEPS) -> torch.Tensor:
    """Betas [train_steps] in float64 (2102.09672, equation 17, with beta <= 0.999)."""
    level = [math.cos((i / train_steps + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(train_steps + 1)]
    betas = [min(1 - after / before, 0.999) for before, after in itertools.pairwise(level)]
    return torch.tensor(betas, dtype=torch.float64)


@dataclass(frozen=True)
class RespacedSchedule:
    """The levels that sampling visits, noisiest first, as float64 tensors [steps] on the CPU.

    timesteps: the network's own, int64; alpha_bar: at each step; alpha_bar_next: at the less noisy level the step goes to,
    1 for the last one; betas and posterior_variance: of the chain of visited levels, not of the training chain.

    Coefficients are computed in float64 and applied to tensors of any precision. 1 - alpha_bar near the picture has few
    digits left in float32: the last ancestral step would then give 0.9995 x0 instead of x0.
    """

    timesteps: torch.Tensor
    alpha_bar: torch.Tensor
    alpha_bar_next: torch.Tensor
    betas: torch.Tensor
    posterior_variance: torch.Tensor

    def __len__(self) -> int:
        return len(self.timesteps)

    def posterior_mean(self, i: int, x: torch.Tensor, x0: torch.Tensor) -> torch.Tensor:
        """The mean of q(x at the next level | x at level i, x0) (2006.11239, equation 7)."""
        a, b, beta = (float(values[i]) for values in (self.alpha_bar, self.alpha_bar_next, self.betas))
        return b**0.5 * beta / (1 - a) * x0 + (1 - beta) ** 0.5 * (1 - b) / (1 - a) * x

    def step(self, i: int, x: torch.Tensor, x0: torch.Tensor, noise: torch.Tensor, eta: float = 1.0) -> torch.Tensor:
        """x at the next level (2010.02502, equation 12). eta 1 is the ancestral step with the posterior's variance, eta 0 is DDIM.

        The noise in x is computed from x and x0, so that a clamped x0 is consistent.
        """
        if eta == 1.0:
            return self.posterior_mean(i, x, x0) + float(self.posterior_variance[i]) ** 0.5 * noise
        a, b = float(self.alpha_bar[i]), float(self.alpha_bar_next[i])
        variance = eta**2 * float(self.posterior_variance[i])
        eps = (x - a**0.5 * x0) / (1 - a) ** 0.5
        return b**0.5 * x0 + max(1 - b - variance, 0.0) ** 0.5 * eps + variance**0.5 * noise

    def learned_log_variance(self, i: int, fraction: torch.Tensor) -> torch.Tensor:
        """Interpolates between the logarithms of the posterior's variance (-1) and of beta (1) (2102.09672, equation 15)."""
        low = math.log(max(float(self.posterior_variance[i]), SMALLEST_VARIANCE))
        high = math.log(float(self.betas[i]))
        return low + (fraction + 1) / 2 * (high - low)


def respaced(steps: int, betas: torch.Tensor | None = None) -> RespacedSchedule:
    """`steps` levels spread evenly over the training chain, from its noisiest to its first; the cosine chain unless betas are given."""
    betas = squaredcos_cap_v2() if betas is None else betas
    if not 2 <= steps <= len(betas):
        raise ValueError(
            f"steps: expected 2 to {len(betas)}, the length of the schedule the network was trained on, got {steps}. "
            "Karlo takes 25 for its prior."
        )
    stride = (len(betas) - 1) / (steps - 1)
    return visiting(torch.tensor([*(round(i * stride) for i in reversed(range(steps))), -1]), betas)


def visiting(levels: torch.Tensor, betas: torch.Tensor | None = None) -> RespacedSchedule:
    """The chain from level to level [steps + 1]: training timesteps, noisiest first, with -1 for the picture itself."""
    betas = squaredcos_cap_v2() if betas is None else betas.double()
    alpha_bar = torch.cat([(1 - betas).cumprod(0), betas.new_ones(1)])[levels]
    a, b = alpha_bar[:-1], alpha_bar[1:]
    chain_betas = 1 - a / b
    return RespacedSchedule(levels[:-1], a, b, chain_betas, (1 - b) / (1 - a) * chain_betas)
