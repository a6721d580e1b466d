"""Published priors: Karlo's own files and those of diffusers' PriorTransformer. A file is untrusted input."""

from __future__ import annotations

import re
from pathlib import Path

import comfy.model_management
import comfy.model_patcher
import comfy.ops
import torch

from ...files.weight_file import assign, is_whole, precision, read_file, read_tensors, require_weights
from .prior import Prior
from .transformer import HEAD_WIDTH, TEXT_TOKENS, PriorTransformer

WHAT = "a prior of Karlo or Kandinsky 2"
STATS = "ViT-L-14_stats.th"

# (ours, Karlo's, diffusers'); each has a weight and a bias
LAYERS = (
    ("time_embed.0", "time_embed.0", "time_embedding.linear_1"),
    ("time_embed.2", "time_embed.2", "time_embedding.linear_2"),
    ("text_proj", "text_enc_proj", "encoder_hidden_states_proj"),
    ("embedding_proj", "text_emb_proj", "embedding_proj"),
    ("image_proj", "clip_img_proj", "proj_in"),
    ("norm_out", "final_ln", "norm_out"),
    ("out_proj", "out_proj", "proj_to_clip_embeddings"),
)
IN_BLOCKS = (
    ("norm_1", "ln_1", "norm1"),
    ("proj", "attn.c_proj", "attn1.to_out.0"),
    ("norm_2", "ln_2", "norm3"),
    ("up", "mlp.c_fc", "ff.net.0.proj"),
    ("down", "mlp.c_proj", "ff.net.2"),
)
BARE = (("positions", "positional_embedding", "positional_embedding"), ("query", "prd_emb", "prd_embedding"))
KARLO, DIFFUSERS = 1, 2  # columns
BLOCKS = {KARLO: "transformer.resblocks.", DIFFUSERS: "transformer_blocks."}
QKV = {KARLO: ("attn.c_qkv",), DIFFUSERS: ("attn1.to_q", "attn1.to_k", "attn1.to_v")}
STATISTICS = ("clip_mean", "clip_std")

Weights = dict[str, torch.Tensor]


def load(path: Path, stats: Path | None, dtype: torch.dtype | None = None) -> Prior:
    """dtype: of the weights in memory; ComfyUI's choice for a diffusion model unless given. Other files raise ValueError."""
    return prior(read_tensors(path, "prior_name", WHAT), path.name, stats, dtype)


def prior(weights: Weights, file: str, stats: Path | None, dtype: torch.dtype | None = None) -> Prior:
    """The tensors of a published file as a model. file: its name, for errors. Empties `weights`."""
    layout = _layout(weights, file)
    if layout == KARLO:
        for name in [name for name in weights if name.startswith("model.")]:
            weights[name.removeprefix("model.")] = weights.pop(name)
    try:
        sources, width, layers, embedding = _sources(weights, layout)
    except ValueError as error:
        raise ValueError(f"prior_name: expected {WHAT}, got {file}, where {error}. Download the file again.") from error
    mean, std = _statistics(weights, layout, file, stats, embedding)

    load_device = comfy.model_management.get_torch_device()
    dtype, cast = precision(weights, dtype, load_device)
    compute_dtype = cast or dtype
    operations = comfy.ops.pick_operations(dtype, compute_dtype, load_device)
    model = PriorTransformer(width, layers, embedding, dtype, compute_dtype, torch.device("meta"), operations).eval()
    offload_device = comfy.model_management.unet_offload_device()
    named = {name: _converted(weights, names, layout, dtype) for name, names in sources.items()}
    assign(model, named, dtype, offload_device)
    patcher = comfy.model_patcher.CoreModelPatcher(model, load_device=load_device, offload_device=offload_device)
    return Prior(patcher, embedding, mean, std)


def _layout(weights: Weights, file: str) -> int:
    if any(prefix + "clip_img_proj.weight" in weights for prefix in ("model.", "")):
        return KARLO
    if "proj_to_clip_embeddings.weight" in weights and "prd_embedding" in weights:
        return DIFFUSERS
    names = [str(name) for name in weights]
    if "proj_to_clip_embeddings.weight" in weights:
        what, then = "a PriorTransformer without the learned query of text-to-image priors, such as Shap-E's", "Choose"
    elif any(re.match(r"(model\.)?(clip_tok_proj|cf_param|text_seq_proj)", name) for name in names):
        what, then = "Karlo's decoder", "Use unCLIP Load Decoder for it, and choose"
    elif any(name.startswith(("model_first_steps.", "model_last_step.")) for name in names):
        what, then = "Karlo's upsampler", "Use unCLIP Load Upsampler for it, and choose"
    elif any(name.startswith("model.diffusion_model.") for name in names):
        what, then = "an ordinary checkpoint", "Use Load Checkpoint for it, and choose"
    else:
        what, then = f"a file that starts with {', '.join(sorted(names)[:3]) or 'nothing'}", "Choose"
    raise ValueError(
        f"prior_name: expected {WHAT}, got {file}, {what}. {then} Karlo's prior-ckpt, or diffusion_pytorch_model.safetensors out of "
        "the folder prior of a Karlo or Kandinsky 2 prior for diffusers."
    )


