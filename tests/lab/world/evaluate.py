"""How often samples show what held-out prompts ask for, as the judge reads them, with ComfyUI's own sampler."""

from __future__ import annotations

from collections.abc import Sequence

import comfy.sample
import comfy.sd
import torch
from comfy.model_patcher import ModelPatcher
from lab.world.judge import Reading
from lab.world.scenes import SIZE, Scene
from torch import Tensor
from tqdm import tqdm

SEED = 2024
STEPS = 30
BATCH = 20
ROUND_TRIP = 32  # pictures
WHOLE = "things, colours, style"

World = tuple[ModelPatcher, comfy.sd.CLIP, comfy.sd.VAE]


def encoded(clip: comfy.sd.CLIP, prompts: Sequence[str]) -> list:
    """One conditioning whose rows are the prompts: ComfyUI gives each latent of the batch its own."""
    states, pooled = zip(
        *(clip.encode_from_tokens(clip.tokenize(prompt), return_pooled=True) for prompt in prompts), strict=True
    )
    return [[torch.cat(states), {"pooled_output": torch.cat(pooled)}]]


@torch.no_grad()
def sample(
    world: World, prompts: Sequence[str], seed: int, guidance: float, steps: int = STEPS, sampler: str = "euler"
) -> Tensor:
    """Pictures [B, 3, SIZE, SIZE] in 0..1, on ComfyUI's normal schedule."""
    model, clip, vae = world
    empty = torch.zeros(len(prompts), 4, SIZE // 4, SIZE // 4)
    latents = comfy.sample.sample(
        model,
        comfy.sample.prepare_noise(empty, seed),
        steps,
        guidance,
        sampler,
        "normal",
        encoded(clip, prompts),
        encoded(clip, [""]),
        empty,
        disable_pbar=True,
        seed=seed,
    )
    return vae.decode(latents).movedim(-1, 1).float()


def drawn(world: World, prompts: Sequence[str], guidance: float, sampler: str) -> Tensor:
    """A picture for each prompt, in batches that have a seed of their own."""
    starts = tqdm(range(0, len(prompts), BATCH), desc="sampling")
    return torch.cat([sample(world, prompts[k : k + BATCH], SEED + k, guidance, sampler=sampler) for k in starts])


@torch.no_grad()
def through(vae: comfy.sd.VAE, pictures: Tensor) -> Tensor:
    """Pictures [B, 3, H, W], encoded and decoded."""
    return torch.cat([vae.decode(vae.encode(part.movedim(1, -1))) for part in pictures.split(8)]).movedim(-1, 1)


def decibels(vae: comfy.sd.VAE, pictures: Tensor) -> float:
    """Mean PSNR of pictures [B, 3, H, W] through the autoencoder."""
    return (-10 * (through(vae, pictures) - pictures).square().mean((1, 2, 3)).log10()).mean().item()


def answers(reading: Reading, scene: Scene) -> dict[str, bool]:
    """What of a prompt that says everything is right in a picture."""
    kinds = sorted(seen.thing.kind for seen in reading.things) == sorted(thing.kind for thing in scene.things)
    pairs = sorted((seen.thing.kind, seen.thing.colour) for seen in reading.things)
    coloured = pairs == sorted((thing.kind, thing.colour) for thing in scene.things)
    style = reading.style == scene.style

    def order(things: Sequence) -> list[str]:
        return [thing.kind for thing in sorted(things, key=lambda thing: thing.x)]

    return {
        "both things": kinds,
        "things and colours": coloured,
        "style": style,
        "background": reading.background == scene.background,
        "side": kinds and order([seen.thing for seen in reading.things]) == order(scene.things),
        WHOLE: coloured and style,
    }
