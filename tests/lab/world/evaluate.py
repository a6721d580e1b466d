"""How often samples show what held-out prompts ask for, as the judge reads them, with ComfyUI's own sampler."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import comfy.sample
import comfy.sd
import torch
from comfy.model_patcher import ModelPatcher
from lab.evidence.sheet import Sheet
from lab.world.captions import caption
from lab.world.judge import Reading, judge
from lab.world.measure import percent, words
from lab.world.render import render
from lab.world.scenes import SIZE, Scene, sample_scenes
from torch import Tensor
from tqdm import tqdm

SEED = 2024
STEPS = 30
GUIDANCE = (5.0, 7.5)
BATCH = 20
SHOWN = 24  # pictures of the sheet
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
def sample(world: World, prompts: Sequence[str], seed: int, guidance: float, steps: int = STEPS) -> Tensor:
    """Pictures [B, 3, SIZE, SIZE] in 0..1 by Euler steps on ComfyUI's normal schedule."""
    model, clip, vae = world
    empty = torch.zeros(len(prompts), 4, SIZE // 4, SIZE // 4)
    latents = comfy.sample.sample(
        model,
        comfy.sample.prepare_noise(empty, seed),
        steps,
        guidance,
        "euler",
        "normal",
        encoded(clip, prompts),
        encoded(clip, [""]),
        empty,
        disable_pbar=True,
        seed=seed,
    )
    return vae.decode(latents).movedim(-1, 1).float()


def drawn(world: World, prompts: Sequence[str], guidance: float) -> Tensor:
    """A picture for each prompt, in batches that have a seed of their own."""
    starts = tqdm(range(0, len(prompts), BATCH), desc="sampling")
    return torch.cat([sample(world, prompts[k : k + BATCH], SEED + k, guidance) for k in starts])


@torch.no_grad()
def decibels(vae: comfy.sd.VAE, pictures: Tensor) -> float:
    """Mean PSNR of pictures [B, 3, H, W] through the autoencoder."""
    shown = torch.cat([vae.decode(vae.encode(part.movedim(1, -1))) for part in pictures.split(8)]).movedim(-1, 1)
    return (-10 * (shown - pictures).square().mean((1, 2, 3)).log10()).mean().item()


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


def evaluate(
    world: World, name: str, count: int, sheet: Path, guidances: Sequence[float] = GUIDANCE
) -> dict[float, float]:
    """Prints a table of `count` held-out prompts, and writes a sheet of the first; the share of wholly right ones by guidance."""
    scenes = sample_scenes(count, SEED, split="held_out")
    prompts = [caption(scene).text for scene in scenes]
    print(f"autoencoder: {decibels(world[2], render(scenes[:ROUND_TRIP]).pictures):.2f} dB on held-out renders")
    shares: dict[float, float] = {}
    pages = Sheet(f"{name}: prompts, and what the judge says")
    for guidance in guidances:
        started = time.process_time()
        pictures = drawn(world, prompts, guidance)
        sampled = time.process_time()
        readings = judge(pictures)
        read = time.process_time()
        table = [answers(reading, scene) for reading, scene in zip(readings, scenes, strict=True)]
        cells = [percent(sum(row[key] for row in table), count) for key in table[0]]
        print(f"\n{name}, guidance {guidance}, {STEPS} steps, n = {count}, percent with 95 % intervals (Wilson)")
        print("| " + " | ".join(table[0]) + " |\n|" + "---|" * len(cells) + "\n| " + " | ".join(cells) + " |")
        print(
            f"{(sampled - started) / count:.2f} s of processor time a picture, {1000 * (read - sampled) / count:.0f} ms to judge it"
        )
        shares[guidance] = sum(row[WHOLE] for row in table) / count
        cells = [
            (picture, f"{'+' if right[WHOLE] else '-'} {prompt}\n{words(reading)}")
            for picture, right, prompt, reading in zip(pictures, table, prompts, readings, strict=True)
        ][:SHOWN]
        for start in range(0, len(cells), 8):
            pages.add(cells[start : start + 8])
    sheet.parent.mkdir(parents=True, exist_ok=True)
    pages.save(sheet)
    print(f"\n{sheet}")
    return shares
