"""How fast the equation of one upward step is solved: plain fixed-point iteration beside Anderson mixing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import comfy.samplers
import torch
from lab.evidence.models import World
from palimpsest.nodes.diffusion.trajectory import Trajectory
from palimpsest.nodes.inversion.solvers import AndersonMixing, relative_error, slope
from torch import Tensor


@dataclass(frozen=True)
class Convergence:
    """Residuals after 1, 2, ... evaluations of the step from sigma `low` to `high`, the worst of the batch."""

    low: float
    high: float
    plain: list[float]
    anderson: list[float]


class _Probe(comfy.samplers.Sampler):
    """Solves chosen steps of a known trajectory from the guess an inversion would start them with."""

    def __init__(self, trajectory: Trajectory, steps: Sequence[int], evaluations: int) -> None:
        self.trajectory = trajectory
        self.steps = steps
        self.evaluations = evaluations
        self.found: list[Convergence] = []

    def sample(self, model_wrap, sigmas, extra_args, callback, noise, latent_image=None, *_, **__) -> Tensor:
        path, levels = self.trajectory.latents.to(noise), sigmas.tolist()
        for step in self.steps:
            x, low, high = path[step + 1], levels[step + 1], levels[step]
            last = step + 1 == self.trajectory.steps
            guess = x if last else x + (x - path[step + 2]) / (low - levels[step + 2]) * (high - low)
            curves: list[list[float]] = []
            for mixing in (None, AndersonMixing(depth=3)):
                y, residuals = guess, []
                for _ in range(self.evaluations):
                    denoised = model_wrap(y, y.new_full((len(y),), high), **extra_args)
                    mapped = x + slope(y, denoised, high) * (high - low)
                    residuals.append(relative_error(y, mapped))
                    y = mixing.next(y, mapped) if mixing else mapped
                curves.append(residuals)
            self.found.append(Convergence(low, high, *curves))
        return latent_image


def measure_convergence(
    world: World, trajectory: Trajectory, steps: Sequence[int], evaluations: int
) -> list[Convergence]:
    probe = _Probe(trajectory, steps, evaluations)
    guider = comfy.samplers.CFGGuider(world.model)
    guider.inner_set_conds({"positive": trajectory.positive})
    guider.set_cfg(1.0)
    latent = torch.zeros_like(trajectory.start)
    guider.sample(latent, latent, probe, trajectory.sigmas, disable_pbar=True, seed=0)
    return probe.found
