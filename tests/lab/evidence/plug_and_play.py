"""docs/plug_and_play.md: what injection keeps of a picture's structure, beside its own halves, plain sampling and SDEdit at equal success."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from lab.evidence import intervals
from lab.evidence.edits import Edit, held_out_edits
from lab.evidence.intervals import ahead
from lab.evidence.models import BLOCKS, NETWORKS, World
from lab.evidence.pages import JUDGED, claims, opening, save_page, table
from lab.evidence.plots import trade_off
from lab.evidence.sheets import cell, rows_of_cells
from lab.evidence.sources import Group, Judged, Sources
from palimpsest.nodes.plug_and_play.nodes import PlugAndPlay
from torch import Tensor
from tqdm import tqdm

SCENES, SEED = 60, 300
CHOSEN_ON, CHOOSING_SEED = 24, 301  # other edits that settings are chosen on
STEPS, CFG = 25, 7.5
CHANGES = ("style", "colour", "kind")
STRENGTHS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)  # of SDEdit
SHOWN = 6
OURS, PLAIN = "Plug-and-Play", "plain sampling"
CAPTION = "Plug-and-Play, inverted with the source's caption"


@dataclass(frozen=True)
class Settings:
    """Of Plug-and-Play; -1 is the node's own choice."""

    feature_end: float = -1.0
    attention_end: float = -1.0
    blocks: str = "auto"

    def __str__(self) -> str:
        ends = (f"{end:g}" if end >= 0 else "automatic" for end in (self.feature_end, self.attention_end))
        return "feature_end {}, attention_end {}, blocks {}".format(*ends, self.blocks)


PUBLISHED = Settings(0.8, 0.5, BLOCKS)  # 2211.12572
# Also the blocks whose features have as many places as those of the published one on Stable Diffusion, 16 x 16.
TRIED = {
    "UNet": [
        Settings(*ends, blocks)
        for blocks in (BLOCKS, "features 6-8; attention 4-8", "features 4-8; attention 4-8")
        for ends in ((0.8, 0.5), (0.6, 0.5), (0.5, 0.3))
    ],
    "transformer": [Settings()],
}
OTHERS = {"UNet": {"published settings": PUBLISHED}, "transformer": {"the UNet's windows": Settings(0.8, 0.5)}}


def ways(network: str, chosen: Settings) -> dict[str, Settings]:
    return {
        OURS: chosen,
        **OTHERS[network],
        "attention only": replace(chosen, feature_end=0.0),
        "features only": replace(chosen, attention_end=0.0),
        PLAIN: replace(chosen, feature_end=0.0, attention_end=0.0),
    }


@dataclass(frozen=True)
class Measured:
    """One network's edits."""

    sources: Sources
    settings: Settings
    tried: dict[Settings, Judged]  # on other edits
    results: dict[str, Judged]
    sdedit: dict[float, Judged]  # by strength

    @property
    def equal(self) -> float:
        """The least strength of SDEdit that does as many edits as Plug-and-Play; where none does, the least that does most."""
        most = max(result.share for result in self.sdedit.values())
        wanted = min(self.results[OURS].share, most)
        return min(strength for strength, result in self.sdedit.items() if result.share >= wanted)


def injected(group: Group, settings: Settings) -> Tensor:
    ends = settings.feature_end, settings.attention_end
    model = PlugAndPlay.execute(group.world.model, group.trajectory, *ends, settings.blocks)[0]
    return group.sample(group.world.with_model(model), CFG)


def from_caption(group: Group, settings: Settings, edits: list[Edit]) -> Tensor:
    texts = [edits[row].source_text for row in group.rows]
    return injected(group.inverted_with(group.world.prompts(texts)), settings)


def noised(group: Group, strength: float) -> Tensor:
    latent, sigmas = group.latent, group.trajectory.sigmas
    return group.world.decode(group.world.sdedit(latent, group.target, CFG, strength, sigmas))


def inverted(world: World, edits: list[Edit]) -> Sources:
    """As published, with the empty prompt."""
    return Sources.open(world, [replace(edit, source_text="") for edit in edits], STEPS, by_words=False)


def tried_settings(world: World, network: str, count: int) -> dict[Settings, Judged]:
    """Empty where there is nothing to choose."""
    if len(TRIED[network]) == 1:
        return {}
    sources = inverted(world, held_out_edits(count, CHOOSING_SEED, CHANGES))
    return {s: sources.edited(partial(injected, settings=s)) for s in tqdm(TRIED[network], desc="settings")}


def value(result: Judged) -> float:
    """What settings are chosen by."""
    return result.share + float(result.iou.mean())


def measure(world: World, network: str, scenes: int) -> Measured:
    tried = tried_settings(world, network, max(min(scenes, CHOSEN_ON), len(CHANGES)))
    settings = max(tried, key=lambda some: value(tried[some]), default=TRIED[network][0])
    edits = held_out_edits(scenes, SEED, CHANGES)
    sources = inverted(world, edits)
    results = {
        name: sources.edited(partial(injected, settings=some))
        for name, some in tqdm(ways(network, settings).items(), desc="ways")
    }
    results[CAPTION] = sources.edited(partial(from_caption, settings=settings, edits=edits))
    results["unedited"] = sources.judged(sources.unedited)
    sdedit = {s: sources.edited(partial(noised, strength=s)) for s in tqdm(STRENGTHS, desc="SDEdit")}
    return Measured(sources, settings, tried, results, sdedit)


