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
HEADER = "edit done | colour | shape | background | all five | background kept, mean | median | to the outline | object kept |"


def compare(world: World) -> dict[str, Score]:
    edits = Edits.open(world, held_out_edits(SCENES, 600), STEPS)
    ways: dict[str, Callable[[Group], World]] = {
        "chosen": lambda group: group.steered(CHOSEN),
        "threshold": lambda group: group.steered(replace(CHOSEN, blend_threshold=DEFAULTS.blend_threshold)),
        "no blend": lambda group: group.steered(replace(CHOSEN, blend_words=no_words)),
        "defaults": lambda group: group.steered(DEFAULTS),
        "plain": lambda group: world,
        "plug and play": lambda group: world.plug_and_play(group.trajectory, 0.8, 0.5),
    }
    scores = {
        name: edits.each(lambda group, way=way: group.sample(way(group), CFG))
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
    world = World.load()
    return publish(docs, compare(world))


def publish(docs: Path, scores: dict[str, Score]) -> list[str]:
    bars = Bars("prompt_to_prompt")
    chosen = scores["chosen"]
    kept = float(chosen.to_outline.mean())
    bars.add(
        "edit judged done",
        f"at least {100 * DONE_BAR:.0f} %",
        f"{100 * chosen.done():.0f} %",
        chosen.done() >= DONE_BAR,
    )
    bars.add(
        "background outside the object kept, to its very outline, mean of the pictures' PSNR",
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
        "threshold": f"the same, the node's default threshold ({DEFAULTS.blend_threshold})",
        "no blend": "the same, no local blend",
        "defaults": f"Prompt-to-Prompt, the node's defaults ({DEFAULTS.cross_end}, {DEFAULTS.self_end}), no local blend",
        "plain": "plain prompt change from the inverted noise",
        "plug and play": "Plug-and-Play (0.8/0.5)",
        "target": "*true renders of the edited scenes, through the autoencoder*",
    }
    rule = "|---" * 10 + "|"
    return [
        "# Prompt-to-Prompt, measured",
        "",
        "These are figures of the toy model, not of Stable Diffusion. `make evidence` writes this page "
        "(this part alone: `make evidence PART=prompt_to_prompt`).",
        "",
        f"{len(chosen.edits)} held-out scenes, 128x128, one word of the caption changed ({kinds}). Source: inverted with its own "
        f"caption by `fixed_point`, 5 iterations. All methods: {STEPS} steps of `ddim_uniform`, stock `euler`, guidance {CFG} (the "
        "toy model draws best at 2 to 3, see [its own page](toy.md)), the empty text as negative. "
        "The setting of the first row was chosen on other held-out scenes. Local blend: the object's colour and shape are named, in "
        "both prompts; for an edit of the background no word is. Edits whose captions "
        "have their words in the same columns go through the nodes as one batch.",
        "",
        "Edit done: the judge finds the word that the prompt asks for. All five: shape, colour, texture, position and background "
        "as in the prompt. Kept: PSNR in dB against the unedited source as the autoencoder gives it back. Background kept: edits of "
        "colour and shape, outside the true mask of the object before and after the edit; object kept: edits of the background, "
        f"inside the object's mask. {MARGIN} pixels along the outline are left out of both, because a latent pixel covers 8 and the "
        "autoencoder blurs the object's colour over its outline; the column to the outline leaves out none.",
        "",
        *bars.table(),
        f"| method | {HEADER}",
        rule,
        *(scores[name].row(label) for name, label in names.items()),
        "",
        f"The same noise without any injection does {100 * scores['plain'].done():.0f} % of the edits and keeps "
        f"{float(scores['plain'].outside.mean()):.1f} dB: at latents of 16 x 16 the layout is in the inverted noise already, and what "
        f"Prompt-to-Prompt adds is {float(chosen.outside.mean() - scores['plain'].outside.mean()):.1f} dB of background, most of it by the "
        "local blend. The longer the source's cross-attention lasts, the fewer shapes change.",
        "",
        f"The row in italics is the most that a perfect edit could keep. The judge takes {100 * scores['unedited'].done():.0f} % of "
        "the unedited sources for edited.",
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
