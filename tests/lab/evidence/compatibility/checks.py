"""What a cell can find, and the comparisons that find it."""

from __future__ import annotations

from dataclasses import replace

import comfy.samplers
import torch
from comfy.model_patcher import ModelPatcher
from lab.evidence.compatibility.graph import SAME_LEVEL, Call, Graph, Sampled, sample
from palimpsest.nodes.diffusion.conditioning import Conditioning


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


def every_call_is_its_own(
    graph: Graph, model: ModelPatcher, positive: Conditioning, negative: Conditioning, sampled: Sampled
) -> None:
    """Each prediction is that of a run of its own, which asks for nothing else."""
    for i, call in enumerate(sampled.calls):

        def ask(asked, x, sigmas, extra_args=None, callback=None, disable=None, call: Call = call) -> torch.Tensor:
            return asked(call.x, call.x.new_full((len(call.x),), call.sigma), **extra_args)

        alone = replace(graph, sampler=comfy.samplers.KSAMPLER(ask))
        again = sample(alone, model, positive, negative)
        wanted = again.calls[0].denoised
        near(f"prediction {i + 1} at sigma {call.sigma:.3g}", call.denoised, wanted, graph.tolerance)