@torch.inference_mode()
def write(docs: Path, weights: Path, scenes: int = SCENES) -> list[str]:
    """Writes the page, its plot and its sheets; there is no bar to miss."""
    found = {name: measure(load(weights), name, scenes) for name, load in NETWORKS.items()}
    lines = [
        *opening("Plug-and-Play", "plug_and_play"),
        f"{scenes} held-out scenes of two things. The prompt changes the style, or the colour or the kind of one thing, and is the whole caption of "
        f"the edited scene, which does not say what is to the left. Sources were inverted by `ddim` with the empty prompt, as published. All methods: {STEPS} "
        f"steps, `euler`, guidance {CFG}, the empty prompt as negative. The UNet's settings were chosen on {CHOSEN_ON} other edits, by edits done plus "
        f"IoU, of {len(TRIED['UNet'])}: the published ones, and windows and blocks near them.",
        "",
        JUDGED,
        "",
        "IoU: how well what the judge sees covers the true masks of the source's two things, the mean of both; 0 where it knows no thing. Done: the "
        "judge reads the style, or the thing with its colour, that the prompt asks for. The strength of SDEdit in bold is the least "
        "that does as many edits as Plug-and-Play or, if none does, as many as SDEdit can: so its IoU is one at equal success, or better.",
        "",
    ]
    for name, measured in found.items():
        lines += [
            f"## {name}",
            "",
            f"Plug-and-Play: {measured.settings}.",
            "",
            *verdict(measured),
            *_table(measured),
            *_by_change(measured),
        ]
        _sheet(name, measured).save(docs / f"plug_and_play_{name.lower()}.webp")
        lines += [f"![Sources and results](plug_and_play_{name.lower()}.webp)", "", *_tried(measured)]
    trade_off(
        docs / "plug_and_play.png",
        ("edits done", "IoU of both things with the source's"),
        {
            name: (
                {label: point(result) for label, result in measured.results.items() if label != "unedited"},
                {"SDEdit, by strength": [point(result) for result in measured.sdedit.values()]},
            )
            for name, measured in found.items()
        },
    )
    save_page(docs, "plug_and_play", [*lines, "![IoU against edits done](plug_and_play.png)"])
    return []


def point(result: Judged) -> tuple[float, float]:
    return result.share, float(result.iou.mean())


def verdict(measured: Measured) -> list[str]:
    """What is shown, and a line for each thing that the claim says is worse."""
    ours = measured.results[OURS]
    rivals = {name: measured.results[name] for name in (PLAIN, "attention only", "features only")}
    rivals[f"SDEdit at strength {measured.equal}"] = measured.sdedit[measured.equal]
    found = {f"injection keeps more structure than {name}": ahead(ours.iou, r.iou) for name, r in rivals.items()}
    found["it does no fewer edits than plain sampling, within chance"] = not ahead(
        *(r.done for r in (rivals[PLAIN], ours))
    )
    lines = claims(found)
    for name, rival in rivals.items():
        words = f"IoU {intervals.difference(ours.iou, rival.iou)}, edits done {100 * (ours.share - rival.share):+.0f} points"
        tie = "" if intervals.differ(ours.iou, rival.iou) else ": a tie in IoU"
        lines.append(f"- Plug-and-Play against {name}: {words}{tie}.")
    return [*lines, ""]


def _table(measured: Measured) -> list[str]:
    rows = {f"**{name}**" if name == OURS else name: result for name, result in measured.results.items()}
    rows["*the sources, unedited*"] = rows.pop("unedited")
    for strength, result in measured.sdedit.items():
        rows[f"**SDEdit, {strength}**" if strength == measured.equal else f"SDEdit, {strength}"] = result
    ours = measured.results[OURS].iou
    return table(
        ["method", "IoU", "IoU, less that of Plug-and-Play", "edits done"],
        [
            (name, intervals.mean(r.iou), intervals.difference(r.iou, ours), intervals.share(*r.counts))
            for name, r in rows.items()
        ],
    )


def _tried(measured: Measured) -> list[str]:
    if not measured.tried:
        return []
    rows = [(str(some), intervals.mean(r.iou), intervals.share(*r.counts)) for some, r in measured.tried.items()]
    return [f"Settings tried on {CHOSEN_ON} other edits:", "", *table(["settings", "IoU", "edits done"], rows)]


def _by_change(measured: Measured) -> list[str]:
    shown = {name: measured.results[name] for name in (OURS, "attention only", "features only", PLAIN)}
    shown[f"SDEdit, {measured.equal}"] = measured.sdedit[measured.equal]
    present = [change for change in CHANGES if len(measured.sources.rows(change)) > 1]
    if not present:
        return []
    parts = {name: [result.of(measured.sources.rows(change)) for change in present] for name, result in shown.items()}
    return table(
        ["method", *(f"{change}: {what}" for change in present for what in ("IoU", "done"))],
        [
            (name, *(text for r in some for text in (intervals.mean(r.iou), intervals.share(*r.counts))))
            for name, some in parts.items()
        ],
    )


def _sheet(network: str, measured: Measured):
    """The first edits as they come."""
    names = [*ways(network, measured.settings)]
    columns = [measured.results[name] for name in names] + [measured.sdedit[measured.equal]]
    sources, unedited = measured.sources, measured.results["unedited"]
    rows = [
        [
            cell(sources.unedited[i], unedited.readings[i], before=f"{edit.change}: {edit.words}"),
            *(cell(r.pictures[i], r.readings[i], bool(r.done[i])) for r in columns),
        ]
        for i, edit in enumerate(sources.edits[:SHOWN])
    ]
    title = f"Plug-and-Play and what it is compared with, {network}, {STEPS} steps, guidance {CFG}"
    return rows_of_cells(title, ["source", *names, f"SDEdit, {measured.equal}"], rows)
