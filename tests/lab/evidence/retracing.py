"""docs/retracing.md: what exact retracing does to edits, beside inversions by `fixed_point` and plain `ddim`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from lab.evidence import intervals
from lab.evidence.bars import Bars
from lab.evidence.edits import held_out_edits
from lab.evidence.models import World
from lab.evidence.pages import JUDGED, opening, save_page, table
from lab.evidence.processes import spread
from lab.evidence.prompt_to_prompt import CHANGES, SEED, Settings, steered
from lab.evidence.scores import psnr
from lab.evidence.sources import Group, Judged, Sources
from palimpsest.nodes.plug_and_play.nodes import PlugAndPlay
from torch import Tensor

PART = "retracing"
SCENES, STEPS, CFG = 40, 20, 7.5
WORDS = Settings(blend=True)
PLUG_AND_PLAY = (0.8, 0.5)
EXACT_BAR = 60.0  # dB


@dataclass(frozen=True)
class Way:
    """How a source is inverted, and whether sampling retraces it exactly."""

    label: str
    method: str
    exact: bool = False


FIXED_POINT, DDIM, EXACT = WAYS = (
    Way("`fixed_point`, 5 iterations", "fixed_point"),
    Way("`ddim`", "ddim"),
    Way("`ddim`, exact retracing", "ddim", exact=True),
)


def retraced(group: Group, exact: bool) -> World:
    return group.world.retracing(group.trajectory) if exact else group.world


def injected(group: Group, exact: bool) -> World:
    blocks = group.world.blocks
    model = PlugAndPlay.execute(group.world.model, group.trajectory, *PLUG_AND_PLAY, blocks, exact_retracing=exact)[0]
    return group.world.with_model(model)


EDITS: dict[str, Callable[[Group, bool], World]] = {
    "only the new prompt": retraced,
    "Plug-and-Play, feature_end {}, attention_end {}".format(*PLUG_AND_PLAY): injected,
    "Prompt-to-Prompt, automatic settings, local blend": lambda group, exact: steered(
        group, WORDS, exact_retracing=exact
    ),
}


@dataclass(frozen=True)
class Result:
    """reconstructed: PSNR in dB of each source sampled again with its own prompt at guidance 1."""

    reconstructed: Tensor
    edited: dict[str, Judged]


@torch.inference_mode()
def measured(way: Way, weights: Path, scenes: int) -> Result:
    edits = held_out_edits(scenes, SEED, CHANGES[:2])
    sources = Sources.open(World.load(weights), edits, STEPS, way.method)
    again = sources.each(lambda group: group.sample(retraced(group, way.exact), 1.0, group.source))
    edited = {
        name: sources.edited(lambda group, steer=steer: group.sample(steer(group, way.exact), CFG))
        for name, steer in EDITS.items()
    }
    return Result(psnr(again, sources.unedited), edited)


def write(docs: Path, weights: Path, scenes: int = SCENES) -> list[str]:
    """Writes the page; returns the bars that were missed."""
    found = dict(zip(WAYS, spread(partial(measured, weights=weights, scenes=scenes), WAYS), strict=True))
    bars = Bars(PART)
    worst = float(found[EXACT].reconstructed.min())
    name = "PSNR of the worst source at guidance 1 with exact retracing"
    bars.add(name, f"at least {EXACT_BAR:.0f} dB", f"{worst:.1f} dB", worst >= EXACT_BAR)
    sampled = [
        (way.label, calls(way), intervals.mean(result.reconstructed, 1), f"{float(result.reconstructed.min()):.1f}")
        for way, result in found.items()
    ]
    edited = [
        (
            name,
            way.label,
            intervals.share(*result.edited[name].counts),
            intervals.mean(result.edited[name].other, 1),
            intervals.mean(result.edited[name].background, 1),
        )
        for name in EDITS
        for way, result in found.items()
    ]
    lines = [
        *opening("Exact Retracing", PART),
        f"{scenes} held-out scenes, each with one thing's colour or kind changed: edits as on [the page of Prompt-to-Prompt](prompt_to_prompt.md), with "
        f"{STEPS} steps of `ddim_uniform`, ComfyUI's `euler` and guidance {CFG}. Model calls: those of one inversion, plus those of sampling along it at "
        "guidance 1. PSNR: of the source, sampled with its own prompt at guidance 1, against the picture that the autoencoder alone reconstructs. 120 dB "
        "is the largest PSNR that this page can show; it stands for a mean squared error of 1e-12 or less.",
        "",
        JUDGED,
        "",
        *bars.table(),
        *table(["inversion", "model calls", "PSNR of the source at guidance 1, dB", "worst"], sampled),
        "Done, kept: as on the page of Prompt-to-Prompt. Against exact retracing, background kept by only the new prompt: "
        f"{_behind(found, FIXED_POINT)} with `fixed_point`, {_behind(found, DDIM)} with plain `ddim`.",
        "",
        *table(["edit", "inversion", "edits done", "other thing kept, dB", "background kept, dB"], edited),
    ]
    save_page(docs, PART, lines)
    return bars.missed


def _behind(found: dict[Way, Result], way: Way) -> str:
    ours, theirs = (found[each].edited["only the new prompt"].background for each in (way, EXACT))
    return intervals.difference(ours, theirs, 1) + " dB" + ("" if intervals.differ(ours, theirs) else ", a tie,")


def calls(way: Way) -> str:
    return f"up to {5 * STEPS} + {STEPS}" if way.method == "fixed_point" else f"{STEPS} + {STEPS}"
