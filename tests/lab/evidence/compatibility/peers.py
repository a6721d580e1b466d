"""Rows of other packs' ways to patch, written after their public interfaces, on either side of the pack's node."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import comfy.samplers
import torch
from comfy.ldm.modules.attention import optimized_attention
from comfy.model_patcher import ModelPatcher, create_model_options_clone, set_model_options_patch_replace
from comfy.patcher_extension import WrappersMP
from lab.evidence.compatibility.graph import Graph
from lab.evidence.compatibility.rows import Row

GROUP = "other packs"
EDITS = ("Plug-and-Play", "Plug-and-Play, captured", "Prompt-to-Prompt", "local blend")
BLOCKS = [("input", 1), ("input", 3), ("middle", 0), *(("output", i) for i in range(4))]


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, options: dict) -> torch.Tensor:
    return optimized_attention(q, k, v, options["n_heads"])


def image_prompt(model: ModelPatcher) -> ModelPatcher:
    """IPAdapter: attn2_replace at every layer, which adds attention to tokens of its own, in the positive rows only."""
    patched = model.clone()
    tokens = {width: torch.randn(1, 4, width, generator=torch.Generator().manual_seed(6)) for width in (32, 64)}

    def replacement(q, k, v, extra_options):
        out = attend(q, k, v, extra_options)
        own = tokens[q.shape[-1]].to(q).expand(len(q), -1, -1)
        kinds = extra_options["cond_or_uncond"]
        positive = torch.tensor([kind == 0 for kind in kinds]).repeat_interleave(len(q) // len(kinds)).view(-1, 1, 1)
        return out + 0.5 * attend(q, own, own, extra_options) * positive.to(q)

    for block in BLOCKS:
        patched.set_model_attn2_replace(replacement, *block)
    return patched


def perturbed(model: ModelPatcher) -> ModelPatcher:
    """sd-perturbed-attention: a third prediction with attn1 replaced in the decoder, added after guidance."""
    patched = model.clone()

    def post_cfg(args):
        options = create_model_options_clone(args["model_options"])
        for block in (2, 3):
            options = set_model_options_patch_replace(
                options, lambda q, k, v, extra_options: v, "attn1", "output", block
            )
        (weak,) = comfy.samplers.calc_cond_batch(args["model"], [args["cond"]], args["input"], args["sigma"], options)
        return args["denoised"] + 2.0 * (args["cond_denoised"] - weak)

    patched.set_model_sampler_post_cfg_function(post_cfg)
    return patched


def reference_tokens(model: ModelPatcher) -> ModelPatcher:
    """Reference-only packs: attn1_patch that appends keys and values of its own."""
    patched = model.clone()

    def extend(n, context, value, extra_options):
        return n, torch.cat([context, context.mean(1, keepdim=True)], 1), torch.cat([value, value[:, :1]], 1)

    patched.set_model_attn1_patch(extend)
    return patched


def unet_wrapper(model: ModelPatcher) -> ModelPatcher:
    """Packs that wrap the network by model_function_wrapper, here with a scale."""
    patched = model.clone()
    patched.set_model_unet_function_wrapper(
        lambda apply, args: 0.97 * apply(args["input"], args["timestep"], **args["c"])
    )
    return patched


def sliding_windows(model: ModelPatcher) -> ModelPatcher:
    """AnimateDiff-Evolved: a CALC_COND_BATCH wrapper that evaluates windows of two frames and averages them."""
    patched = model.clone()

    def windows(executor, model, conds, x_in, timestep, model_options):
        if len(x_in) < 3:
            return executor(model, conds, x_in, timestep, model_options)
        sums = [torch.zeros_like(x_in) for _ in conds]
        counts = torch.zeros(len(x_in), 1, 1, 1)
        for first in range(len(x_in) - 1):
            frames = slice(first, first + 2)
            out = executor(model, conds, x_in[frames], timestep[frames], model_options)
            counts[frames] += 1
            for total, part in zip(sums, out, strict=True):
                total[frames] += part
        return [total / counts.to(x_in) for total in sums]

    patched.add_wrapper_with_key(WrappersMP.CALC_COND_BATCH, "sliding_windows", windows)
    return patched


def frames(graph: Graph) -> Graph:
    picture = {**graph.picture, "samples": graph.picture["samples"].repeat(3, 1, 1, 1)}
    return replace(graph, picture=picture, noise=torch.cat([graph.noise, graph.noise.flip(2), graph.noise.flip(3)]))


def rows(
    name: str, patch: Callable[[ModelPatcher], ModelPatcher], start: Callable[[Graph], Graph] = lambda graph: graph
):
    def before(graph: Graph) -> Graph:
        graph = start(graph)
        return replace(graph, **graph.patched(patch))

    yield Row(GROUP, f"{name}, before the node", before)
    yield Row(GROUP, f"{name}, after the node", lambda graph: replace(start(graph), behind=patch), only=EDITS)


ROWS = [
    *rows("attn2_replace, as IPAdapter", image_prompt, lambda graph: replace(graph, positive_only=True)),
    *rows("attn1_replace in a third prediction, as sd-perturbed-attention", perturbed),
    *rows("attn1_patch with more keys, as reference packs", reference_tokens),
    *rows("model_function_wrapper", unet_wrapper),
    *rows("CALC_COND_BATCH windows, as AnimateDiff-Evolved", sliding_windows, frames),
]
