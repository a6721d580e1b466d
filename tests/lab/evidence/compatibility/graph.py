"""The graph that a row of the table changes and a column runs: tiny models, prompts, a picture, and how it is sampled."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import comfy.samplers
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from palimpsest.nodes.diffusion.conditioning import Conditioning
from palimpsest.nodes.diffusion.trajectory import ModelFingerprint, Trajectory
from support.fixtures import tiny_clip, tiny_models
from support.fixtures.tiny_models import two_level

Guide = Callable[[ModelPatcher, Conditioning, Conditioning, float], comfy.samplers.CFGGuider]
SOURCE, TARGET, NEGATIVE = "a red cat on the grass", "a blue dog on the grass", "a blurry photo"
SAME_LEVEL = 1e-4  # of a level: what two of them may differ by
TOLERANCE = {torch.float32: 1e-4, torch.float16: 3e-2, torch.bfloat16: 1e-1}


def core(node: str, *args: Any, **inputs: Any) -> Any:
    """Run a core node, named by module and class; what it gives, or its outputs when there are several."""
    module, name = node.split(".")
    found = getattr(importlib.import_module(module if module == "nodes" else f"comfy_extras.{module}"), name)
    if hasattr(found, "define_schema"):
        outputs = found.execute(*args, **inputs)
        outputs = getattr(outputs, "args", outputs)
    else:
        outputs = getattr(found(), found.FUNCTION)(*args, **inputs)
    return outputs[0] if len(outputs) == 1 else outputs


def run(node: type, **inputs: Any) -> dict[str, Any]:
    """Run a node of the pack as the server does, widgets at their defaults; its outputs by name."""
    schema = node.define_schema()
    defaults = {widget.id: _default(widget) for widget in schema.inputs if not widget.optional and _is_widget(widget)}
    outputs = node.execute(**{**defaults, **inputs}).args
    return {output.display_name or output.id: value for output, value in zip(schema.outputs, outputs, strict=True)}


def _is_widget(widget: Any) -> bool:
    return hasattr(widget, "default") or hasattr(widget, "options")


def _default(widget: Any) -> Any:
    if hasattr(widget, "default") and (widget.default is not None or not hasattr(widget, "options")):
        return widget.default
    first = widget.options[0]
    if hasattr(first, "key"):  # a dynamic combo's choice brings widgets of its own
        return {widget.id: first.key, **{inner.id: _default(inner) for inner in first.inputs if _is_widget(inner)}}
    return first


@dataclass(frozen=True)
class Noise:
    """A NOISE of given numbers."""

    numbers: torch.Tensor
    seed: int = 3

    def generate_noise(self, latent: dict) -> torch.Tensor:
        return self.numbers


def cfg_guider(model: ModelPatcher, positive: Conditioning, negative: Conditioning, cfg: float):
    return core("nodes_custom_sampler.CFGGuider", model, positive, negative, cfg)


@functools.cache
def clip():
    return tiny_clip.sd1()


@functools.cache
def encoded(text: str) -> Conditioning:
    return clip().encode_from_tokens_scheduled(clip().tokenize(text))


@dataclass(frozen=True)
class Graph:
    """model, expert: two models for the same latents. dress: what is done to every prompt that a sampler gets.

    Sources get the prompt undressed where `plain_source` is set, as an artist has to wire them beside regional prompts.
    behind: what is patched after the pack's node. seed: of patches that draw at random in each call.
    positive_only: what is patched acts on the positive alone, so that a negative of the same words is another prompt.
    whole: the model without what skips its calls or shows it the latent in parts, where it has that.
    retraces: Euler's steps, so that an inversion leads back to its picture.
    """

    model: ModelPatcher
    expert: ModelPatcher
    picture: dict
    noise: torch.Tensor
    sigmas: torch.Tensor
    sampler: Any = field(default_factory=lambda: comfy.samplers.sampler_object("euler"))
    guide: Guide = cfg_guider
    cfg: float = 4.0
    dress: Callable[[Conditioning], Conditioning] = lambda conditioning: conditioning
    plain_source: bool = False
    retraces: bool = True
    tolerance: float = TOLERANCE[torch.float32]
    blocks: str = "features 0; attention 0-3"
    prompts: Callable[[str], Conditioning] = encoded
    seed: int = 0
    whole: ModelPatcher | None = None
    positive_only: bool = False
    behind: Callable[[ModelPatcher], ModelPatcher] = lambda model: model

    def prompt(self, text: str) -> Conditioning:
        return self.dress(self.prompts(text))

    def source(self, text: str = SOURCE) -> Conditioning:
        return self.prompts(text) if self.plain_source else self.prompt(text)

    @property
    def alike(self) -> Graph:
        """In which all prompts of a call can be the source's."""
        return replace(self, cfg=1.0) if self.positive_only else self

    @property
    def unmasked(self) -> Graph:
        """Without a noise mask, under which a sampler does not go an inversion's way."""
        return replace(self, picture={key: value for key, value in self.picture.items() if key != "noise_mask"})

    def patched(self, patch: Callable[[ModelPatcher], ModelPatcher]) -> dict[str, ModelPatcher]:
        """Both models with the patch, for dataclasses.replace."""
        return {"model": patch(self.model), "expert": patch(self.expert)}

    def row(self, i: int) -> Graph:
        """The graph of the i-th picture alone."""
        picture = {**self.picture, "samples": self.picture["samples"][i : i + 1]}
        if "noise_mask" in picture and len(picture["noise_mask"]) > 1:
            picture["noise_mask"] = picture["noise_mask"][i : i + 1]
        return replace(self, picture=picture, noise=self.noise[i : i + 1])


