"""The columns that open a picture in a model and edit it along its trajectory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from comfy.model_patcher import ModelPatcher
from lab.evidence.compatibility.checks import Wrong, apart, every_call_is_its_own, near, once_a_level, relative
from lab.evidence.compatibility.graph import (
    NEGATIVE,
    SOURCE,
    TARGET,
    Graph,
    Noise,
    clip,
    recorded,
    run,
    sample,
)
from palimpsest.nodes.diffusion.trajectory import Trajectory
from palimpsest.nodes.inversion.nodes import DDIMInvert, SampleTrajectory
from palimpsest.nodes.null_text.optimize import optimize
from palimpsest.nodes.null_text.solvers import Effort
from palimpsest.nodes.plug_and_play.nodes import CaptureFeatures, PlugAndPlay
from palimpsest.nodes.prompt_to_prompt.nodes import EncodePromptEdit, PromptToPrompt
from palimpsest.nodes.retracing.nodes import ExactRetracing

WINDOW = {"feature_end": 0.8, "attention_end": 0.5}


def invert(graph: Graph, **options) -> dict:
    return run(
        DDIMInvert,
        model=graph.model,
        positive=graph.source(),
        latent_image=graph.picture,
        sigmas=graph.sigmas,
        **options,
    )


def ddim_invert(graph: Graph) -> torch.Tensor:
    """Sampling from its noise starts at the start of the trajectory and, with Euler's steps, ends at the picture."""
    # From the highest level a random network is too steep for fixed_point to converge.
    graph = replace(graph, sigmas=graph.sigmas[1:] if len(graph.sigmas) > 3 else graph.sigmas)
    made = invert(graph, method="fixed_point", iterations=40)
    trajectory = made["trajectory"]
    model = _unguided(graph.whole or graph.model)
    back = sample(graph.unmasked, model, graph.source(), graph.source(), 1.0, noise=made["noise"])
    near("start", back.calls[0].x, trajectory.start, graph.tolerance)
    sizes = [float(latent.norm()) for latent in trajectory.latents]
    # A residual is a share of the upper latent.
    left = max(float(r) * sizes[i] / sizes[i + 1] for i, r in enumerate(trajectory.residuals))
    if graph.retraces:
        near("picture", back.latent, trajectory.latents[-1], max(graph.tolerance, 10 * left))
    return trajectory.start


def _unguided(model: ModelPatcher) -> ModelPatcher:
    """With the source's prompt as negative too, which other nodes' guidance is to see at guidance 1: core leaves it out there."""
    patched = model.clone()
    patched.model_options["disable_cfg1_optimization"] = True
    return patched


def sample_trajectory(graph: Graph) -> torch.Tensor:
    """The samples are those of SamplerCustomAdvanced bit for bit. At each noise level, the trajectory holds the latent of the last model call."""
    plain = sample(graph, graph.model, graph.prompt(SOURCE), graph.prompt(NEGATIVE))
    guider = graph.guide(graph.model, graph.prompt(SOURCE), graph.prompt(NEGATIVE), graph.cfg)
    torch.manual_seed(graph.seed)
    made = run(
        SampleTrajectory, noise=Noise(graph.noise), guider=guider, sampler=graph.sampler, sigmas=graph.sigmas,
        latent_image=graph.picture,
    )  # fmt: skip
    near("samples", made["latent"]["samples"], plain.samples, 0.0)
    expected = recorded(graph, plain, graph.prompt(SOURCE))
    for i, latent in enumerate(made["trajectory"].latents):
        near(f"level {i}", latent, expected.latents[i], 1e-6)
    return made["trajectory"].latents.transpose(0, 1)


def null_text(graph: Graph) -> torch.Tensor:
    """Sampling with its negative ends at the latent that the optimisation predicted, nearer to the picture than without it. Each
    step has one entry of the negative."""
    made = invert(graph, method="ddim")
    trajectory, negative = made["trajectory"], graph.prompt(NEGATIVE)
    effort = Effort()
    found, course = optimize(graph.model, graph.source(), negative, trajectory, graph.cfg, effort, "fast")
    with_it = sample(graph.unmasked, graph.model, graph.prompt(SOURCE), found, noise=made["noise"])
    without = sample(graph.unmasked, graph.model, graph.prompt(SOURCE), negative, noise=made["noise"])
    if graph.retraces:
        near("end that the search foresaw", with_it.latent, course.final, 10 * graph.tolerance)
        errors = [relative(sampled.latent, trajectory.latents[-1]) for sampled in (with_it, without)]
        if not errors[0] < errors[1]:
            raise Wrong(f"{errors[0]:.2f} off the picture, {errors[1]:.2f} without it")
    for call in with_it.calls:
        active = sum(options["timestep_end"] <= call.sigma <= options["timestep_start"] for _, options in found)
        if active != 1:
            raise Wrong(f"{active} negatives at sigma {call.sigma:.3g}")
    return with_it.latent


