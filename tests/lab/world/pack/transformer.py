"""The toy world's transformer in ComfyUI's own classes: a small Stable Diffusion 3.5, told by the general model's text encoder."""

from __future__ import annotations

from pathlib import Path

import comfy.latent_formats
import comfy.model_management
import comfy.sd
import comfy.supported_models
import torch
from comfy.model_base import BaseModel
from comfy.model_patcher import ModelPatcher
from safetensors.torch import load_file

from .general import LATENT_CHANNELS, WEIGHTS, WIDTH, clip_of, load_vae, under

TEXT_COLUMNS = 24  # the longest caption has 21; the padding of 77 columns would cost more than it is worth
SHIFT = 2.0  # of the noise levels, towards those that decide what is where
DEPTH = 3  # SD3's width is 64 times its depth
# As ComfyUI detects Stable Diffusion 3.5, but for the depth (24 or 38), 4 channels, patches of 4 (2), the context's 4096 features, and no
# pooled text.
CONFIG = {
    "in_channels": LATENT_CHANNELS,
    "out_channels": LATENT_CHANNELS,
    "patch_size": 4,
    "depth": DEPTH,
    "input_size": None,
    "context_embedder_config": {
        "target": "torch.nn.Linear",
        "params": {"in_features": WIDTH, "out_features": 64 * DEPTH},
    },
    "qk_norm": "rms",
    "pos_embed_scaling_factor": None,
    "x_block_self_attn_layers": [],
}


class _Config(comfy.supported_models.SD3):
    """SD3's flow, over SD1.5's latents."""

    latent_format = comfy.latent_formats.SD15
    sampling_settings = {"shift": SHIFT}


def new_transformer() -> BaseModel:
    config = _Config(dict(CONFIG))
    config.set_inference_dtype(torch.float32, None)
    return config.get_model({}, "")


def load_transformer(folder: Path = WEIGHTS) -> tuple[ModelPatcher, comfy.sd.CLIP, comfy.sd.VAE]:
    """As UNETLoader, CLIPLoader and VAELoader would give them, if ComfyUI knew an SD3 of 4 channels."""
    model = new_transformer()
    model.load_model_weights(under("", load_file(folder / "transformer.safetensors")), "")
    patcher = ModelPatcher(
        model,
        load_device=comfy.model_management.get_torch_device(),
        offload_device=comfy.model_management.unet_offload_device(),
    )
    return patcher, clip_of(load_file(folder / "general.safetensors"), TEXT_COLUMNS), load_vae(folder)
