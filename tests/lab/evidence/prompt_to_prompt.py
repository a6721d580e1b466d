"""docs/prompt_to_prompt.md: one word of a caption changed; what is done and what stays, beside plain sampling and Plug-and-Play."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from lab.evidence.bars import Bars
from lab.evidence.prompt_to_prompt_edits import (
    ATTRIBUTES,
    MARGIN,
    Edits,
    Group,
    Score,
    Windows,
    held_out_edits,
    no_words,
    object_words,
)
from lab.evidence.sheet import Sheet
from lab.evidence.world import World
from lab.toy.scenes import render
from tqdm import tqdm

SCENES, STEPS = 100, 20
CFG = 2.5
DONE_BAR, KEPT_BAR = 0.85, 28.0
SHOWN = 9

DEFAULTS = Windows()
CHOSEN = Windows(0.4, 0.4, object_words, 0.7)
Way = Callable[[World, Group], World]
WAYS: dict[str, Way] = {
    "chosen": lambda world, group: group.steered(CHOSEN),
    "threshold": lambda world, group: group.steered(replace(CHOSEN, blend_threshold=DEFAULTS.blend_threshold)),
    "no blend": lambda world, group: group.steered(replace(CHOSEN, blend_words=no_words)),
    "defaults": lambda world, group: group.steered(DEFAULTS),
    "plain": lambda world, group: world,
    "plug and play": lambda world, group: world.plug_and_play(group.trajectory, 0.8, 0.5),
}
HEADER = "edit done | colour | shape | background | all five | background kept, mean | median | up to the outline, mean | object kept, mean |"


def compare(world: World, ways: dict[str, Way] = WAYS) -> dict[str, Score]:
    edits = Edits.open(world, held_out_edits(SCENES, 600), STEPS)
    scores = {
        name: edits.each(lambda group, way=way: group.sample(way(world, group), CFG))
        for name, way in tqdm(ways.items(), desc="methods")
    }
    targets, _ = render([edit.target for edit in edits.edits])
    return scores | {
        "target": edits.score(world.decode(world.encode(targets))),
        "unedited": edits.score(edits.unedited),
    }


@torch.inference_mode()
def write(docs: Path) -> list[str]:
    """Write the page and its contact sheet; returns the bars that were missed."""
    return publish(docs, compare(World.load()))


def publish(docs: Path, scores: dict[str, Score]) -> list[str]:
    bars = Bars("prompt_to_prompt")
    chosen = scores["chosen"]
    kept = float(chosen.to_outline.mean())
    bars.add(
        "edits done",
        f"at least {100 * DONE_BAR:.0f} %",
        f"{100 * chosen.done():.0f} %",
        chosen.done() >= DONE_BAR,
    )
    bars.add(
        "background kept up to the outline, mean PSNR",
        f"at least {KEPT_BAR:.0f} dB",
        f"{kept:.1f} dB",
        kept >= KEPT_BAR,
    )
    lines = page(scores, bars)
    (docs / "prompt_to_prompt.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))
    contact_sheet(scores).save(docs / "prompt_to_prompt.webp")
    return bars.missed


def page(scores: dict[str, Score], bars: Bars) -> list[str]:
    chosen = scores["chosen"]
    kinds = ", ".join(f"{kind} {sum(e.attribute == kind for e in chosen.edits)}" for kind in ATTRIBUTES)
    ends = f"cross_end {CHOSEN.cross_end}, self_end {CHOSEN.self_end}"
    names = {
        "chosen": f"**Prompt-to-Prompt, {ends}, local blend on the object's words, threshold {CHOSEN.blend_threshold}**",
        "threshold": f"the same with the node's default threshold, {DEFAULTS.blend_threshold}",
        "no blend": "the same without local blend",
        "defaults": f"Prompt-to-Prompt with the node's defaults, cross_end {DEFAULTS.cross_end}, self_end {DEFAULTS.self_end}, "
        "without local blend",
        "plain": "only the new prompt, from the inverted noise",
        "plug and play": "Plug-and-Play, feature_end 0.8, attention_end 0.5",
        "target": "*the edited scenes, drawn by the renderer, through the autoencoder*",
    }
    rule = "|---" * 10 + "|"
    return [
        "# Prompt-to-Prompt: measured results",
        "",
        "All figures were measured on the CPU with the [toy model](toy.md), a small model trained on drawn scenes. "
        "They are not figures of Stable Diffusion: full-size models can behave differently. `make evidence "
        "PART=prompt_to_prompt` measures them again and writes this page.",
        "",
        f"{len(chosen.edits)} held-out scenes of 128 x 128 pixels, each with one word of its caption changed ({kinds}). "
        f"The source was inverted with its own caption by `fixed_point`, 5 iterations. All methods used {STEPS} "
        f"steps of `ddim_uniform`, ComfyUI's `euler`, guidance {CFG} and the empty prompt as negative. The toy model "
        "draws best at guidance 2 to 3, see [its own page](toy.md). The settings of the first row were chosen on "
        "other held-out scenes. Local blend: the colour and the shape of the object are the blend words, in both "
        "prompts; edits of the background have no blend words.",
        "",
        "Edit done: fraction of the edits in which the judge, a program that reads the drawn scenes, finds the word "
        "that the prompt asks for, with its 95 % interval (Wilson); then the same for each kind of edit. All five: shape, colour, texture, position "
        "and background are as in the prompt. Kept: PSNR in dB against the source as the autoencoder alone "
        "reconstructs it. Background kept, for edits of colour and shape: outside the true masks of the object "
        "before and after the edit. Object kept, for edits of the background: inside the object's mask. Both leave "
        f"out {MARGIN} pixels along the outline, because one pixel of the latent covers 8 pixels of the picture and "
        "the autoencoder blurs the object's colour over its outline. The column \u201cup to the outline\u201d leaves out "
        "none.",
        "",
        *bars.table(),
        f"| method | {HEADER}",
        rule,
        *(scores[name].row(label) for name, label in names.items()),
        "",
        f"The new prompt alone, from the same noise, does {100 * scores['plain'].done():.0f} % of the edits and "
        f"keeps the background at {float(scores['plain'].outside.mean()):.1f} dB: with latents of 16 x 16, the "
        f"inverted noise already holds the layout. Prompt-to-Prompt adds {float(chosen.outside.mean() - scores['plain'].outside.mean()):.1f} "
        f"dB of background, most of it by the local blend. With cross_end {DEFAULTS.cross_end} fewer shapes change "
        f"than with {CHOSEN.cross_end}.",
        "",
        f"The row in italics shows what a perfect edit would keep. The judge reads {100 * scores['unedited'].done():.0f} "
        "% of the unedited sources as edited.",
        "",
        "![Sources and results of each method](prompt_to_prompt.webp)",
    ]


def contact_sheet(scores: dict[str, Score]) -> Sheet:
    """The first edits as they come."""
    names = {
        "chosen": "P2P, chosen",
        "threshold": f"threshold {DEFAULTS.blend_threshold}",
        "no blend": "no blend",
        "defaults": "defaults",
        "plain": "plain",
        "plug and play": "PnP",
    }
    edits = scores["chosen"].edits
    sheet = Sheet(
        f"One word changed: Prompt-to-Prompt and what it is compared with, {STEPS} steps, guidance {CFG}. Toy model.",
        ["source", *names.values()],
    )
    for i, edit in enumerate(edits[:SHOWN]):
        cells = [(scores["unedited"].images[i], f"{edit.attribute}: {edit.words}")]
        sheet.add(cells + [(scores[name].images[i], "") for name in names])
    return sheet
