"""Exact retracing: a sampler goes back the way that a `ddim` inversion came, to rounding, at one evaluation a step.

The `ddim` step from a latent at `low` up to `high` asks the network at the lower latent with the higher level's timestep. Sampling
down from `high` has no such latent: it asks at the upper one, and misses the path. Along a recorded trajectory the difference
between what was asked and the upper latent is known. It is added to x before the model is asked and the answer is read as the
inversion read it, so that Euler's step from the source's own latent ends on the source's next one, whatever the network says.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from ..attention.calls import STEP_CACHES, ModelOptions
from .context_window import Part, taken
from .patched_model import OWN_GUIDANCE
from .trajectory import Trajectory

ROUNDING = 1e-5  # of the highest value of a latent: what float32 steps may be off the trajectory by
TINY = 1e-6  # of the upper level: where the slope at sigma 0, which is a limit, is taken


@dataclass(frozen=True)
class Reading:
    """How a model is read at one level: the network gets input * x, and denoised is skip * x + output * its answer."""

    input: float
    skip: float
    output: float

    @classmethod
    def at(cls, sigma: float, sampling: Any) -> Reading:
        """From the functions of the model's sampling object, which are linear in x and in the answer for every prediction type."""
        level = torch.tensor(sigma, dtype=torch.float64)
        zero, one = torch.zeros_like(level), torch.ones_like(level)
        return cls(
            float(sampling.calculate_input(level, one)),
            float(sampling.calculate_denoised(level, zero, one)),
            float(sampling.calculate_denoised(level, one, zero)),
        )


class DDIMStep:
    """The step of a `ddim` inversion between two levels, as a pair of questions: at which x, and what the answer means."""

    def __init__(self, low: float, high: float, sampling: Any):
        self.high = high
        at_low, self.at_high = Reading.at(low, sampling), Reading.at(high, sampling)
        self.scale = at_low.input / self.at_high.input  # keeps the network's input that of `low`
        # A network that predicts the picture itself says nothing about the slope at sigma 0: it is read at `high`.
        self.at_the_picture = low == 0.0 and at_low.output != 0.0
        self.low = low or high * TINY
        self.at_low = Reading.at(self.low, sampling)

    def slope(self, asked: torch.Tensor, denoised: torch.Tensor) -> torch.Tensor:
        """d, of which the step is d * (high - low). asked: the lower latent * scale, for which the model said `denoised`."""
        if self.at_the_picture:
            return (asked - denoised) / self.high
        answer = (denoised - self.at_high.skip * asked) / self.at_high.output
        below = asked / self.scale
        return below * ((1.0 - self.at_low.skip) / self.low) - answer * (self.at_low.output / self.low)


class Retracing:
    """One sampling run along a `ddim` trajectory."""

    def __init__(self, trajectory: Trajectory, sampling: Any):
        self.trajectory = trajectory
        self.sampling = sampling
        self.steps: dict[int, DDIMStep] = {}

    def asked(self, x: torch.Tensor, step: int, part: Part) -> torch.Tensor:
        """Where the model is asked for x at this step: exactly where the inversion asked it, when x is the source's own."""
        lower, upper = (taken(part, self.trajectory.latents[i]).to(x) for i in (step + 1, step))
        away = x - upper
        # A difference that is rounding must not grow: from step to step a network can multiply it.
        away = away.where(away.abs() > ROUNDING * upper.abs().amax(), 0.0)
        return lower * self._step(step).scale + away

    def denoised(self, answer: torch.Tensor, asked: torch.Tensor, x: torch.Tensor, step: int) -> torch.Tensor:
        """What the answer there means for x, so that Euler's step takes the inversion's slope."""
        return x - self._step(step).slope(asked, answer) * self._step(step).high

    def _step(self, step: int) -> DDIMStep:
        if step not in self.steps:
            high, low = (float(self.trajectory.sigmas[i]) for i in (step, step + 1))
            self.steps[step] = DDIMStep(low, high, self.sampling)
        return self.steps[step]


def require_retraceable(trajectory: Trajectory) -> None:
    if trajectory.method != "ddim":
        raise ValueError(
            "trajectory: expected one made with the method ddim, which can be retraced exactly, got one "
            f"made with {trajectory.method}. Choose ddim in DDIM Invert, or switch exact_retracing off."
        )


def require_retracing(trajectory: Trajectory, model_options: ModelOptions) -> None:
    """Raise ValueError if a model's options have what no run of a Retracing can correct."""
    own = next((key for key in OWN_GUIDANCE if model_options.get(key)), None)
    if own is not None and not math.isclose(trajectory.cfg, 1.0):
        raise ValueError(
            "model: expected plain classifier-free guidance, because exact retracing corrects the predictions before they are combined and the "
            f"trajectory was made at cfg {trajectory.cfg:g}, got a model with a {own} of another node (such as RescaleCFG). Remove that node, or "
            "invert with the method fixed_point and switch exact_retracing off."
        )
    wrappers = model_options["transformer_options"].get("wrappers", {})
    if any(key in by_key for by_key in wrappers.values() for key in STEP_CACHES):
        raise ValueError(
            "model: expected one that is evaluated at every step, because exact retracing corrects each of "
            "them, got one with EasyCache or LazyCache. Remove that node, or switch exact_retracing off."
        )
