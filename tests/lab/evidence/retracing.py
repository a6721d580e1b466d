"""docs/retracing.md: what exact retracing does to edits, beside inversions by `fixed_point` and plain `ddim`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from lab.evidence.bars import Bars
from lab.evidence.intervals import share
from lab.evidence.processes import spread
from lab.evidence.prompt_to_prompt import CFG, CHOSEN, SCENES, STEPS
from lab.evidence.prompt_to_prompt_edits import Edits, Group, Score, held_out_edits
from lab.evidence.world import World, psnr_each
from palimpsest.nodes.retracing.nodes import ExactRetracing
from torch import Tensor

PLUG_AND_PLAY = (0.8, 0.5)


@dataclass(frozen=True)
class Way:
    """How a source is inverted, and whether sampling retraces it exactly."""

    label: str
    method: str
    exact: bool = False


WAYS = (
    Way("`fixed_point`, 5 iterations", "fixed_point"),
    Way("`ddim`", "ddim"),
    Way("`ddim`, exact retracing", "ddim", exact=True),
)
EDITS: dict[str, Callable[[Group, bool], World]] = {
    "only the new prompt": lambda group, exact: retraced(group, exact),
    "Plug-and-Play, feature_end 0.8, attention_end 0.5": lambda group, exact: group.world.plug_and_play(
        group.trajectory, *PLUG_AND_PLAY, exact_retracing=exact
    ),
    f"Prompt-to-Prompt, cross_end {CHOSEN.cross_end}, self_end {CHOSEN.self_end}, local blend": lambda group, exact: (
        group.steered(CHOSEN, exact_retracing=exact)
    ),
}


def retraced(group: Group, exact: bool) -> World:
    if not exact:
        return group.world
    return group.world.with_model(ExactRetracing.execute(group.world.model, group.trajectory)[0])


@dataclass(frozen=True)
class Result:
    """reconstructed: PSNR in dB of each source sampled again with its own prompt at guidance 1."""

    reconstructed: Tensor
    scores: dict[str, Score]


@torch.inference_mode()
def measured(way: Way) -> Result:
    edits = Edits.open(World.load(), held_out_edits(SCENES, 600), STEPS, way.method)
    again = edits.each(lambda group: group.sample(retraced(group, way.exact), 1.0, group.source))
    scores = {
        name: edits.each(lambda group, edited=edited: group.sample(edited(group, way.exact), CFG))
        for name, edited in EDITS.items()
    }
    return Result(psnr_each(again.images, edits.unedited), scores)


def write(docs: Path) -> list[str]:
    """Write the page; returns the bars that were missed."""
    found = dict(zip(WAYS, spread(measured, WAYS), strict=True))
    bars = Bars("retracing")
    worst = float(found[WAYS[2]].reconstructed.min())
    bars.add(
        "PSNR of the worst source at guidance 1 with exact retracing",
        "at least 60 dB",
        f"{worst:.1f} dB",
        worst >= 60.0,
    )
    lines = page(found, bars)
    (docs / "retracing.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))
    return bars.missed


def page(found: dict[Way, Result], bars: Bars) -> list[str]:
    n = len(found[WAYS[0]].reconstructed)
    return [
        "# Exact Retracing: measured results",
        "",
        "All figures were measured on the CPU with the [toy model](toy.md), a small model trained on drawn scenes. "
        "They are not figures of Stable Diffusion: full-size models can behave differently. `make evidence "
        "PART=retracing` measures them again and writes this page.",
        "",
        f"{n} held-out scenes, each with one word of its caption changed: the same edits as on [the page of "
        f"Prompt-to-Prompt](prompt_to_prompt.md), with {STEPS} steps of `ddim_uniform`, ComfyUI's `euler` and "
        f"guidance {CFG}. Model calls: those of one inversion with {STEPS} steps, plus those of sampling along it at "
        "guidance 1. PSNR: of the source, sampled with its own prompt at guidance 1, against the picture that the "
        "autoencoder alone reconstructs. 120 dB is the largest PSNR that this page can show; it stands for a mean "
        "squared error of 1e-12 or less.",
        "",
        *bars.table(),
        "| inversion | model calls | PSNR of the source at guidance 1, mean | worst |",
        "|---|---|---|---|",
        *(
            f"| {way.label} | {calls(way)} | {float(result.reconstructed.mean()):.1f} dB | {float(result.reconstructed.min()):.1f} dB |"
            for way, result in found.items()
        ),
        "",
        "Edit done: fraction of the edits in which the judge finds the word that the prompt asks for, with its 95 % "
        "interval (Wilson). Background kept: PSNR outside the object against the unedited source, for edits of "
        "colour and shape. Object kept: PSNR inside the object, for edits of the background. Where the intervals of "
        "two rows overlap, the table does not show which one does more edits.",
        "",
        "| edit | inversion | edit done | background kept | object kept |",
        "|---|---|---|---|---|",
        *(
            f"| {name} | {way.label} | {share(*result.scores[name].counts())} | {float(result.scores[name].outside.mean()):.1f} dB | "
            f"{float(result.scores[name].inside.mean()):.1f} dB |"
            for name in EDITS
            for way, result in found.items()
        ),
    ]


def calls(way: Way) -> str:
    return f"up to {5 * STEPS} + {STEPS}" if way.method == "fixed_point" else f"{STEPS} + {STEPS}"
