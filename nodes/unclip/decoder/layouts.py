"""Translates weights of unCLIP's decoder and upsamplers from their two published layouts to the names of this pack's networks.

Karlo's own files hold one network under `model.`, or two under `model_first_steps.` and `model_last_step.`. diffusers has a file
for each UNet, and one for the decoder's other layers in the folder text_proj.
"""

from __future__ import annotations

import re
from typing import Any

import torch

from .adm_unet import HEAD_WIDTH

Weights = dict[str, torch.Tensor]

RESIDUAL = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
ATTENTION = {"group_norm": "norm", "to_out.0": "proj_out"}
JOINED = {"qkv": ("to_q", "to_k", "to_v"), "encoder_kv": ("add_k_proj", "add_v_proj")}
OUTSIDE = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
TEXT_PROJ = {
    "learned_classifier_free_guidance_embeddings": "cf_param",
    "embedding_proj": "text_feat_proj",
    "clip_image_embeddings_project_to_time_embeddings": "clip_emb",
    "clip_extra_context_tokens_proj": "clip_tok_proj",
    "encoder_hidden_states_proj": "text_seq_proj.0",
    "text_encoder_hidden_states_norm": "text_seq_proj.1",
}
BLOCK = re.compile(
    r"(down_blocks|up_blocks|mid_block)\.(?:(\d+)\.)?(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)"
)
BIGGEST = 64  # most blocks or levels of a network


def is_diffusers(weights: Weights) -> bool:
    return "conv_in.weight" in weights and any(name.startswith("down_blocks.") for name in weights)


def is_text_proj(weights: Weights) -> bool:
    return "learned_classifier_free_guidance_embeddings" in weights


def from_karlo(weights: Weights, prefix: str) -> Weights:
    """1x1 convolutions become the matrices of linear layers."""
    own = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
    one_by_one = re.compile(r"\.(qkv|encoder_kv|proj_out)\.weight$")
    return {
        name: value[..., 0] if one_by_one.search(name) and value.ndim == 3 else value for name, value in own.items()
    }


def from_diffusers(unet: Weights, text_proj: Weights | None = None) -> Weights:
    """A UNet2DModel, or a UNet2DConditionModel with the UnCLIPTextProjModel that belongs to it."""
    blocks = sum(f"down_blocks.0.resnets.{i}.norm1.weight" in unet for i in range(BIGGEST))
    found: Weights = {}
    parts: dict[str, torch.Tensor] = {}
    for name, value in unet.items():
        layer, _, kind = name.rpartition(".")
        match = BLOCK.fullmatch(name)
        if layer in OUTSIDE:
            found[f"{OUTSIDE[layer]}.{kind}"] = value
        elif not match:
            found[name] = value  # require_network will refuse it by this name
        elif (place := _place(match, blocks, unet)) and (own := _own_name(match[5])):
            found[f"{place}.{own}"] = value
        else:
            parts[f"{place}.{match[5]}"] = value
    for place, joined, kind in {_joint(name) for name in parts}:
        rows = [parts[f"{place}.{part}.{kind}"] for part in JOINED[joined] if f"{place}.{part}.{kind}" in parts]
        alike = len({(row.shape, row.dtype) for row in rows}) == 1 and len(rows) == len(JOINED[joined])
        if not alike or rows[0].ndim == 0 or len(rows[0]) % HEAD_WIDTH:
            raise ValueError(f"{place}.{joined}.{kind} has parts that do not belong together")
        heads = [row.unflatten(0, (-1, HEAD_WIDTH)) for row in rows]
        found[f"{place}.{joined}.{kind}"] = torch.stack(heads, dim=1).flatten(0, 2)
    for name, value in (text_proj or {}).items():
        layer = next((layer for layer in TEXT_PROJ if name == layer or name.startswith(f"{layer}.")), None)
        found[name if layer is None else TEXT_PROJ[layer] + name.removeprefix(layer)] = value
    return found


