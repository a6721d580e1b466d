"""The toy's transformer in ComfyUI's own classes: a small Stable Diffusion 3, told by the toy's text encoder."""

from pathlib import Path

import comfy.latent_formats
import comfy.sd
import torch
from comfy.model_patcher import ModelPatcher
from safetensors.torch import load_file

from .general import LATENT_CHANNELS, WEIGHTS, WIDTH, assembled_text, load_vae

FILE = WEIGHTS / "transformer.safetensors"
TEXT_COLUMNS = 16  # the longest caption has 14; the padding of 77 columns would cost more than the picture
LATENT_STD = 0.3  # of the toy's latents in SD3's space
DEPTH = 3  # SD3's width is 64 times its depth
# As ComfyUI detects Stable Diffusion 3.5, but for the depth (24 or 38), the context's 4096 features, and no pooled text.
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


def latent_format() -> comfy.latent_formats.SD3:
    """SD3's, with a gain: a flow model starts from noise as large as its latents."""
    latents = comfy.latent_formats.SD3()
    latents.scale_factor /= LATENT_STD
    return latents


def load_transformer(file: Path = FILE) -> tuple[ModelPatcher, comfy.sd.CLIP, comfy.sd.VAE]:
    """As UNETLoader, CLIPLoader and VAELoader would give them."""
    model = comfy.sd.load_diffusion_model(str(file), {"dtype": torch.float32})
    model.model.latent_format = latent_format()
    clip = assembled_text(load_file(WEIGHTS / "general.safetensors"), TEXT_COLUMNS)
    return model, clip, load_vae()
