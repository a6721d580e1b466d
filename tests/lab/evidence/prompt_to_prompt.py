"""docs/prompt_to_prompt.md: words of a caption changed; what is done of it, and what stays of the other thing and of the background."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path

import torch
from lab.evidence import intervals
from lab.evidence.edits import Edit, held_out_edits
from lab.evidence.intervals import ahead
from lab.evidence.models import NETWORKS, World
from lab.evidence.pages import JUDGED, claims, opening, save_page, table
from lab.evidence.scores import MARGIN
from lab.evidence.sheets import cell, rows_of_cells
from lab.evidence.sources import Group, Judged, Sources, blend_words, prompt_edit, reweighted
from palimpsest.nodes.plug_and_play.nodes import PlugAndPlay
from palimpsest.nodes.prompt_to_prompt.nodes import PromptToPrompt
from torch import Tensor
from tqdm import tqdm

SCENES, CHOSEN_ON = 80, 24  # edits that are judged, and other ones that settings are chosen on
SEED, CHOOSING_SEED = 600, 601
STEPS, CFG = 25, 7.5
CHANGES = ("colour", "kind", "add", "weaken")
NAMES = {
    "colour": "a colour swapped",
    "kind": "a kind swapped",
    "add": "a colour added",
    "weaken": "a colour reweighted",
}
ENOUGH = 40.0  # dB that count as wholly kept, where settings are chosen
SHOWN = 6


@dataclass(frozen=True)
class Settings:
    """Of Prompt-to-Prompt; -1 is the node's own choice."""

    cross_end: float = -1.0
    self_end: float = -1.0
    blend: bool = False
    blend_threshold: float = 0.3
    factor: float = -2.0  # of a colour that is reweighted

    def __str__(self) -> str:
        ends = (f"{end:g}" if end >= 0 else "automatic" for end in (self.cross_end, self.self_end))
        text = "cross_end {}, self_end {}".format(*ends)
        return text + (f", local blend at {self.blend_threshold:g}" if self.blend else "")


TRIED = {
    "UNet": [Settings(c, s, True, t) for c, s, t in itertools.product((0.4, 0.8), (0.2, 0.4), (0.3, 0.5))],
    "transformer": [Settings(c, s, True, t) for c, s, t in itertools.product((0.2, 0.35), (0.1, 0.2), (0.3, 0.5))],
}
FACTORS = (-1.0, -2.0, -4.0)
CHOSEN, NO_BLEND, PLAIN = "Prompt-to-Prompt, chosen settings", "the same without local blend", "only the new prompt"


def steered(group: Group, settings: Settings, **optional) -> World:
    """`optional`: sockets of the node."""
    edit = group.edits[0]
    reweight, blend = reweighted(edit, settings.factor), blend_words(edit) if settings.blend else ""
    words = prompt_edit(group.world, edit, reweight, blend)
    ends = settings.cross_end, settings.self_end, 0.2, settings.blend_threshold
    model = PromptToPrompt.execute(group.world.model, group.trajectory, words, *ends, source=group.source, **optional)[
        0
    ]
    return group.world.with_model(model)


def edited(group: Group, settings: Settings) -> Tensor:
    return group.sample(steered(group, settings), CFG)


def plain(group: Group) -> Tensor:
    return group.sample(group.world, CFG)


def plug_and_play(group: Group) -> Tensor:
    model = PlugAndPlay.execute(group.world.model, group.trajectory, -1.0, -1.0, group.world.blocks)[0]
    return group.sample(group.world.with_model(model), CFG)


def value(result: Judged) -> float:
    """What settings are chosen by: edits done, and as much weight for what is kept."""
    kept = torch.stack([result.other, result.background]).clamp(max=ENOUGH)
    return result.share + float(kept.mean()) / ENOUGH


@cache
def choose(network: str, weights: Path, count: int) -> Settings:
    """Once for the pages that need it."""
    world = NETWORKS[network](weights)
    sources = Sources.open(world, held_out_edits(count, CHOOSING_SEED, CHANGES), STEPS)
    best = max(
        tqdm(TRIED[network], desc="settings"),
        key=lambda settings: value(sources.edited(partial(edited, settings=settings))),
    )
    rows = sources.rows("weaken")
    factors = [replace(best, factor=factor) for factor in FACTORS]
    return max(factors, key=lambda settings: value(sources.edited(partial(edited, settings=settings)).of(rows)))


@dataclass(frozen=True)
class Measured:
    sources: Sources
    settings: Settings
    results: dict[str, Judged]


def measure(network: str, weights: Path, scenes: int) -> Measured:
    settings = choose(network, weights, max(min(scenes, CHOSEN_ON), len(CHANGES)))
    world = NETWORKS[network](weights)
    sources = Sources.open(world, held_out_edits(scenes, SEED, CHANGES), STEPS)
    automatic = Settings(factor=settings.factor)
    ways = {
        CHOSEN: partial(edited, settings=settings),
        NO_BLEND: partial(edited, settings=replace(settings, blend=False)),
        "automatic settings, local blend": partial(edited, settings=replace(automatic, blend=True)),
        "automatic settings, without local blend": partial(edited, settings=automatic),
        PLAIN: plain,
        "Plug-and-Play, automatic settings": plug_and_play,
    }
    results = {name: sources.edited(draw) for name, draw in tqdm(ways.items(), desc="methods")}
    return Measured(sources, settings, results | {"unedited": sources.judged(sources.unedited)})


