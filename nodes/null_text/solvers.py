"""One step of null-text inversion (2211.09794): the null embedding that guides x(sigma) to the pivot x*(sigma_next).

In sigma space the step is Euler's, x' = x + (x - D) (sigma_next - sigma) / sigma with D = u + w (c - u), where u and c are
the denoised predictions for the null text and the source prompt. It is affine in u, so that the u which lands on the pivot
has a closed form:

    D* = x - (x* - x) sigma / (sigma_next - sigma),    u* = (D* - w c) / (1 - w),

and the published loss, the mean squared error of x' in variance-preserving units, is a constant times |u* - u|^2.

`null_text` is the published loop: Adam on the embedding, made anew at every step.

`fast` needs no gradient. On the pivot u* equals c: null-text inversion looks for a text that predicts what the source prompt
predicts. The source prompt itself is therefore a solution (negative-prompt inversion, 2305.16807, takes it). `fast` looks for
the shortest way towards it: one share a of the way from the null prompt to the source prompt, for each picture and step.
Let u be the prediction at the present share and v the one at the source prompt. v equals c unless more than the prompts
differs between the two conditions, such as a mask. To first order in a, the loss |u* - u - a (v - u)|^2 is a parabola. The
smallest a in 0..1 that brings the loss down to the tolerance is taken, or the best one if none does. The model is then
evaluated there and x moves on with the true prediction, so that the next step corrects the error of the approximation. Each
step starts from the last one's share. Evaluations a step: 2 if the loss is small already, else 3, or 4 if v is not c.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    from .gradients import Pullback

CONSTANTS = ("code", "paper")


@dataclass(frozen=True)
class Effort:
    """What a step may spend. "code" is the published code's schedule, written for any number of steps; "paper" the paper's."""

    inner_steps: int = 10
    learning_rate: float = 1e-2
    tolerance: float = 1e-5
    constants: str = "code"

    def at(self, progress: float) -> Effort:
        """The constants after a share of the steps: over 50 of them the code's are lr (1 - i / 100) and tolerance + 2e-5 i."""
        if self.constants == "paper":
            return self
        i = 50.0 * progress
        return Effort(
            self.inner_steps, self.learning_rate * (1.0 - i / 100.0), self.tolerance + i * 2e-5, self.constants
        )


@dataclass(frozen=True)
class Step:
    x: torch.Tensor  # [B, C, H, W], as all latents here
    target: torch.Tensor
    cond: torch.Tensor  # denoised
    sigma: float
    sigma_next: float
    cfg: float
    unit: float  # divides a latent at sigma_next for the loss: sqrt(sigma_next^2 + 1), or 1 for a flow model

    @property
    def level(self) -> torch.Tensor:
        """sigma for each row, [B]."""
        return self.x.new_full((len(self.x),), self.sigma)

    @property
    def width(self) -> float:
        return (self.sigma_next - self.sigma) / self.sigma

    @property
    def wanted(self) -> torch.Tensor:
        """u*, the denoised prediction for the null text that lands on the target."""
        guided = self.x - (self.target - self.x) / self.width
        return (guided - self.cfg * self.cond) / (1.0 - self.cfg)

    def guided(self, uncond: torch.Tensor) -> torch.Tensor:
        return uncond + self.cfg * (self.cond - uncond)

    def next(self, uncond: torch.Tensor) -> torch.Tensor:
        return self.x + (self.x - self.guided(uncond)) * self.width

    def loss(self, uncond: torch.Tensor) -> torch.Tensor:
        """[B], mean squared error in the units of `unit`."""
        return ((self.next(uncond) - self.target) / self.unit).square().flatten(1).mean(1)

    def loss_slope(self, uncond: torch.Tensor) -> torch.Tensor:
        """d loss / d uncond, for each row of its own loss."""
        error = self.next(uncond) - self.target
        return error * (-2.0 * self.width * (1.0 - self.cfg) / self.unit**2 / error[0].numel())


def solve_null_text(
    step: Step,
    embedding: torch.Tensor,
    effort: Effort,
    predict: Callable[[torch.Tensor], torch.Tensor],
    predict_with_pullback: Callable[[torch.Tensor], tuple[torch.Tensor, Pullback]],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """2211.09794 algorithm 1 with the published code's early stop, which is looked at after the optimiser's step.

    predict: denoised for a null embedding [B, N, D] at this step; predict_with_pullback: with the way back to the embedding.
    Returns the embedding, the prediction with it, and the loss before [B].
    Every row has its own loss and stops by itself; a row that has stopped keeps its embedding.
    """
    embedding = embedding.clone()
    optimiser = torch.optim.Adam([embedding], lr=effort.learning_rate)
    active = torch.ones(len(embedding), dtype=torch.bool, device=embedding.device)
    before = None
    for _ in range(effort.inner_steps):
        uncond, pullback = predict_with_pullback(embedding)
        loss = step.loss(uncond)
        before = loss if before is None else before
        kept = embedding.clone()
        embedding.grad = pullback(step.loss_slope(uncond))
        optimiser.step()
        embedding.copy_(torch.where(active.view(-1, 1, 1), embedding, kept))
        active = active & (loss >= effort.tolerance)
        if not bool(active.any()):
            break
    embedding.grad = None
    return embedding, predict(embedding), before


def solve_fast(
    step: Step,
    predict: Callable[[torch.Tensor], torch.Tensor],
    share: torch.Tensor,
    tolerance: float,
    source_predicts_cond: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The shortest move towards the source prompt that brings the loss of every row to the tolerance.

    predict: denoised at shares [B] of the way from the null prompt to the source prompt; share: those to start from.
    source_predicts_cond: whether the null condition at share 1 predicts step.cond.
    Returns shares, the prediction there, and the loss before.
    """
    uncond = predict(share)
    loss = step.loss(uncond)
    moving = (loss > tolerance) & (share < 1.0)
    if not bool(moving.any()):
        return share, uncond, loss
    at_source = step.cond if source_predicts_cond else predict(torch.ones_like(share))
    move = line_share(step.wanted - uncond, at_source - uncond, tolerance / loss) * moving
    share = share + move * (1.0 - share)
    return share, torch.where(moving.view(-1, *[1] * (uncond.ndim - 1)), predict(share), uncond), loss


def line_share(missing: torch.Tensor, gain: torch.Tensor, wanted_ratio: torch.Tensor) -> torch.Tensor:
    """Smallest a in 0..1 with |missing - a gain|^2 <= wanted_ratio |missing|^2, the best one where there is none; [B].

    On the CPU, because float64 is not to be had on every device.
    """
    device = missing.device
    missing, gain, wanted_ratio = (x.flatten(1).cpu().double() for x in (missing, gain, wanted_ratio[:, None]))
    length = gain.square().sum(1).clamp_min(1e-30)
    best = (missing * gain).sum(1) / length
    rest = missing.square().sum(1) - best.square() * length
    spare = wanted_ratio[:, 0] * missing.square().sum(1) - rest
    return (best - (spare.clamp_min(0.0) / length).sqrt()).clamp(0.0, 1.0).float().to(device)