def _place(match: re.Match, blocks: int, unet: Weights) -> str:
    """Karlo's name for the place of a layer: diffusers numbers the blocks of each level, Karlo those of all levels in one."""
    side, level, kind, i = match[1], int(match[2] or 0), match[3], int(match[4])
    attends = f"{side}.{level}.attentions.0.group_norm.weight" in unet
    if side == "mid_block":
        attends = "mid_block.attentions.0.group_norm.weight" in unet
        return f"middle_block.{1 if kind == 'attentions' else i * (2 if attends else 1)}"
    if side == "down_blocks":
        block = 1 + level * (blocks + 1) + (blocks if kind == "downsamplers" else i)
        return f"input_blocks.{block}.{int(kind == 'attentions')}"
    block = level * (blocks + 1) + (blocks if kind == "upsamplers" else i)
    return f"output_blocks.{block}.{1 + attends if kind == 'upsamplers' else int(kind == 'attentions')}"


def _own_name(rest: str) -> str | None:
    layer, _, kind = rest.rpartition(".")
    own = (RESIDUAL | ATTENTION).get(layer)
    return None if own is None else f"{own}.{kind}"


def _joint(name: str) -> tuple[str, str, str]:
    place, layer, kind = name.rsplit(".", 2)
    joined = next((joined for joined, parts in JOINED.items() if layer in parts), None)
    if joined is None:
        raise ValueError(f"it has {name}, which no such network has")
    return place, joined, kind


def unet_configuration(weights: Weights) -> dict[str, Any]:
    """AdmUNet's arguments, read from the shapes of its tensors. ValueError if they are those of another network."""
    first_layer = re.compile(r"output_blocks\.\d{1,3}\.([012])\.in_layers\.0\.weight")
    places = [match[1] for name in weights if (match := first_layer.fullmatch(name))]
    count, levels = places.count("0"), len(places) - places.count("0") + 1  # one more residual layer where a level ends
    blocks = count // levels
    if blocks < 2 or count != levels * blocks or max(levels, blocks) > BIGGEST:
        raise ValueError(f"it has {count} output blocks in {levels} levels, which is no ADM network")
    first = [(levels - 1 - level) * blocks for level in range(levels)]
    attending = [f"output_blocks.{block}.1.encoder_kv.weight" for block in first]
    widths = tuple(shape(weights, f"output_blocks.{block}.0.out_layers.3.weight", 4)[0] for block in first)
    time_width, model_channels = shape(weights, "time_embed.0.weight", 2)
    if any(width % 32 or width == 0 for width in widths) or any(
        width % HEAD_WIDTH for width, name in zip(widths, attending, strict=True) if name in weights
    ):
        raise ValueError(
            f"its levels are {widths} channels wide, expected multiples of 32, and of {HEAD_WIDTH} with attention"
        )
    return {
        "in_channels": shape(weights, "input_blocks.0.0.weight", 4)[1],
        "out_channels": shape(weights, "out.2.weight", 4)[0],
        "model_channels": model_channels,
        "time_width": time_width,
        "widths": widths,
        "blocks_per_level": blocks - 1,
        "attention": tuple(name in weights for name in attending),
        "context_width": next((shape(weights, name, 2)[1] for name in attending if name in weights), 0),
        "scale_shift": shape(weights, "input_blocks.1.0.emb_layers.1.weight", 2)[0] == 2 * widths[0],
    }


def decoder_configuration(weights: Weights) -> dict[str, Any]:
    """DecoderNetwork's arguments."""
    unet = unet_configuration(weights)
    if not unet["context_width"]:
        raise ValueError("it has no attention over text, as upsamplers have none")
    if unet["in_channels"] != 3 or unet["out_channels"] not in (3, 6):
        raise ValueError(f"it takes {unet['in_channels']} channels to {unet['out_channels']}, expected 3 to 3 or 6")
    tokens, image_width = shape(weights, "clip_tok_proj.weight", 2)
    return {
        **unet,
        "text_width": shape(weights, "text_seq_proj.0.weight", 2)[1],
        "image_width": image_width,
        "extra_tokens": tokens // unet["context_width"],
    }


def shape(weights: Weights, name: str, dimensions: int) -> torch.Size:
    if name not in weights:
        raise ValueError(f"it lacks {name}")
    if weights[name].ndim != dimensions:
        raise ValueError(f"it has {name} as {list(weights[name].shape)}, expected {dimensions} dimensions")
    return weights[name].shape
