"""docs/flow_edit.md: edits of one thing without inversion by PAL_FlowEditGuider on the transformer, beside SDEdit."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import comfy_extras.nodes_custom_sampler as core
import torch
from lab.evidence import intervals
from lab.evidence.edits import held_out_edits
from lab.evidence.models import World
from lab.evidence.pages import JUDGED, opening, save_page, table
from lab.evidence.prompt_to_prompt import CHANGES
from lab.evidence.sheets import cell, rows_of_cells
from lab.evidence.sources import Group, Judged, Sources
from palimpsest.nodes.flow_edit.nodes import FlowEdit
from torch import Tensor
from tqdm import tqdm

PART = "flow_edit"
SCENES, STEPS = 60, 30
SEED = 650
CFG, CFG_SOURCE = 5.0, 1.5
PUBLISHED = (13.5, 3.5)  # for SD3, of full size
STRENGTHS = (0.5, 0.65, 0.85, 1.0)
SDEDIT_CFG = 5.0
SDEDIT_STRENGTHS = (0.4, 0.5, 0.65, 0.8)
SHOWN = 6


def flow_edit(group: Group, strength: float, cfgs: tuple[float, float]) -> Tensor:
    """cfgs: guidance towards what the pictures should become, and towards what they show."""
    world, method = group.world, {"method": "flow_edit", "strength": strength, "averages": 1}
    guider = FlowEdit.execute(world.model, group.target, world.prompts([""]), group.source, *cfgs, method)[0]
    sampler, noise = core.KSamplerSelect.execute("euler")[0], core.RandomNoise.execute(1)[0]
    latent = {"samples": group.latent}
    result = core.SamplerCustomAdvanced.execute(noise, guider, sampler, world.sigmas(STEPS), latent)[0]
    return world.decode(result["samples"])


def sdedit(group: Group, strength: float) -> Tensor:
    sigmas = group.world.sigmas(STEPS)
    return group.world.decode(group.world.sdedit(group.latent, group.target, SDEDIT_CFG, strength, sigmas))


@torch.inference_mode()
def write(docs: Path, weights: Path, scenes: int = SCENES) -> list[str]:
    """Writes the page and its sheet; there is no bar to miss."""
    sources = Sources.open(
        World.load_transformer(weights), held_out_edits(scenes, SEED, CHANGES[:2]), STEPS, by_words=False
    )
    ways = {
        **{
            f"FlowEdit, strength {s}, cfg {CFG:g}, cfg_source {CFG_SOURCE:g}": partial(
                flow_edit, strength=s, cfgs=(CFG, CFG_SOURCE)
            )
            for s in STRENGTHS
        },
        "FlowEdit, strength 0.65, cfg {}, cfg_source {}, as published for SD3".format(*PUBLISHED): partial(
            flow_edit, strength=0.65, cfgs=PUBLISHED
        ),
        **{f"SDEdit, strength {s}": partial(sdedit, strength=s) for s in SDEDIT_STRENGTHS},
    }
    results = {name: sources.edited(draw) for name, draw in tqdm(ways.items(), desc="methods")}
    unedited = sources.judged(sources.unedited)
    lines = [
        *opening("Flow Edit", PART),
        f"{scenes} held-out scenes, each with one thing's colour or kind changed: edits as on [the page of Prompt-to-Prompt](prompt_to_prompt.md), on "
        f"[the transformer](transformer.md), with {STEPS} steps of `simple` and ComfyUI's `euler`. `PAL_FlowEditGuider` with the method `flow_edit` starts "
        f"from the picture itself, without an inversion. SDEdit adds noise to the picture and samples with guidance {SDEDIT_CFG:g}. No setting was chosen "
        "on other scenes.",
        "",
        JUDGED,
        "",
        "Done, kept: as on the page of Prompt-to-Prompt. IoU: of both things' masks with the source's.",
        "",
        *verdict(results),
        *table(
            ["method", "edits done", "other thing kept, dB", "background kept, dB", "IoU"],
            [row(name, result) for name, result in (results | {"*the sources, unedited*": unedited}).items()],
        ),
        "![Sources and results](flow_edit.webp)",
    ]
    save_page(docs, PART, lines)
    rows = [
        [
            cell(sources.unedited[i], unedited.readings[i], before=f"{edit.change}: {edit.words}"),
            *(cell(r.pictures[i], r.readings[i], bool(r.done[i])) for r in results.values()),
        ]
        for i, edit in enumerate(sources.edits[:SHOWN])
    ]
    title = f"One thing changed without inversion, {STEPS} steps. Toy transformer."
    rows_of_cells(title, ["source", *map(_short, results)], rows).save(docs / f"{PART}.webp")
    return []


def verdict(results: dict[str, Judged]) -> list[str]:
    """Each strength of FlowEdit against the SDEdit that does the nearest number of edits."""
    lines, rivals = [], {name: result for name, result in results.items() if name.startswith("SDEdit")}
    for name, ours in results.items():
        if name not in rivals:
            rival = min(rivals, key=lambda each: abs(rivals[each].share - ours.share))
            gain = intervals.difference(ours.background, rivals[rival].background, 1)
            tie = "" if intervals.differ(ours.background, rivals[rival].background) else ", a tie"
            points = 100 * (ours.share - rivals[rival].share)
            lines.append(f"- {name}, against {rival}: edits done {points:+.0f} points, background kept {gain} dB{tie}.")
    return [*lines, ""]


def row(name: str, result: Judged) -> tuple[str, ...]:
    kept = (intervals.mean(part, 1) for part in (result.other, result.background))
    return name, intervals.share(*result.counts), *kept, intervals.mean(result.iou)


def _short(name: str) -> str:
    method, strength, *guidance = name.split(", ")
    return f"{method} {strength.removeprefix('strength ')}" + (" (SD3's)" if len(guidance) > 2 else "")
