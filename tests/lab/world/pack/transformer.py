"""The second world's transformer in ComfyUI's own classes: a small Stable Diffusion 3.5, told by the general model's text encoder."""

from __future__ import annotations

from pathlib import Path

import comfy.latent_formats
import comfy.sd
import torch
from comfy.model_patcher import ModelPatcher
from safetensors.torch import load_file

from .general import LATENT_CHANNELS, WEIGHTS, WIDTH, clip_of, load_vae

TEXT_COLUMNS = 24  # the longest caption has 21; the padding of 77 columns would cost more than it is worth
DEPTH = 3  # SD3's width is 64 times its depth
# As ComfyUI detects Stable Diffusion 3.5, but for the depth (24 or 38), 4 channels, the context's 4096 features, and no pooled text.
CONFIG = {
    "in_channels": LATENT_CHANNELS,
    "out_channels": LATENT_CHANNELS,
    "patch_size": 2,
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


def load_transformer(folder: Path = WEIGHTS) -> tuple[ModelPatcher, comfy.sd.CLIP, comfy.sd.VAE]:
    """As UNETLoader, CLIPLoader and VAELoader would give them."""
    model = comfy.sd.load_diffusion_model(str(folder / "transformer.safetensors"), {"dtype": torch.float32})
    model.model.latent_format = comfy.latent_formats.SD15()
    clip = clip_of(load_file(folder / "general.safetensors"), TEXT_COLUMNS)
    return model, clip, load_vae(folder)
