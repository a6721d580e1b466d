"""docs/retracing.md: what exact retracing does to edits, beside inversions by `fixed_point` and plain `ddim`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from lab.evidence.bars import Bars
from lab.evidence.processes import spread
from lab.evidence.prompt_to_prompt import CFG, CHOSEN, SCENES, STEPS
from lab.evidence.prompt_to_prompt_edits import Edits, Group, Score, held_out_edits
from lab.evidence.world import World, psnr_each
from palimpsest.nodes.retracing.nodes import ExactRetracing
from scipy.stats import binomtest
from torch import Tensor

PLUG_AND_PLAY = (0.8, 0.5)


@dataclass(frozen=True)
class Way:
    """How a source is opened in the model, and whether sampling retraces it exactly."""

    label: str
    method: str
    exact: bool = False


WAYS = (
    Way("`fixed_point`, 5 iterations", "fixed_point"),
    Way("`ddim`", "ddim"),
    Way("`ddim`, exact retracing", "ddim", exact=True),
)
EDITS: dict[str, Callable[[Group, bool], World]] = {
    "plain prompt change": lambda group, exact: retraced(group, exact),
    "Plug-and-Play (0.8 / 0.5)": lambda group, exact: group.world.plug_and_play(
        group.trajectory, *PLUG_AND_PLAY, exact_retracing=exact
    ),
    f"Prompt-to-Prompt ({CHOSEN.cross_end} / {CHOSEN.self_end}, local blend)": lambda group, exact: group.steered(
        CHOSEN, exact_retracing=exact
    ),
}


def retraced(group: Group, exact: bool) -> World:
    if not exact:
        return group.world
    return group.world.with_model(ExactRetracing.execute(group.world.model, group.trajectory)[0])


@dataclass(frozen=True)
class Result:
    """returned: PSNR in dB of each source sampled again with its own prompt at guidance 1."""

    returned: Tensor
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
    worst = float(found[WAYS[2]].returned.min())
    bars.add("worst source retraced exactly at guidance 1", "at least 60 dB", f"{worst:.1f} dB", worst >= 60.0)
    lines = page(found, bars)
    (docs / "retracing.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))
    return bars.missed


def page(found: dict[Way, Result], bars: Bars) -> list[str]:
    n = len(found[WAYS[0]].returned)
    return [
        "# Exact retracing, measured",
        "",
        "These are figures of the toy model, not of Stable Diffusion. `make evidence` writes this page "
        "(this part alone: `make evidence PART=retracing`).",
        "",
        f"{n} held-out scenes, one word of the caption changed, the same edits as on [Prompt-to-Prompt's page](prompt_to_prompt.md): {STEPS} "
        f"steps of `ddim_uniform`, stock `euler`, guidance {CFG}. Calls: of the model for one inversion of {STEPS} steps and one "
        "retracing of it at guidance 1.",
        "",
        *bars.table(),
        "| inversion | calls | source at guidance 1, mean | worst |",
        "|---|---|---|---|",
        *(
            f"| {way.label} | {calls(way)} | {float(result.returned.mean()):.1f} dB | {float(result.returned.min()):.1f} dB |"
            for way, result in found.items()
        ),
        "",
        "Edit done: the share in which the judge finds the word that the prompt asks for, with its 95 % interval (Wilson). Background kept: "
        "edits of colour and shape, PSNR against the unedited source outside the object. Object kept: edits of the background, inside the object.",
        "",
        "| edit | inversion | edit done | background kept | object kept |",
        "|---|---|---|---|---|",
        *(
            f"| {name} | {way.label} | {share(result.scores[name])} | {float(result.scores[name].outside.mean()):.1f} dB | "
            f"{float(result.scores[name].inside.mean()):.1f} dB |"
            for name in EDITS
            for way, result in found.items()
        ),
    ]


def calls(way: Way) -> str:
    return f"up to {5 * STEPS} + {STEPS}" if way.method == "fixed_point" else f"{STEPS} + {STEPS}"


def share(score: Score) -> str:
    n = len(score.edits)
    interval = binomtest(round(n * score.done()), n).proportion_ci(method="wilson")
    return f"{100 * score.done():.0f} % ({100 * interval.low:.0f} to {100 * interval.high:.0f})"
