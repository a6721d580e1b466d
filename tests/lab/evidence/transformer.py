"""docs/transformer.md: inversion on the transformer, and whether the UNet's windows of Prompt-to-Prompt suit it."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from lab.evidence import intervals, inversion
from lab.evidence.edits import held_out_edits
from lab.evidence.inversion import Measured
from lab.evidence.models import World
from lab.evidence.pages import JUDGED, opening, save_page, table
from lab.evidence.prompt_to_prompt import CHANGES, Settings, edited, plain
from lab.evidence.sheets import cell, rows_of_cells
from lab.evidence.sources import Judged, Sources
from safetensors.torch import load_file
from tqdm import tqdm

PART = "transformer"
SCENES, STEPS, CFG = 60, 30, 7.5  # CFG is Prompt-to-Prompt's own
SEED = 660
INVERTED = 20
UNETS = (0.8, 0.4)  # cross_end and self_end
WAYS = {
    "**Prompt-to-Prompt, automatic cross_end and self_end**": partial(edited, settings=Settings()),
    "automatic, with local blend": partial(edited, settings=Settings(blend=True)),
    "the UNet's defaults, cross_end {}, self_end {}".format(*UNETS): partial(edited, settings=Settings(*UNETS)),
    "only the new prompt": plain,
}
SHOWN = 9


@torch.inference_mode()
def write(docs: Path, weights: Path, scenes: int = SCENES) -> list[str]:
    """Writes the page and its sheet; there is no bar to miss."""
    world = World.load_transformer(weights)
    sources = Sources.open(world, held_out_edits(scenes, SEED, CHANGES[:2]), STEPS)
    results = {name: sources.edited(draw) for name, draw in tqdm(WAYS.items(), desc="methods")}
    unedited = sources.judged(sources.unedited)
    lines = [
        *opening("The transformer", PART),
        *_model(world, weights),
        "## The UNet's windows",
        "",
        f"{scenes} held-out scenes, each with one thing's colour or kind changed, {STEPS} steps of `simple`, guidance {CFG}; done, kept: as on [the page of "
        "Prompt-to-Prompt](prompt_to_prompt.md). No setting was chosen on these results.",
        "",
        JUDGED,
        "",
        *verdict(results),
        *_table(results | {"*the sources, unedited*": unedited}),
        "![Sources and results](transformer.webp)",
        "",
        *_inversion(world, min(scenes, INVERTED)),
    ]
    save_page(docs, PART, lines)
    rows = [
        [
            cell(sources.unedited[i], unedited.readings[i], before=f"{edit.change}: {edit.words}"),
            *(cell(r.pictures[i], r.readings[i], bool(r.done[i])) for r in results.values()),
        ]
        for i, edit in enumerate(sources.edits[:SHOWN])
    ]
    headings = ["source", "automatic", "with local blend", "UNet's windows", "plain"]
    title = f"Words changed on the transformer, {STEPS} steps, guidance {CFG}"
    rows_of_cells(title, headings, rows).save(docs / f"{PART}.webp")
    return []


def _model(world: World, weights: Path) -> list[str]:
    parameters = sum(value.numel() for value in load_file(weights / "transformer.safetensors").values())
    network = world.model.model.diffusion_model
    depth, patch = len(network.joint_blocks), network.patch_size
    return [
        f"ComfyUI's own detection loads it as a Stable Diffusion 3 (MMDiT): {depth} blocks of two streams, width {64 * depth}, patches of {patch} x {patch} "
        f"latent pixels, {parameters / 1e6:.1f} million parameters. It reads the latents of the toy world's autoencoder and the texts of the UNet's text "
        "encoder. Its schedule is `simple`, which begins with noise alone.",
        "",
        "How often its samples show what a prompt asks for is on [the page of the toy world](toy.md). Beside the UNet, it is measured on the pages of "
        "[Plug-and-Play](plug_and_play.md), [Prompt-to-Prompt](prompt_to_prompt.md), [Null-Text Optimize](null_text.md) and [Attention "
        "Mask](attention_mask.md); alone, on the page of [Flow Edit](flow_edit.md).",
        "",
    ]


def verdict(results: dict[str, Judged]) -> list[str]:
    (_, ours), *rest = results.items()
    lines = []
    for name, rival in rest:
        gain = intervals.difference(ours.background, rival.background, 1)
        tie = "" if intervals.differ(ours.background, rival.background) else ", a tie"
        points = 100 * (ours.share - rival.share)
        lines.append(
            f"- Automatic settings, against {name}: edits done {points:+.0f} points, background kept {gain} dB{tie}."
        )
    return [*lines, ""]


def _table(results: dict[str, Judged]) -> list[str]:
    return table(
        ["method", "edits done", "other thing kept, dB", "background kept, dB"],
        [
            (name, intervals.share(*r.counts), intervals.mean(r.other, 1), intervals.mean(r.background, 1))
            for name, r in results.items()
        ],
    )


def _inversion(world: World, scenes: int) -> list[str]:
    measured: Measured = inversion.measure(world, scenes)
    return [
        "## Inversion",
        "",
        f"{scenes} held-out scenes, {inversion.STEPS} steps, as on [the UNet's page](inversion.md).",
        "",
        *inversion.table(measured),
    ]