@dataclass(frozen=True)
class Call:
    """One prediction that a sampler asked the guider for."""

    x: torch.Tensor
    sigma: float
    denoised: torch.Tensor


@dataclass(frozen=True)
class Sampled:
    """A run through SamplerCustomAdvanced: the latent in the model's sampling space, and every prediction on the way."""

    latent: torch.Tensor
    calls: list[Call]
    samples: torch.Tensor


def sample(
    graph: Graph, model: ModelPatcher, positive: Conditioning, negative: Conditioning, cfg: float | None = None,
    noise: Any = None, guide: Guide | None = None,
) -> Sampled:  # fmt: skip
    guider = (guide or graph.guide)(watch(graph.behind(model)), positive, negative, graph.cfg if cfg is None else cfg)
    return sample_guided(graph, guider, noise)


def watch(model: ModelPatcher) -> ModelPatcher:
    """A clone whose runs keep their predictions in the list `calls` that hangs on it."""
    clone = model.clone()
    calls: list[Call] = []

    def note(executor, x, timestep, *args, **kwargs):
        denoised = executor(x, timestep, *args, **kwargs)
        calls.append(Call(x.clone(), float(timestep.flatten()[0]), denoised.clone()))
        return denoised

    clone.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, "compatibility", note)
    # Outside of all others, some of which answer by themselves.
    others = clone.wrappers.pop(WrappersMP.PREDICT_NOISE)
    clone.wrappers[WrappersMP.PREDICT_NOISE] = {"compatibility": others.pop("compatibility"), **others}
    clone.set_attachments("compatibility.calls", calls)
    return clone


def sample_guided(graph: Graph, guider: comfy.samplers.CFGGuider, noise: Any = None) -> Sampled:
    torch.manual_seed(graph.seed)
    noise = Noise(graph.noise) if noise is None else noise
    calls = guider.model_patcher.get_attachment("compatibility.calls")
    sigmas = graph.sigmas.clone()  # uni_pc writes into them where they are on the sampler's device already
    out, _ = core("nodes_custom_sampler.SamplerCustomAdvanced", noise, guider, graph.sampler, sigmas, graph.picture)
    latent = guider.model_patcher.model.process_latent_in(out["samples"])
    return Sampled(latent.float().cpu(), calls or [], out["samples"])


def recorded(graph: Graph, sampled: Sampled, positive: Conditioning) -> Trajectory:
    """The path of a run by any sampler: what it asked the model for last at each level."""
    latents = [torch.zeros(graph.noise.shape) for _ in graph.sigmas]
    for call in sampled.calls:
        level = int((graph.sigmas - call.sigma).abs().argmin())
        elsewhere = abs(float(graph.sigmas[level]) - call.sigma) > SAME_LEVEL * call.sigma
        if elsewhere or call.x.shape != graph.noise.shape:
            continue
        latents[level] = call.x.float().cpu()
    if sampled.latent.shape == graph.noise.shape:
        latents[-1] = sampled.latent
    steps = len(graph.sigmas) - 1
    return Trajectory(
        torch.stack(latents), graph.sigmas.float().cpu(), positive, ModelFingerprint.of(graph.model), "sampled",
        torch.full((steps,), torch.nan),
    )  # fmt: skip


def schedule(model: ModelPatcher, steps: int = 4, name: str = "normal") -> torch.Tensor:
    return core("nodes_custom_sampler.BasicScheduler", model, name, steps, 1.0)


def base(model: Callable[..., ModelPatcher] = two_level, batch: int = 1, size=(16, 16), **options: Any) -> Graph:
    """What every row starts from."""
    first, second = model(0), model(1)
    noise = tiny_models.latent(first, 5, batch, *size)["samples"]
    noise = noise / noise.std()
    picture = tiny_models.latent(first, 6, batch, *size)
    options = {"sigmas": schedule(first), **options}
    return Graph(first, second, picture, noise, **options)
