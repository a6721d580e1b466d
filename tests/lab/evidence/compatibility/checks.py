"""What a cell can find, and the comparisons that find it."""

from __future__ import annotations

from dataclasses import replace

import comfy.samplers
import torch
from comfy.model_patcher import ModelPatcher
from lab.evidence.compatibility.graph import Call, Graph, Sampled, sample
from palimpsest.nodes.diffusion.conditioning import Conditioning

SAME_LEVEL = 1e-4


class Wrong(Exception):
    """An identity that does not hold."""


class Idle(Exception):
    """The node changed nothing where it was to change something."""


class Senseless(Exception):
    """The row says nothing about this column, or core alone cannot sample the row."""


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    a, b = a.float().cpu(), b.float().cpu()
    if a.shape != b.shape:
        raise Wrong(f"shape {tuple(a.shape)} for {tuple(b.shape)}")
    return float((a - b).norm() / b.norm().clamp_min(1e-12))


def near(what: str, got: torch.Tensor, wanted: torch.Tensor, tolerance: float) -> None:
    error = relative(got, wanted)
    if not error <= tolerance:
        raise Wrong(f"{what} {error:.1e} off")


def apart(what: str, got: torch.Tensor, plain: torch.Tensor) -> None:
    if relative(got, plain) < 1e-5:
        raise Idle(what)


def once_a_level(sampled: Sampled, graph: Graph) -> bool:
    """Whether the sampler asked for one prediction at each level of the schedule and nowhere else."""
    levels = [call.sigma for call in sampled.calls]
    wanted = graph.sigmas[:-1].tolist()
    return len(levels) == len(wanted) and all(abs(a - b) <= SAME_LEVEL * b for a, b in zip(levels, wanted, strict=True))


def every_call_is_eulers(
    graph: Graph, model: ModelPatcher, positive: Conditioning, negative: Conditioning, sampled: Sampled
) -> None:
    """Each prediction is that of a run of its own, which takes one Euler step from the same latent and level."""
    lowest = float(graph.sigmas[-2])
    for i, call in enumerate(sampled.calls):
        below = [float(s) for s in graph.sigmas if float(s) < call.sigma * (1 - SAME_LEVEL)] or [0.0]
        alone = replace(
            graph,
            picture={"samples": torch.zeros_like(call.x).cpu()},
            sigmas=torch.tensor([call.sigma, below[0] if call.sigma > lowest else 0.0]),
            sampler=comfy.samplers.sampler_object("euler"),
        )
        again = sample(alone, model, positive, negative, noise=Start(alone, call))
        near(
            f"prediction {i + 1} at sigma {call.sigma:.3g}",
            call.denoised,
            again.calls[0].denoised,
            graph.tolerance,
        )


class Start:
    """A NOISE that puts the sampler at a given latent."""

    seed = 3

    def __init__(self, graph: Graph, call: Call):
        sampling = graph.model.get_model_object("model_sampling")
        x = call.x.float().cpu()
        latent = graph.picture["samples"].float()
        if bool(latent.any()):  # core leaves an empty latent as it is
            latent = graph.model.model.process_latent_in(latent)
        sigma, at_max = torch.tensor(call.sigma), call.sigma >= float(sampling.sigma_max) * (1 - 1e-5)
        offset = sampling.noise_scaling(sigma, torch.zeros_like(x), latent, at_max)
        scale = sampling.noise_scaling(sigma, torch.ones_like(x), torch.zeros_like(x), at_max)
        self.numbers = (x - offset) / scale

    def generate_noise(self, latent: dict) -> torch.Tensor:
        return self.numbers
