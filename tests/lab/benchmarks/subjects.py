"""The models that are measured."""

from __future__ import annotations

from dataclasses import dataclass

import comfy.model_management
import comfy.supported_models
import torch
from comfy.model_base import BaseModel
from comfy.model_patcher import ModelPatcher
from lab.evidence.edits import held_out_edits
from lab.evidence.models import BLOCKS
from lab.world.pack.general import load_general
from lab.world.render import render
from palimpsest.nodes.diffusion.conditioning import Conditioning
from support.fixtures import tiny_models

# What ComfyUI detects in a published SD1.5 checkpoint, and in one of SDXL.
SD15_UNET = {**tiny_models.SD1_UNET, "model_channels": 320, "context_dim": 768}
SDXL_UNET = {
    **tiny_models.SDXL_UNET, "model_channels": 320, "context_dim": 2048, "adm_in_channels": 2816,
    "transformer_depth": [0, 0, 2, 2, 10, 10], "transformer_depth_middle": 10,
    "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10],
}  # fmt: skip


@dataclass(frozen=True)
class Subject:
    """A model, what is edited with it, and how long the runs are."""

    name: str
    model: ModelPatcher
    repetitions: int
    source: Conditioning
    positive: Conditioning
    negative: Conditioning
    latent: torch.Tensor  # [1, C, H, W] as a VAE gives it
    steps: int
    published_inversion_steps: int = 0  # of its 999; the rest is multiplied. 0: nothing but what a bar compares is run
    blocks: str = "auto"  # of Plug-and-Play

    @property
    def parameters(self) -> int:
        return sum(weight.numel() for weight in self.model.model.diffusion_model.parameters())

    def __str__(self) -> str:
        channels, height, width = self.latent.shape[1:]
        millions = f"{self.parameters / 1e6:.1f} M parameters"
        return f"{self.name}: {millions}, latent {channels} x {height} x {width}, {self.steps} steps"


def toy(published_inversion_steps: int = 999) -> Subject:
    """A held-out scene and a change of its colour, with the trained weights."""
    model, clip, vae = load_general()
    (edit,) = held_out_edits(1, 0, ("colour",))
    pictures = render([edit.source]).pictures  # [1, 3, H, W] in 0..1
    source, positive, negative = (
        clip.encode_from_tokens_scheduled(clip.tokenize(text)) for text in ("", edit.target_text, "")
    )
    latent = vae.encode(pictures.movedim(1, -1))
    return Subject("toy", model, 5, source, positive, negative, latent, 50, published_inversion_steps, BLOCKS)


def sd15() -> Subject:
    """On the CPU. Five steps keep the default windows' shares exact where the cost hangs on them: 4 with a source, of 5."""
    model = full_size_sd15()
    source, positive, negative = (tiny_models.conditioning(model, seed) for seed in (1, 2, 3))
    latent = tiny_models.latent(model, 4, height=64, width=64)["samples"]
    return Subject("SD1.5", model, 2, source, positive, negative, latent, 5)


def on_gpu(name: str, size: int) -> Subject:
    """SD1.5 or SDXL in fp16 on the GPU."""
    model = full_size(name, torch.float16, None, comfy.model_management.get_torch_device())
    source, positive, negative = (full_size_conditioning(model.model, seed) for seed in (1, 2, 3))
    latent = tiny_models.latent(model, 4, height=size, width=size)["samples"]
    return Subject(f"{name}, fp16, GPU", model, 5, source, positive, negative, latent, 10)


def full_size_sd15(seed: int = 0) -> ModelPatcher:
    """SD1.5's UNet in float32."""
    return full_size("SD1.5", torch.float32, None, tiny_models.CPU, seed)


def full_size(
    name: str, dtype: torch.dtype, compute_dtype: torch.dtype | None, device: torch.device, seed: int = 0
) -> ModelPatcher:
    """A UNet with variance-preserving random weights: time and memory depend on shapes alone.

    compute_dtype: what ComfyUI casts weights to, None for their own dtype. device: where it runs; it is kept on the CPU.
    """
    model = base_model(name, dtype, compute_dtype, tiny_models.CPU)
    generator = torch.Generator().manual_seed(seed)
    for key, weight in model.diffusion_model.named_parameters():
        if weight.ndim > 1:
            weight.data.normal_(0.0, weight[0].numel() ** -0.5, generator=generator)
        else:
            weight.data.fill_(float(key.endswith("weight")))
    return ModelPatcher(model, load_device=device, offload_device=tiny_models.CPU)


def base_model(name: str, dtype: torch.dtype, compute_dtype: torch.dtype | None, device: torch.device) -> BaseModel:
    """SD1.5 or SDXL at full size; on the device "meta" its UNet has no weights, only their shapes."""
    kind, unet = {
        "SD1.5": (comfy.supported_models.SD15, SD15_UNET),
        "SDXL": (comfy.supported_models.SDXL, SDXL_UNET),
    }[name]
    config = kind(unet)
    config.set_inference_dtype(dtype, compute_dtype)
    return config.get_model({}, device=device)


def full_size_conditioning(model: BaseModel, seed: int) -> Conditioning:
    width = model.model_config.unet_config["context_dim"]
    generator = torch.Generator().manual_seed(seed)
    text, pooled = torch.randn(1, 77, width, generator=generator), torch.randn(1, 1280, generator=generator)
    return [[text, {"pooled_output": pooled} if model.adm_channels else {}]]
