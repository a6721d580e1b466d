"""Published subject checkpoints: FastComposer's, and Face-diffuser's SDM and TDM. A file is untrusted input.

All three are SD1.5 in diffusers' names, with the text encoder lacking its `text_model` level; the first two hold a subject
encoder as well.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import comfy.diffusers_convert
import comfy.model_detection
import comfy.sd
import comfy.supported_models
import comfy.utils
import torch

from ..files.weight_file import read_tensors, require_weights
from .encoder import IMAGE_ENCODER, POSTFUSE, SubjectEncoder, subject_encoder

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher
    from comfy.sd import CLIP, VAE

STABLE_DIFFUSION = ("text_encoder", "vae", "unet")
SUBJECT = (IMAGE_ENCODER, POSTFUSE)
WHAT = "FastComposer's or Face-diffuser's checkpoint"
LAYOUT = {  # of SD1.x's UNet; its widths do not matter for the names of the tensors
    "num_res_blocks": [2, 2, 2, 2],
    "channel_mult": [1, 2, 4, 4],
    "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
    "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
    "transformer_depth_middle": 1,
}
# Names in core's table that SD1.x does not have, or only where the width changes.
OPTIONAL = re.compile(r"conv_shortcut|down_blocks\.3\.downsamplers|up_blocks\.3\.upsamplers|(add|class)_embedding")
TEXT_LAYER = re.compile(r"encoder\.layers\.(\d+)\.")

Parts = dict[str, dict[str, torch.Tensor]]


Loaded = tuple["ModelPatcher", "CLIP", "VAE", "SubjectEncoder | None"]


def load(path: Path, embedding_directory: list[str], disable_dynamic: bool = False) -> Loaded:
    """The encoder is None for a checkpoint without one, such as Face-diffuser's TDM. Other files raise ValueError."""
    loaded = models(read_tensors(path, "ckpt_name", WHAT), path.name, embedding_directory, disable_dynamic)
    model, clip, vae, _ = loaded
    for part, patcher in enumerate((model, clip.patcher, vae.patcher)):
        patcher.cached_patcher_init = (_load_patcher, (path, embedding_directory, part))
    return loaded


def _load_patcher(path: Path, embedding_directory: list[str], part: int, disable_dynamic: bool = False) -> ModelPatcher:
    """Core loads a part again where it needs weights of its own: for LoRA hooks under dynamic VRAM, and for another device."""
    model, clip, vae, _ = load(path, embedding_directory, disable_dynamic)
    return (model, clip.patcher, vae.patcher)[part]


def models(
    weights: dict[str, torch.Tensor], file: str, embedding_directory: list[str], disable_dynamic: bool = False
) -> Loaded:
    """The tensors of a published file as ComfyUI's models. file: its name, for errors. Empties `weights`."""
    parts = _split(weights, file)
    try:
        subject = {f"{part}.{name}": value for part in SUBJECT for name, value in parts.get(part, {}).items()}
        encoder = subject_encoder(subject) if subject else None
        return *_stable_diffusion(parts, embedding_directory, disable_dynamic), encoder
    except (ValueError, RuntimeError) as error:  # core's own of a tensor in another shape is a RuntimeError
        why = " ".join(str(error).split())[:400].rstrip(".")
        raise ValueError(f"ckpt_name: expected {WHAT}, got {file}, where {why}. Download the file again.") from error


def _split(weights: dict[str, torch.Tensor], file: str) -> Parts:
    parts: Parts = {}
    for name in list(weights):
        part, _, rest = str(name).partition(".")
        if not rest.endswith("position_ids"):  # a buffer that older versions of transformers saved
            parts.setdefault(part, {})[rest] = weights.pop(name)
    lacking = [part for part in STABLE_DIFFUSION + SUBJECT if part not in parts]
    if lacking in ([], list(SUBJECT)):
        return {part: parts[part] for part in STABLE_DIFFUSION + SUBJECT if part in parts}
    if any(name.startswith("diffusion_model.") for name in parts.get("model", {})):
        what, then = "an ordinary checkpoint without a subject encoder", "Use Load Checkpoint for it."
    else:
        what = f"a file without {', '.join(lacking)}; it starts with {', '.join(sorted(parts)[:4])}"
        then = (
            "Choose the pytorch_model.bin of FastComposer or Face-diffuser, or a safetensors file of the same tensors."
        )
    raise ValueError(f"ckpt_name: expected {WHAT}, got {file}, {what}. {then}")


def _stable_diffusion(
    parts: Parts, embedding_directory: list[str], disable_dynamic: bool
) -> tuple[ModelPatcher, CLIP, VAE]:
    """Renamed by core's own tables to the layout of an SD1.x checkpoint, then loaded by core's loader."""
    text = {f"text_model.{name}": value for name, value in parts["text_encoder"].items()}
    vae = comfy.diffusers_convert.convert_vae_state_dict(parts["vae"])
    unet = _original_unet(parts["unet"])
    layers = {int(match[1]) for name in text if (match := TEXT_LAYER.search(name))}
    prefixed = {
        "cond_stage_model.transformer.": text,
        "first_stage_model.": vae,
        "model.diffusion_model.": unet,
    }
    weights = {prefix + name: value for prefix, values in prefixed.items() for name, value in values.items()}
    config = comfy.model_detection.model_config_from_unet(weights, "model.diffusion_model.")
    if not isinstance(config, comfy.supported_models.SD15):
        raise ValueError("unet is of another width or kind than SD1.x's")
    model, clip, codec, _ = comfy.sd.load_state_dict_guess_config(
        weights,
        embedding_directory=embedding_directory,
        te_model_options={"clip_l_model_config": {"num_hidden_layers": len(layers)}},
        disable_dynamic=disable_dynamic,
    )
    if clip is None or "post_quant_conv.weight" not in vae or codec.first_stage_model is None:
        raise ValueError("text_encoder or vae is of another kind than SD1.x's")
    for part, module, found in (
        ("unet", model.model.diffusion_model, unet),
        ("vae", codec.first_stage_model, vae),
        ("text_encoder", clip.cond_stage_model.clip_l.transformer, text),
    ):
        expected = {
            name: value.shape for name, value in module.state_dict().items() if name != "text_projection.weight"
        }
        require_weights(part, expected, found)
    return model, clip, codec


def _original_unet(unet: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    names = comfy.utils.unet_to_diffusers(LAYOUT)
    required = [name for name in names if not OPTIONAL.search(name)]
    missing = [name for name in required if name not in unet]
    if missing:
        raise ValueError(f"unet lacks {len(missing)} of its {len(required)} tensors, the first is {missing[0]}")
    unknown = [name for name in unet if name not in names]
    if unknown:
        raise ValueError(f"unet has {unknown[0]}, which no SD1.x has")
    return {names[name]: value for name, value in unet.items()}
