"""What a fusion costs beside its models' own CFG sampling."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import comfy.model_management
import comfy.sd
import torch
from comfy.model_patcher import ModelPatcher
from lab.benchmarks.contestants import CFG, UNetCounter
from lab.benchmarks.subjects import full_size_sd15
from support.fixtures.fusion import expert, fuse, general, plain, run, start_for
from support.fixtures.sampling import schedule

STEPS = 2
RANK = 16
FROM_HALF = (0.5, 1.0)

GENERAL = "the general model's own CFG sampling"
EXPERT = "the expert's"
LORA = "the LoRA variant's"
FUSED = "fusion of both checkpoints"
VARIANT = "fusion of a checkpoint and its LoRA variant"
WINDOWED = "fusion of both checkpoints, the expert from 50 % on"

# What is divided by the sum of what, the most that it may be, and the latent's size.
FUSION_BARS = ((FUSED, (GENERAL, EXPERT), 1.03, (64, 64)), (VARIANT, (GENERAL, LORA), 1.03, (64, 64)))
WINDOWED_SIZE = (16, 16)
REPETITIONS = 2


@dataclass
class FusionCost:
    """Rows that each model's UNet evaluated, and processor seconds of each run. A variant alone has the general model's UNet."""

    general_rows: int
    expert_rows: int
    seconds: list[float] = field(default_factory=list)


def measure_fusion(repetitions: int, progress: Callable[[str], None]) -> list[dict[str, FusionCost]]:
    """For each bar what it compares, in turns, every other repetition in reverse; the last one is the window's, run once.

    Each run loads its models, which takes in the LoRA's calculation, but not the second copy of a variant's checkpoint: that is made once.
    """
    models = full_size_sd15(0), full_size_sd15(1)
    sigmas = schedule(models[0], STEPS)
    one, two, third = general(models[0], CFG), expert(models[1], CFG), expert(_with_lora(models[0]), CFG)
    contestants = {
        GENERAL: lambda: plain(one),
        EXPERT: lambda: plain(two),
        FUSED: lambda: fuse(one, two),
        LORA: lambda: plain(third),
        VARIANT: lambda: fuse(one, third),
        WINDOWED: lambda: fuse(one, expert(models[1], CFG, span=FROM_HALF)),
    }

    variant = fuse(one, third).experts[0].model_patcher

    def measure(names: Sequence[str], repetition: int, size: tuple[int, int], measured: dict[str, FusionCost]) -> None:
        start = start_for(models[0], sigmas, size=size)
        for name in names[:: -1 if repetition % 2 else 1]:
            comfy.model_management.unload_all_models()
            gc.collect()
            with UNetCounter(models[0]) as first, UNetCounter(models[1]) as second, UNetCounter(variant) as own:
                began = time.process_time()
                run(contestants[name](), start, sigmas)
                seconds = time.process_time() - began
            measured.setdefault(name, FusionCost(first.rows, second.rows + own.rows)).seconds.append(seconds)
            progress(f"fusion: {repetition + 1} of {repetitions}: {name}: {seconds:.2f} s of the processor")

    of_bars: list[dict[str, FusionCost]] = [{} for _ in FUSION_BARS]
    windowed: dict[str, FusionCost] = {}
    measure([WINDOWED], 0, WINDOWED_SIZE, windowed)
    for repetition in range(repetitions):
        for (fused, (first, second), _, size), measured in zip(FUSION_BARS, of_bars, strict=True):
            measure([first, fused, second], repetition, size, measured)
    return [*of_bars, windowed]


def _with_lora(model: ModelPatcher) -> ModelPatcher:
    """A LoRA of all attention, as a published file of it would be loaded."""
    generator = torch.Generator().manual_seed(2)
    weights = {}
    for name, weight in model.model.state_dict().items():
        if ".attn" in name and name.endswith(".weight"):
            key = name.removesuffix(".weight")
            weights[f"{key}.lora_up.weight"] = torch.randn(weight.shape[0], RANK, generator=generator)
            weights[f"{key}.lora_down.weight"] = torch.randn(RANK, weight.shape[1], generator=generator) / RANK
    patched, _ = comfy.sd.load_lora_for_models(model, None, weights, 0.05, 0.0)
    return patched