def _followed(
    graph: Graph, edit: Callable[[Trajectory], object], same: tuple, other: tuple, edited_otherwise=None
) -> torch.Tensor:
    """The edit of a picture into itself is the picture; another edit does something; a sampler that asks more than once a
    level gets at each call what a run of its own gets there."""
    positive, negative = same
    plain = sample(graph, graph.model, positive, negative)
    trajectory = recorded(graph, plain, graph.source())
    if once_a_level(plain, graph):
        again = sample(graph, edit(trajectory), positive, negative)
        near("edit into itself", again.latent, plain.latent, graph.tolerance)
    make = edited_otherwise or edit
    made = sample(graph, make(trajectory), *other)
    apart("edit", made.latent, sample(graph, graph.model, *other).latent)
    if not once_a_level(plain, graph):
        every_call_is_its_own(graph, make(trajectory), *other, made)
    return made.latent


def plug_and_play(graph: Graph) -> torch.Tensor:
    """With the same prompt and start, the result is the source. With another prompt, it differs from the result without the node."""
    graph = graph.alike
    return _followed(graph, lambda trajectory: _injected(graph, trajectory), *_prompts(graph))


def captured(graph: Graph) -> torch.Tensor:
    """As Plug-and-Play, with the features of Capture Features."""
    graph = graph.alike

    def edit(trajectory: Trajectory):
        features = run(
            CaptureFeatures, model=graph.behind(graph.model), trajectory=trajectory, blocks=graph.blocks, dtype="fp32", **WINDOW
        )["features"]  # fmt: skip
        return _injected(graph, trajectory, features=features)

    return _followed(graph, edit, *_prompts(graph))


def _prompts(graph: Graph) -> tuple[tuple, tuple]:
    # Every row of a call is given the source's features, so the negative has to be the source's prompt too.
    return (graph.prompt(SOURCE), graph.prompt(SOURCE)), (graph.prompt(TARGET), graph.prompt(NEGATIVE))


def _injected(graph: Graph, trajectory: Trajectory, **options):
    return run(PlugAndPlay, model=graph.model, trajectory=trajectory, blocks=graph.blocks, **WINDOW, **options)["model"]


def exact_retracing(graph: Graph) -> torch.Tensor:
    """Sampling along a `ddim` trajectory at guidance 1 ends at the picture of the trajectory."""
    made = invert(graph, method="ddim")
    model = run(ExactRetracing, model=graph.model, trajectory=made["trajectory"])["model"]
    back = sample(graph.unmasked, _unguided(model), graph.source(), graph.source(), 1.0, noise=made["noise"])
    rounding = torch.finfo(torch.float32).eps * float(graph.sigmas[0])  # of the sampler's own first latent
    near("picture", back.latent, made["trajectory"].latents[-1], max(graph.tolerance, rounding))
    return back.latent


def _words(graph: Graph, target: str, blend_words: str = "", **options) -> Callable[[Trajectory], object]:
    edit = run(EncodePromptEdit, clip=clip(), source_text=SOURCE, target_text=target, blend_words=blend_words)

    def make(trajectory: Trajectory):
        source = graph.source()
        return run(
            PromptToPrompt, model=graph.model, trajectory=trajectory, source=source, edit=edit["edit"], **options
        )["model"]  # fmt: skip

    return make


def prompt_to_prompt(graph: Graph) -> torch.Tensor:
    """With the same prompt and start, the result is the source. With another prompt, it differs from the result without the node."""
    negative = graph.prompt(NEGATIVE)
    return _followed(
        graph, _words(graph, SOURCE), (graph.prompt(SOURCE), negative), (graph.prompt(TARGET), negative),
        _words(graph, TARGET),
    )  # fmt: skip


def local_blend(graph: Graph) -> torch.Tensor:
    """With threshold 1 the area of the words is empty, and the result is the source. With a lower threshold the result changes."""
    negative = graph.prompt(NEGATIVE)
    plain = sample(graph, graph.model, graph.prompt(SOURCE), negative)
    trajectory = recorded(graph, plain, graph.source())
    nowhere = _words(graph, TARGET, "cat, dog", blend_threshold=1.0, blend_start=0.0)(trajectory)
    near(
        "outside the words",
        sample(graph, nowhere, graph.prompt(TARGET), negative).latent,
        plain.latent,
        graph.tolerance,
    )
    somewhere = _words(graph, TARGET, "cat, dog", blend_threshold=0.9)(trajectory)
    made = sample(graph, somewhere, graph.prompt(TARGET), negative).latent
    apart("edit", made, plain.latent)
    unblended = sample(graph, _words(graph, TARGET)(trajectory), graph.prompt(TARGET), negative).latent
    apart("blend", made, unblended)
    return made
