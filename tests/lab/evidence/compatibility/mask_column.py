"""The column of Attention Mask, and the maps that its heatmap is held against."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import comfy.samplers
import torch
from comfy.model_patcher import ModelPatcher
from lab.evidence.compatibility.checks import near
from lab.evidence.compatibility.graph import (
    NEGATIVE,
    SOURCE,
    Graph,
    clip,
    core,
    recorded,
    run,
    sample,
    sample_guided,
    watch,
)
from palimpsest.nodes.attention.unet_layers import attention_layers
from palimpsest.nodes.diffusion.trajectory import Trajectory
from palimpsest.nodes.display.heatmap import heatmap
from palimpsest.nodes.prompt_to_prompt.attention_mask import enlarged
from palimpsest.nodes.prompt_to_prompt.nodes import AttentionMask
from palimpsest.nodes.prompt_to_prompt.word_layers import blend_layers
from support.fixtures.explicit_attention import Explicit


def attention_mask(graph: Graph) -> torch.Tensor:
    """The heatmap equals one computed by an explicit softmax over q and k of the layers, while ComfyUI's guider evaluates each latent."""
    plain = sample(graph, graph.model, graph.prompt(SOURCE), graph.prompt(NEGATIVE))
    trajectory = recorded(graph, plain, graph.source())
    made = run(
        AttentionMask, model=graph.model, clip=clip(), trajectory=trajectory, text=SOURCE, words="cat",
        positive=graph.source(), blocks="auto" if has_unet(graph) else "all",
    )["heatmap"]  # fmt: skip
    total = _of_layers(graph, trajectory, column=3) if has_unet(graph) else _of_blocks(graph, trajectory, column=3)
    low, high = total.amin((1, 2), keepdim=True), total.amax((1, 2), keepdim=True)
    maps = (total - low) / (high - low)
    size = tuple(8 * n for n in trajectory.latents.shape[-2:])
    near("heatmap", made, heatmap(enlarged(maps, size), None), max(1e-2, graph.tolerance))
    return made


def has_unet(graph: Graph) -> bool:
    return hasattr(graph.model.model.diffusion_model, "input_blocks")


def _of_layers(graph: Graph, trajectory: Trajectory, column: int) -> torch.Tensor:
    size, factors = trajectory.latents.shape[-2:], attention_layers(graph.model)
    layers = blend_layers(factors, tuple(size))
    unet = graph.model.model.diffusion_model
    sides = {"input": unet.input_blocks, "output": unet.output_blocks}
    seen: dict[tuple, torch.Tensor] = {}
    heads: dict[tuple, int] = {}
    handles = []

    def keep(place: tuple, out: torch.Tensor) -> None:
        # What is evaluated afterwards is guidance by a disturbed network, such as PAG's.
        seen.setdefault(place, out.float())

    for side, number, depth in layers:
        transformer = next(m for m in sides[side][number] if hasattr(m, "transformer_blocks")).transformer_blocks[depth]
        heads[side, number, depth] = transformer.attn2.heads
        for name in ("to_q", "to_k"):
            place = (side, number, depth, name)
            layer = getattr(transformer.attn2, name)
            handles.append(layer.register_forward_hook(lambda m, a, out, place=place: keep(place, out)))
    maps: list[torch.Tensor] = []

    def ask(asked, x, sigmas, extra_args=None, callback=None, disable=None) -> torch.Tensor:
        for latent, sigma in zip(trajectory.latents, trajectory.sigmas[:-1], strict=False):
            seen.clear()
            asked(latent.to(x), x.new_full((len(x),), float(sigma)), **extra_args)
            for layer in layers:
                q, k = (seen[(*layer, name)] for name in ("to_q", "to_k"))
                maps.append(_map(q, k, column, size, factors[layer], heads[layer]))
        return x

    try:
        with torch.compiler.set_stance("force_eager"):  # a compiled network does not call hooks
            _ask(graph, graph.whole or graph.model, ask)
    finally:
        for handle in handles:
            handle.remove()
    return sum(maps)


def _of_blocks(graph: Graph, trajectory: Trajectory, column: int) -> torch.Tensor:
    """SD3's, whose tokens are 2 x 2 latent pixels."""
    height, width = (side // 2 for side in trajectory.latents.shape[-2:])
    model = graph.model.clone()
    blocks = len(model.model.diffusion_model.joint_blocks)
    explicit = Explicit(height * width, graph.source()[0][0].shape[1])
    model.model_options["transformer_options"]["optimized_attention_override"] = explicit
    maps: list[torch.Tensor] = []

    def ask(asked, x, sigmas, extra_args=None, callback=None, disable=None) -> torch.Tensor:
        for latent, sigma in zip(trajectory.latents, trajectory.sigmas[:-1], strict=False):
            explicit.shares.clear()
            asked(latent.to(x), x.new_full((len(x),), float(sigma)), **extra_args)
            # What is evaluated afterwards is guidance by a disturbed network.
            shares = [share.float().mean(1)[..., column] for share in explicit.shares[:blocks]]
            maps.extend((share / share.mean(1, keepdim=True)).unflatten(1, (height, width)) for share in shares)
        return x

    _ask(graph, model, ask)
    return sum(maps)


def _ask(graph: Graph, model: ModelPatcher, ask: Callable[..., torch.Tensor]) -> None:
    guider = core("nodes_custom_sampler.BasicGuider", watch(model), graph.source())
    sample_guided(replace(graph.unmasked, sampler=comfy.samplers.KSAMPLER(ask)), guider)


def _map(q: torch.Tensor, k: torch.Tensor, column: int, latent: torch.Size, factor: int, heads: int) -> torch.Tensor:
    """[B, h, w] at the size that the layers have where nothing shrinks them."""
    q, k = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k))
    attention = (q @ k.mT * q.shape[-1] ** -0.5).softmax(-1)[..., column].sum(1)
    height, width = (-(-side // factor) for side in latent)
    shrunk = round((height * width / attention.shape[1]) ** 0.5)
    maps = (attention / attention.mean(1, keepdim=True)).unflatten(1, (-(-height // shrunk), -1))
    if maps.shape[1:] == (height, width):
        return maps
    return torch.nn.functional.interpolate(maps[:, None], (height, width), mode="bilinear")[:, 0]
