"""Rows of latents: batches, masks, sizes. And of the families and precisions of models."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from comfy.model_patcher import ModelPatcher
from lab.evidence.compatibility.conditioning import controlled
from lab.evidence.compatibility.graph import TOLERANCE, Graph, base, core, schedule
from lab.evidence.compatibility.rows import Row
from palimpsest.nodes.diffusion.conditioning import Conditioning
from support.fixtures import tiny_models

GROUP = "latents"
ADVANCED = "nodes_model_advanced"


def row(name: str, change: Callable[[Graph], Graph], group: str = GROUP, **options) -> Row:
    return Row(group, name, change, **options)


def sized(graph: Graph, height: int, width: int, batch: int = 1) -> Graph:
    picture = tiny_models.latent(graph.model, 6, batch, height, width)
    noise = tiny_models.latent(graph.model, 5, batch, height, width)["samples"]
    return replace(graph, picture=picture, noise=noise / noise.std())


def batch(graph: Graph) -> Graph:
    return sized(graph, 16, 16, 2)


def masked(graph: Graph, pictures: int = 1, levels: int = 2) -> Graph:
    """A noise mask for each picture, as SetLatentNoiseMask leaves it."""
    graph = sized(graph, 16, 16, pictures)
    masks = torch.stack(
        [
            torch.linspace(0, 1, 128).mul(levels - 1).round().div(levels - 1).expand(128, 128).roll(40 * i, 1)
            for i in range(pictures)
        ]
    )
    return replace(graph, picture=core("nodes.SetLatentNoiseMask", graph.picture, masks))


def gradient_mask(graph: Graph) -> Graph:
    graph = masked(graph, levels=5)
    patch = "nodes_differential_diffusion.DifferentialDiffusion"
    return replace(graph, **graph.patched(lambda model: core(patch, model, strength=1.0)))


def own_hints(graph: Graph) -> Graph:
    return replace(batch(graph), dress=controlled(batch=2))


def empty(graph: Graph) -> Graph:
    return replace(graph, picture={"samples": torch.zeros_like(graph.picture["samples"])})


def family(make: Callable[..., ModelPatcher], blocks: str = "auto", name: str = "normal", **options) -> Callable:
    def change(graph: Graph) -> Graph:
        built = base(make, blocks=blocks, **options)
        return replace(built, sigmas=schedule(built.model, 4, name))

    return change


def pooled(width: int) -> Callable[[Conditioning], Conditioning]:
    """What SDXL and SD3 read beside the text, drawn from the text itself."""

    def dress(conditioning: Conditioning) -> Conditioning:
        return [
            [text, {**options, "pooled_output": text[:, :1].flatten(1)[:, :width]}] for text, options in conditioning
        ]

    return dress


def inpainting(seed: int) -> ModelPatcher:
    return tiny_models.two_level(seed, in_channels=9)


def painted(conditioning: Conditioning) -> Conditioning:
    """What InpaintModelConditioning adds."""
    generator = torch.Generator().manual_seed(8)
    picture = torch.randn(1, 4, 16, 16, generator=generator)
    mask = torch.zeros(1, 1, 128, 128)
    mask[..., :64] = 1.0
    return [[text, {**options, "concat_latent_image": picture, "concat_mask": mask}] for text, options in conditioning]


def two_blocks(seed: int) -> ModelPatcher:
    """Of which guidance may skip one."""
    return tiny_models.flow_dit(seed, depth=2)


def flow(*patch) -> Callable[[Graph], Graph]:
    def change(graph: Graph) -> Graph:
        graph = family(two_blocks, name="simple", dress=pooled(48))(graph)
        models = graph.patched(lambda model: core(patch[0], model, *patch[1:])) if patch else {}
        graph = replace(graph, **models)
        return replace(graph, sigmas=schedule(graph.model, 4, "simple"))

    return change


def precision(name: str, dtype: torch.dtype, tolerance: float, compute: str | None = None) -> Row:
    def make(seed: int) -> ModelPatcher:
        model = tiny_models.two_level(seed, dtype)
        return core("nodes_model_advanced.ModelComputeDtype", model, compute) if compute else model

    return Row("precisions", name, lambda graph: replace(base(make), tolerance=tolerance, sigmas=graph.sigmas))


ROWS = [
    row("batch of 2", batch, each_alone=True),
    row("noise mask", masked),
    row("batch of 2, a noise mask each", lambda graph: masked(graph, 2), each_alone=True),
    row("noise mask of 5 levels with DifferentialDiffusion", gradient_mask),
    row("batch of 2, a ControlNet hint each", own_hints),
    row("odd size, 15 x 17", lambda graph: sized(graph, 15, 17)),
    row("wide, 8 x 32", lambda graph: sized(graph, 8, 32)),
    row("empty latent", empty),
    row("SD1.5, four levels", family(tiny_models.sd15), group="models"),
    row("SD2.1, v", family(tiny_models.sd21_v), group="models"),
    row("SDXL", family(tiny_models.sdxl, dress=pooled(32)), group="models"),
    row(
        "SD1.5 inpainting, nine channels",
        family(inpainting, "features 0; attention 0-3", dress=painted),
        group="models",
    ),
    row("SD3, flow", flow(), group="models"),
    row("SD3 with ModelSamplingSD3", flow(f"{ADVANCED}.ModelSamplingSD3", 2.0), group="models"),
    row("SD3 with ModelSamplingFlux", flow(f"{ADVANCED}.ModelSamplingFlux", 1.15, 0.5, 128, 128), group="models"),
    row("SD3 with ModelNoiseScale", flow(f"{ADVANCED}.ModelNoiseScale", 1.1), group="models"),
    row(
        "SD3 with SkipLayerGuidanceSD3",
        flow("nodes_sd3.SkipLayerGuidanceSD3", "0", 3.0, 0.0, 1.0),
        group="models",
    ),
    row(
        "SD3 with SkipLayerGuidanceDiT",
        flow("nodes_slg.SkipLayerGuidanceDiT", 3.0, 0.0, 1.0, "0", ""),
        group="models",
    ),
    precision("fp16", torch.float16, TOLERANCE[torch.float16]),
    precision("bf16", torch.bfloat16, TOLERANCE[torch.bfloat16]),
    precision("fp16 weights, computed in fp32", torch.float16, 1e-3, "fp32"),
    precision("fp8 (e4m3) weights", torch.float8_e4m3fn, 1e-3),
    precision("fp8 (e5m2) weights", torch.float8_e5m2, 1e-3),
]
