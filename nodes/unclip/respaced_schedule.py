"""The cosine noise schedule of DALL-E 2 and Karlo, and the few steps of it that sampling visits."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch

TRAIN_STEPS = 1000
SMALLEST_VARIANCE = 1e-20  # published floor under a logarithm; the last step's variance is 0


def squaredcos_cap_v2(train_steps: int = TRAIN_STEPS) -> torch.Tensor:
    """Betas [train_steps] in float64 (2102.09672, equation 17, with beta <= 0.999)."""
    level = [math.cos((i / train_steps + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(train_steps + 1)]
    betas = [min(1 - after / before, 0.999) for before, after in itertools.pairwise(level)]
    return torch.tensor(betas, dtype=torch.float64)


@dataclass(frozen=True)
class RespacedSchedule:
    """All [steps], float64, on the CPU and in sampling order: index 0 is the noisiest step.

    timesteps: training indices as the network gets them, int64; alpha_bar: at each step; alpha_bar_next: at the less noisy
    level it goes to, 1 for the last; betas and posterior_variance: of the respaced chain, not of the training one.
    """

    timesteps: torch.Tensor
    alpha_bar: torch.Tensor
    alpha_bar_next: torch.Tensor
    betas: torch.Tensor
    posterior_variance: torch.Tensor

    def __len__(self) -> int:
        return len(self.timesteps)

    def posterior_mean(self, i: int, x: torch.Tensor, x0: torch.Tensor) -> torch.Tensor:
        """Mean of q(x of the next level | x of level i, x0) (2006.11239, equation 7)."""
        a, b, beta = (float(values[i]) for values in (self.alpha_bar, self.alpha_bar_next, self.betas))
        return (b**0.5 * beta * x0 + (1 - beta) ** 0.5 * (1 - b) * x) / (1 - a)

    def step(self, i: int, x: torch.Tensor, x0: torch.Tensor, noise: torch.Tensor, eta: float = 1.0) -> torch.Tensor:
        """x at the next level (2010.02502, equation 12): eta 1 is the ancestral step with the posterior's variance.

        x0 may have been clamped: the noise in x is taken to be what x0 leaves over. With eta 0 `noise` has no effect.
        """
        if eta == 1.0:
            return self.posterior_mean(i, x, x0) + float(self.posterior_variance[i]) ** 0.5 * noise
        a, b = float(self.alpha_bar[i]), float(self.alpha_bar_next[i])
        variance = eta**2 * float(self.posterior_variance[i])
        eps = (x - a**0.5 * x0) / (1 - a) ** 0.5
        return b**0.5 * x0 + max(1 - b - variance, 0.0) ** 0.5 * eps + variance**0.5 * noise

    def learned_log_variance(self, i: int, fraction: torch.Tensor) -> torch.Tensor:
        """A network's answer in -1 .. 1 between the logarithms of the posterior's variance and of beta (2102.09672, eq. 15)."""
        low = math.log(max(float(self.posterior_variance[i]), SMALLEST_VARIANCE))
        high = math.log(float(self.betas[i]))
        return low + (fraction + 1) / 2 * (high - low)


def respaced(steps: int, betas: torch.Tensor | None = None) -> RespacedSchedule:
    """`steps` levels of the chain with these betas [train_steps], the cosine one unless given, from its first to its last.

    Rounded to float32 just where diffusers rounds, which shows where alpha_bar is near 1: the last ancestral step gives
    0.9995 x0, as it does there. In float64, as in Karlo's own code, it would be x0.
    """
    betas = squaredcos_cap_v2() if betas is None else betas
    if not 2 <= steps <= len(betas):
        raise ValueError(
            f"steps: expected 2 to {len(betas)}, the length of the schedule the network was trained on, got {steps}. "
            "Karlo takes 25 for its prior."
        )
    stride = (len(betas) - 1) / (steps - 1)
    return visiting(torch.tensor([*(round(i * stride) for i in reversed(range(steps))), -1]), betas)


def visiting(levels: torch.Tensor, betas: torch.Tensor | None = None) -> RespacedSchedule:
    """The chain from level to level [steps + 1]: training indices in sampling order, -1 for the picture itself."""
    betas = (squaredcos_cap_v2() if betas is None else betas).float()
    alpha_bar = torch.cat([(1 - betas).cumprod(0), torch.ones(1)])[levels]
    timesteps, alpha_bar, alpha_bar_next = levels[:-1], alpha_bar[:-1], alpha_bar[1:]
    neighbours = levels[:-1] - levels[1:] == 1
    chain_betas = torch.where(neighbours, betas[timesteps], 1 - alpha_bar / alpha_bar_next)
    a, b, beta = alpha_bar.double(), alpha_bar_next.double(), chain_betas.double()
    return RespacedSchedule(timesteps, a, b, beta, (1 - b) / (1 - a) * beta)
