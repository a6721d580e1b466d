"""Pictures from the toy model through ComfyUI's own sampling, several prompts at a time."""

from collections.abc import Sequence

import comfy.sample
import comfy.sd
import torch
from comfy.model_patcher import ModelPatcher
from lab.toy.scenes import SIZE
from torch import Tensor

STEPS = 50
CFG = 3.0


def encode_prompts(clip: comfy.sd.CLIP, prompts: Sequence[str]) -> list:
    """One conditioning whose rows are the prompts: ComfyUI gives each latent of the batch its own."""
    states, pooled = zip(
        *(clip.encode_from_tokens(clip.tokenize(prompt), return_pooled=True) for prompt in prompts), strict=True
    )
    return [[torch.cat(states), {"pooled_output": torch.cat(pooled)}]]


@torch.no_grad()
def sample(
    model: ModelPatcher,
    clip: comfy.sd.CLIP,
    vae: comfy.sd.VAE,
    prompts: Sequence[str],
    seed: int = 0,
    *,
    steps: int = STEPS,
    cfg: float = CFG,
    size: int = SIZE,
    scheduler: str = "ddim_uniform",
) -> Tensor:
    """Images [B, 3, size, size] in 0..1 by Euler, which on the ddim_uniform schedule of a UNet is DDIM."""
    empty = torch.zeros(len(prompts), 16, size // 8, size // 8)
    latents = comfy.sample.sample(
        model,
        comfy.sample.prepare_noise(empty, seed),
        steps,
        cfg,
        "euler",
        scheduler,
        encode_prompts(clip, prompts),
        encode_prompts(clip, [""]),
        empty,
        disable_pbar=True,
        seed=seed,
    )
    return vae.decode(latents).movedim(-1, 1)


@torch.no_grad()
def reconstruct(vae: comfy.sd.VAE, images: Tensor) -> Tensor:
    """Images [B, 3, H, W] in 0..1 through the autoencoder."""
    return torch.cat([vae.decode(vae.encode(chunk.movedim(1, -1))) for chunk in images.split(16)]).movedim(-1, 1)


def psnr(a: Tensor, b: Tensor) -> float:
    """Mean over the batch of each picture's PSNR, in dB."""
    return (-10 * (a - b).square().flatten(1).mean(1).log10()).mean().item()