@torch.inference_mode()
def write(docs: Path, weights: Path, scenes: int = SCENES) -> list[str]:
    """Writes the page and its sheets; there is no bar to miss."""
    found = {name: measure(name, weights, scenes) for name in NETWORKS}
    lines = [
        *opening("Prompt-to-Prompt", "prompt_to_prompt"),
        f"{scenes} held-out scenes of two things, in turn with one of four changes of the words for one thing: its colour swapped (red cat to blue "
        "cat), its kind swapped, its colour added where the source's caption does not say one, its colour reweighted below 0. Sources were inverted "
        f"by `ddim` with their own captions. All methods: {STEPS} steps, `euler`, guidance {CFG}, the empty prompt as negative.",
        "",
        JUDGED,
        "",
        "Done: the judge sees a thing of the kind and the colour that the prompt asks for; of a colour that is reweighted, the thing in any other "
        f"colour. Kept: PSNR against the unedited picture that the autoencoder gives, of the other thing and of the background, {MARGIN} pixels away "
        f"from where the changed thing was or should be. Local blend has the changed thing's phrase in both prompts. Settings were chosen on "
        f"{CHOSEN_ON} other scenes, by edits done plus what is kept as a share of {ENOUGH:.0f} dB.",
        "",
    ]
    for name, measured in found.items():
        lines += [f"## {name}", "", f"Chosen: {measured.settings}; reweighted by {measured.settings.factor:g}.", ""]
        lines += [*verdict(measured), *_table(measured.results), *_by_change(measured)]
        _sheet(name, measured).save(docs / f"prompt_to_prompt_{name.lower()}.webp")
        lines += [f"![Sources and results](prompt_to_prompt_{name.lower()}.webp)", ""]
    save_page(docs, "prompt_to_prompt", lines)
    return []


def verdict(measured: Measured) -> list[str]:
    chosen, free, plain_ = (measured.results[name] for name in (CHOSEN, NO_BLEND, PLAIN))
    lines = claims(
        {
            "without a mask, attention control keeps the other thing better than only the new prompt": ahead(
                free.other, plain_.other
            ),
            "and the background": ahead(free.background, plain_.background),
            "it does no fewer edits than only the new prompt, within chance": not ahead(plain_.done, free.done),
            "local blend keeps the background better still": ahead(chosen.background, free.background),
            "with no fewer edits, within chance": not ahead(free.done, chosen.done),
        }
    )
    for name in (NO_BLEND, PLAIN, "Plug-and-Play, automatic settings"):
        rival, parts = measured.results[name], []
        for what, ours, theirs in (
            ("the other thing", chosen.other, rival.other),
            ("the background", chosen.background, rival.background),
        ):
            tie = "" if intervals.differ(ours, theirs) else ", a tie"
            parts.append(f"{what} {intervals.difference(ours, theirs, 1)} dB{tie}")
        points = 100 * (chosen.share - rival.share)
        lines.append(f"- Chosen settings against {name}: {'; '.join(parts)}; edits done {points:+.0f} points.")
    return [*lines, ""]


def _table(results: dict[str, Judged]) -> list[str]:
    labels = {name: f"**{name}**" if name == CHOSEN else name for name in results}
    labels["unedited"] = "*the sources, unedited*"
    return table(
        ["method", "edits done", "the other thing is kept, dB", "the background is kept, dB"],
        [
            (label, intervals.share(*r.counts), intervals.mean(r.other, 1), intervals.mean(r.background, 1))
            for label, r in ((labels[name], results[name]) for name in results)
        ],
    )


def _by_change(measured: Measured) -> list[str]:
    lines = []
    for change in CHANGES:
        rows = measured.sources.rows(change)
        if len(rows) > 1:
            lines += [f"### {NAMES[change].capitalize()}", ""]
            lines += _table({name: result.of(rows) for name, result in measured.results.items() if name != "unedited"})
    return lines


def _sheet(network: str, measured: Measured):
    """The first edits as they come."""
    names = [name for name in measured.results if name != "unedited"]
    unedited = measured.results["unedited"]

    def row(i: int, edit: Edit) -> list:
        first = cell(unedited.pictures[i], unedited.readings[i], before=f"{NAMES[edit.change]}: {edit.words}")
        found = (measured.results[name] for name in names)
        return [first, *(cell(r.pictures[i], r.readings[i], bool(r.done[i])) for r in found)]

    title = f"Words changed by Prompt-to-Prompt, and what it is compared with, {network}, {STEPS} steps, guidance {CFG}"
    rows = [row(i, edit) for i, edit in enumerate(measured.sources.edits[:SHOWN])]
    short = ["chosen", "no blend", "auto, blend", "auto", "plain", "PnP"]
    return rows_of_cells(title, ["source", *short], rows)