def _sources(weights: Weights, layout: int) -> tuple[dict[str, tuple[str, ...]], int, int, int]:
    """(the file's names for each of ours, width, layers, width of an embedding); ValueError says what does not fit."""
    out, positions = LAYERS[-1][layout] + ".weight", BARE[0][layout]
    for name, dimensions in ((out, 2), (positions, 3)):
        if name not in weights or weights[name].ndim != dimensions:
            raise ValueError(f"there is no {name} of {dimensions} dimensions")
    embedding, width = weights[out].shape
    tokens = weights[positions].shape[1]
    if tokens != TEXT_TOKENS + 4 or width % HEAD_WIDTH:
        raise ValueError(
            f"there are {tokens} positions of width {width}, expected {TEXT_TOKENS + 4} of a multiple of {HEAD_WIDTH}"
        )
    numbers = {
        int(match[1]) for name in weights if (match := re.match(re.escape(BLOCKS[layout]) + r"(\d{1,3})\.", name))
    }
    layers = max(numbers, default=-1) + 1
    if layers < 1:
        raise ValueError(f"there are no {BLOCKS[layout]}N")

    sources = {row[0]: (row[layout],) for row in BARE}
    for end in ("weight", "bias"):
        sources |= {f"{row[0]}.{end}": (f"{row[layout]}.{end}",) for row in LAYERS}
        for i in range(layers):
            block = f"{BLOCKS[layout]}{i}."
            sources |= {f"blocks.{i}.{row[0]}.{end}": (f"{block}{row[layout]}.{end}",) for row in IN_BLOCKS}
            sources[f"blocks.{i}.qkv.{end}"] = tuple(f"{block}{name}.{end}" for name in QKV[layout])
    shell = PriorTransformer(width, layers, embedding, torch.float32, torch.float32, torch.device("meta"), torch.nn)
    shapes = {name: value.shape for name, value in shell.state_dict().items()}
    expected = {
        name: torch.Size((shapes[ours][0] // len(names), *shapes[ours][1:])) if len(names) > 1 else shapes[ours]
        for ours, names in sources.items()
        for name in names
    }
    require_weights("the prior", expected, weights)
    unknown = [name for name in weights if name not in expected and name not in STATISTICS]
    if unknown:
        raise ValueError(f"there is {unknown[0]}, which none of them has")
    return sources, width, layers, embedding


def _converted(weights: Weights, names: tuple[str, ...], layout: int, dtype: torch.dtype) -> torch.Tensor:
    """One of our tensors, from those of the file, which are taken out of `weights`."""
    parts = [weights.pop(name).to(dtype) for name in names]
    value = torch.cat(parts) if len(parts) > 1 else parts[0]
    if layout == KARLO and "c_qkv" in names[0]:  # Karlo orders the rows by head, then by q, k and v
        heads = value.unflatten(0, (-1, 3, HEAD_WIDTH))
        value = heads.transpose(0, 1).reshape(value.shape)
    return value


def _statistics(
    weights: Weights, layout: int, file: str, stats: Path | None, embedding: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and deviation of image embeddings, [embedding] each. The prior predicts embeddings normalised by them."""
    if all(name in weights for name in STATISTICS):
        found, where, socket = [weights.pop(name) for name in STATISTICS], file, "prior_name"
    elif stats is None and layout == DIFFUSERS:
        raise ValueError(
            f"prior_name: expected {WHAT}, got {file}, where {' or '.join(STATISTICS)} is missing. Download the file again."
        )
    elif stats is None:
        raise ValueError(
            f"stats_name: expected the mean and deviation of image embeddings for {file}, a file in Karlo's layout, got none. Put Karlo's "
            f"{STATS} (7 KB) into models/diffusion_models and choose it."
        )
    else:
        found, where, socket = _read_statistics(stats), stats.name, "stats_name"
    sizes = [value.numel() if is_whole(value) else None for value in found]
    if sizes != [embedding, embedding]:
        raise ValueError(
            f"{socket}: expected mean and deviation of image embeddings, {embedding} numbers each, got {where}, which holds "
            f"{'something else' if None in sizes or not sizes else ' and '.join(map(str, sizes[:4]))}. Choose {STATS} for Karlo's prior."
        )
    mean, std = (value.detach().to(torch.float32, copy=True).flatten() for value in found)
    if not bool((torch.isfinite(mean) & torch.isfinite(std)).all()):
        raise ValueError(f"{socket}: expected finite numbers, got nan or inf in {where}. Download the file again.")
    return mean, std


def _read_statistics(stats: Path) -> list:
    found = read_file(stats, "stats_name")
    if isinstance(found, dict):
        names = next((pair for pair in (STATISTICS, ("mean", "std")) if all(name in found for name in pair)), ())
        return [found[name] for name in names]
    return list(found) if isinstance(found, tuple | list) else [found]
