"""docs/toy.md: how often the models' samples show what held-out prompts ask for, at several guidances."""

from __future__ import annotations

from pathlib import Path

import torch
from lab.evidence.bars import Bars
from lab.evidence.pages import JUDGED, opening, save_page, table
from lab.evidence.sheets import Cell, cell, rows_of_cells
from lab.world.captions import caption
from lab.world.evaluate import ROUND_TRIP, SEED, STEPS, WHOLE, World, answers, decibels, drawn
from lab.world.judge import judge
from lab.world.measure import percent
from lab.world.pack.general import load_general
from lab.world.pack.transformer import load_transformer
from lab.world.render import render
from lab.world.scenes import Scene, sample_scenes

PART = "toy"
SCENES = 200
SAMPLER = "euler_ancestral"
WAYS = ((3.0, SAMPLER), (5.0, SAMPLER), (7.5, SAMPLER), (7.5, "euler"))  # guidances and samplers
SHOWN, COLUMNS = 24, 8  # pictures of each sheet, at SHOWN_AT
SHOWN_AT = 5.0
BARS = {5.0: 85, 7.5: 85}  # percent of the general model's samples that are wholly right, by guidance
AUTOENCODER_BAR = 32.0  # dB
NETWORKS = {"UNet": load_general, "transformer": load_transformer}


@torch.inference_mode()
def write(docs: Path, weights: Path, scenes: int = SCENES) -> list[str]:
    """Writes the page and a sheet for each network; returns the bars that were missed."""
    held_out, bars = sample_scenes(scenes, SEED, split="held_out"), Bars(PART)
    renders = render(sample_scenes(ROUND_TRIP, SEED, split="held_out")).pictures
    loss = decibels(load_general(weights)[2], renders)
    bars.add(
        f"PSNR of {ROUND_TRIP} held-out renders through the autoencoder",
        f"at least {AUTOENCODER_BAR:.0f} dB",
        f"{loss:.1f} dB",
        loss >= AUTOENCODER_BAR,
    )
    sections: list[str] = []
    for name, load in NETWORKS.items():
        rows = []
        for guidance, sampler in WAYS:
            table_of, cells = measured(load(weights), held_out, guidance, sampler)
            right = sum(row[WHOLE] for row in table_of)
            if name == "UNet" and guidance in BARS and sampler == SAMPLER:
                bars.add(
                    f"{WHOLE} right in samples of the UNet at guidance {guidance:g} by `{sampler}`",
                    f"at least {BARS[guidance]} %",
                    f"{percent(right, scenes)} %",
                    100 * right >= BARS[guidance] * scenes,
                )
            rows.append(
                [
                    f"{guidance:g}",
                    f"`{sampler}`",
                    *(percent(sum(row[key] for row in table_of), scenes) for key in table_of[0]),
                ]
            )
            if guidance == SHOWN_AT:
                some = [cells[start : start + COLUMNS] for start in range(0, min(SHOWN, len(cells)), COLUMNS)]
                title = (
                    f"Prompts, and what the judge says of the samples. {name}, guidance {guidance:g}, {STEPS} steps."
                )
                rows_of_cells(title, [], some).save(docs / f"{PART}_{name.lower()}.webp")
        sections += [
            f"## {name}",
            "",
            *table(["guidance", "sampler", *table_of[0]], rows),
            f"![The first samples at guidance {SHOWN_AT:g}]({PART}_{name.lower()}.webp)",
            "",
        ]
    save_page(docs, PART, [*introduction(scenes), *bars.table(), *sections])
    return bars.missed


def measured(
    world: World, scenes: list[Scene], guidance: float, sampler: str
) -> tuple[list[dict[str, bool]], list[Cell]]:
    """What is right in a sample of each scene's caption, and the first samples with the judge's words."""
    prompts = [caption(scene).text for scene in scenes]
    pictures = drawn(world, prompts, guidance, sampler)
    readings = judge(pictures)
    found = [answers(reading, scene) for reading, scene in zip(readings, scenes, strict=True)]
    shown = zip(pictures[:SHOWN], readings, found, prompts, strict=False)
    return found, [cell(picture, reading, right[WHOLE], prompt) for picture, reading, right, prompt in shown]


def introduction(count: int) -> list[str]:
    return [
        *opening("The toy world", PART),
        "The toy world is a set of small models in real architectures: a Stable Diffusion 1.5 in small with its autoencoder and text encoder, a Stable "
        "Diffusion 3 in small of the same latents, an expert, a subject model, and a miniature DALL-E 2. They are trained by `make toy` on scenes that a "
        "[renderer draws](world.webp): two things before a background, in one of several styles. The weights in the repository were trained on a GPU. "
        "The UNet, and the expert and the subject model with it, were trained once more, wider and longer; meanwhile the text encoder was held, since "
        "the transformer was trained with it.",
        "",
        "So the weights in the repository are not what `make toy` makes on a CPU. On two cores it took 3.5 hours from start to end, pauses not counted, "
        "and showed the UNet 77,000 pictures; the one in the repository has seen 1.5 million. Most backgrounds and styles are right then, "
        "things are not. With the prompts and the sampler of the tables below, the UNet of that run draws 0.5 % (0.1 to 2.8) wholly right at guidance 5 "
        "and 0.5 % at 7.5, the transformer 2.0 (0.8 to 5.0) and 0 % (0 to 1.9). The autoencoder of that run has 32.6 dB "
        '(`make toy`, then `make evidence PART="toy --docs <folder>"`).',
        "",
        f"{count} prompts of scenes whose combinations were held out from training, {STEPS} steps on ComfyUI's `normal` schedule, the empty prompt as "
        f"negative. `{SAMPLER}` was chosen on other prompts. Percent of the pictures in which the judge reads what the prompt asks "
        "for. The expert, the subject model and unCLIP have pages of their own: "
        "[Saliency Fusion](saliency_fusion.md), [Subject Fusion](subject_fusion.md), [unCLIP](unclip.md).",
        "",
        JUDGED,
        "",
    ]
