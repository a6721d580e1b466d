"""docs/null_text.md: how well guided sampling gives an inverted picture back, and how many edits of it are done, method by method."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median

import torch
from lab.evidence import intervals
from lab.evidence.edits import held_out_edits
from lab.evidence.intervals import ahead
from lab.evidence.models import NETWORKS
from lab.evidence.pages import JUDGED, claims, opening, save_page, table
from lab.evidence.plots import trade_off
from lab.evidence.prompt_to_prompt import CHANGES, CHOSEN_ON, Settings, choose, steered
from lab.evidence.scores import psnr
from lab.evidence.sheets import cell, rows_of_cells
from lab.evidence.sources import Group, Judged, Sources
from palimpsest.nodes.diffusion.conditioning import Conditioning
from palimpsest.nodes.null_text.optimize import optimize
from palimpsest.nodes.null_text.solvers import Effort
from torch import Tensor
from tqdm import tqdm

SCENES = 100
SEED = 700
STEPS, CFG = 20, 7.5
TOLERANCES = (1e-2, 1e-3, 1e-4, 1e-5)  # of `fast`
SHOWN = 4
OPTIMISED = "`null_text`, constants of the code"
DDIM, ALIGNED = "`ddim` pivot, the empty negative", "aligned: inverted at this guidance, retraced exactly"


@dataclass(frozen=True)
class Method:
    """How the negative of an inverted picture is found."""

    method: str | None = None  # of Null-Text Optimize; without one the negative is the empty prompt
    effort: Effort = field(default_factory=Effort)
    aligned: bool = False


METHODS: dict[str, Method] = {
    DDIM: Method(),
    ALIGNED: Method(aligned=True),
    "`negative_prompt`": Method("negative_prompt"),
    **{f"`fast`, tolerance {t:g}": Method("fast", Effort(tolerance=t)) for t in TOLERANCES},
    OPTIMISED: Method("null_text", Effort(constants="code")),
    "`null_text`, constants of the paper": Method("null_text", Effort(constants="paper")),
}


@dataclass(frozen=True)
class Found:
    again: Tensor  # pictures, sampled with their own captions
    reconstructed: Tensor  # dB [N], against the autoencoder's picture
    edited: Judged
    calls: list[int]  # of the network for each picture of a batch, backward passes included


@dataclass(frozen=True)
class Prepared:
    """A group with what a method found for it."""

    group: Group
    negative: Conditioning | None
    aligned: bool

    def again(self) -> Tensor:
        world = self.group.world.retracing(self.group.trajectory) if self.aligned else self.group.world
        return self.group.sample(world, CFG, self.group.source, self.negative)

    def edited(self, settings: Settings) -> Tensor:
        optional = {"exact_retracing": True} if self.aligned else {}
        return self.group.sample(steered(self.group, settings, **optional), CFG, None, self.negative)


def prepared(group: Group, method: Method) -> tuple[Prepared, int]:
    if method.aligned:
        return Prepared(group.inverted_with(group.source, CFG), None, True), 0
    if method.method is None:
        return Prepared(group, None, False), 0
    empty = group.world.prompts([""])
    negative, course = optimize(
        group.world.model, group.source, empty, group.trajectory, CFG, method.effort, method.method
    )
    return Prepared(group, negative, False), course.evaluations.forwards + course.evaluations.backwards


def found_by(method: Method, sources: Sources, settings: Settings) -> Found:
    ready, calls = zip(*(prepared(group, method) for group in sources.groups), strict=True)
    of_group = {id(group): one for group, one in zip(sources.groups, ready, strict=True)}

    def draw(make: Callable[[Prepared], Tensor]) -> Tensor:
        return sources.each(lambda group: make(of_group[id(group)]))

    again = draw(lambda one: one.again())
    edited = sources.judged(draw(partial(Prepared.edited, settings=settings)))
    return Found(again, psnr(again.clamp(0, 1), sources.unedited.clamp(0, 1)), edited, list(calls))


@dataclass(frozen=True)
class Measured:
    sources: Sources
    settings: Settings
    found: dict[str, Found]


def measure(network: str, weights: Path, scenes: int) -> Measured:
    settings = choose(network, weights, max(min(scenes, CHOSEN_ON), len(CHANGES)))
    sources = Sources.open(NETWORKS[network](weights), held_out_edits(scenes, SEED, CHANGES[:2]), STEPS)
    found = {name: found_by(method, sources, settings) for name, method in tqdm(METHODS.items(), desc="methods")}
    return Measured(sources, settings, found)


@torch.no_grad()  # what the optimisation differentiates must be no inference tensor
def write(docs: Path, weights: Path, scenes: int = SCENES) -> list[str]:
    """Writes the page, its plot and its sheets; there is no bar to miss."""
    measured = {name: measure(name, weights, scenes) for name in NETWORKS}
    lines = [
        *opening("Null-Text Optimize", "null_text"),
        f"{scenes} held-out scenes of two things were inverted by `ddim` with their own captions on {STEPS} steps. Each was sampled again at guidance "
        f"{CFG} with the same caption, and edited at that guidance by Prompt-to-Prompt: one thing's colour or kind swapped, with the settings of [its "
        "page](prompt_to_prompt.md). The methods differ in the negative prompt that both have; `aligned` inverts at this guidance and samples with "
        "exact retracing instead.",
        "",
        JUDGED,
        "",
        "Reconstructed: PSNR against the picture that the autoencoder alone gives; 120 dB is the most that this page shows. Done, kept: as on the page "
        "of Prompt-to-Prompt. Calls: evaluations of the network to find the negative, backward passes counted too, median over the batches.",
        "",
    ]
    for name, one in measured.items():
        lines += [f"## {name}", "", *verdict(one), *_table(one)]
        _sheet(name, one).save(docs / f"null_text_{name.lower()}.webp")
        lines += [f"![Reconstructions and edits](null_text_{name.lower()}.webp)", ""]
    trade_off(
        docs / "null_text.png",
        ("reconstructed, dB (mean)", "edits done"),
        {name: _points(one) for name, one in measured.items()},
    )
    save_page(docs, "null_text", [*lines, "![Edits done against reconstruction](null_text.png)"])
    return []


def _points(measured: Measured) -> tuple[dict, dict]:
    every = {name: (float(f.reconstructed.mean()), f.edited.share) for name, f in measured.found.items()}
    best = pareto(every)
    fast = [point for name, point in every.items() if name.startswith("`fast`")]
    return (
        {name + (" (Pareto)" if name in best else ""): point for name, point in every.items()},
        {"`fast` over tolerances": fast},
    )


def pareto(points: dict[str, tuple[float, float]]) -> set[str]:
    """Those that no other beats in one figure without losing in the other."""

    def beaten(point: tuple[float, float]) -> bool:
        return any(x >= point[0] and y >= point[1] and (x, y) != point for x, y in points.values())

    return {name for name, point in points.items() if not beaten(point)}


def verdict(measured: Measured) -> list[str]:
    plain, aligned, optimised = (measured.found[name] for name in (DDIM, ALIGNED, OPTIMISED))
    lines = claims(
        {
            "optimisation gives the picture back better than the empty negative": ahead(
                optimised.reconstructed, plain.reconstructed
            ),
            "it does no fewer edits, within chance": not ahead(plain.edited.done, optimised.edited.done),
            "it does more edits than an inversion at full guidance": ahead(optimised.edited.done, aligned.edited.done),
        }
    )
    for name, found in measured.found.items():
        if name != DDIM:
            gain = intervals.difference(found.reconstructed, plain.reconstructed, 1)
            tie = "" if intervals.differ(found.reconstructed, plain.reconstructed) else " (a tie)"
            points = 100 * (found.edited.share - plain.edited.share)
            lines.append(
                f"- {name}, against the empty negative: {gain} dB reconstructed{tie}, {points:+.0f} points of edits done."
            )
    return [*lines, ""]


def _table(measured: Measured) -> list[str]:
    best = pareto({name: (float(f.reconstructed.mean()), f.edited.share) for name, f in measured.found.items()})
    lines = table(
        ["method", "reconstructed, dB", "worst", "edits done", "other thing kept, dB", "background kept, dB", "calls"],
        [
            (
                f"**{name}**" if name in best else name,
                intervals.mean(f.reconstructed, 1),
                f"{float(f.reconstructed.min()):.1f}",
                intervals.share(*f.edited.counts),
                intervals.mean(f.edited.other, 1),
                intervals.mean(f.edited.background, 1),
                f"{median(f.calls):.0f}",
            )
            for name, f in measured.found.items()
        ],
    )
    return [*lines, "Bold: no other method reconstructs better and does more edits (Pareto).", ""]


def _sheet(network: str, measured: Measured):
    """The first scenes as they come: reconstructions, and the edits below them."""
    names, rows = list(measured.found), []
    unedited = measured.sources.judged(measured.sources.unedited)
    for i, edit in enumerate(measured.sources.edits[:SHOWN]):
        found = list(measured.found.values())
        again = [(f.again[i], f"{float(f.reconstructed[i]):.1f} dB") for f in found]
        rows.append([cell(unedited.pictures[i], unedited.readings[i]), *again])
        edits = [cell(f.edited.pictures[i], f.edited.readings[i], bool(f.edited.done[i])) for f in found]
        rows.append([(unedited.pictures[i], edit.words), *edits])
    short = [name.split(",")[0].split(":")[0].replace("`", "") for name in names]
    short[3:7] = [f"fast {t:g}" for t in TOLERANCES]
    short[7:] = ["null_text code", "null_text paper"]
    title = f"Sampled again at guidance {CFG} with the same caption, and with one word changed, {network}"
    return rows_of_cells(title, ["picture", *short], rows)
