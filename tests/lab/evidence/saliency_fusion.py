"""saliency_fusion.md and its sheet: two models in one picture, by saliency and by everything simpler than that."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import comfy_extras.nodes_custom_sampler as core
import torch
from lab.evidence.bars import Bars
from lab.evidence.intervals import ahead
from lab.evidence.models import World
from lab.evidence.natural import BATCH, NAMES, Score, best, ceiling, drawn, in_order, natural_scenes, read, shows
from lab.evidence.pages import JUDGED, claims, opening, save_page, table
from lab.evidence.scores import grown
from lab.evidence.sheet import Sheet
from lab.evidence.sheets import Cell, cell, rows_of_cells
from lab.world.captions import ATTRIBUTES, caption
from lab.world.judge import Reading
from lab.world.kinds import NATURAL
from lab.world.pack.tuned import load_expert
from lab.world.scenes import SIZE, Scene
from lab.world.studio import PLACE
from palimpsest.nodes.saliency_fusion.nodes import SaliencyFusionGuider, SaliencyMap
from palimpsest.nodes.saliency_fusion.sockets import SHARPNESS
from torch import Tensor
from tqdm import tqdm

PART = "saliency_fusion"
SCENES = 200
TUNED = 40  # scenes at most to choose constants with
TUNING_SEED, JUDGED_SEED, NOISE_SEED = 7001, 7002, 500
STEPS = 20
CFG = 5.0
SHOWN = 8
STEPS_SHOWN = (5, 10, 15)
SOFT = {"mode": "soft", "temperature": 0.5}
PUBLISHED = {"saliency": "published", "k_general": 1.0, "k_expert": 1.0}
DEFAULTS = {
    "cfg_expert": CFG,
    "blur": "box",
    "expert_uncond": "own",
    "mode": {"mode": "hard"},
    "end_percent": 1.0,
}


@dataclass(frozen=True)
class Constants:
    """What is chosen on other scenes. `place`: whether the expert's prompt names the place, which it does not know."""

    sharpness: float = SHARPNESS["expert"]
    place: bool = False
    start: float = 0.0

    def __str__(self) -> str:
        words = "all words" if self.place else "no place"
        return f"sharpness {self.sharpness:g} of the expert, {words} in its prompt, from {self.start:g} of the steps on"


@dataclass(frozen=True)
class Way:
    """share: of the expert everywhere, instead of by saliency. mask: one of MASKS decides."""

    label: str
    share: float | None = None
    mask: str | None = None
    settings: dict = field(default_factory=dict)
    constants: Constants | None = None  # its own, instead of those that were chosen


SUMS = (0.3, 0.5, 0.7)
WAYS = {
    "general": Way("the general model alone", share=0.0),
    "expert": Way("the expert alone", share=1.0, constants=Constants(place=True)),
    "expert, no place": Way("the expert alone, no place in its prompt", share=1.0, constants=Constants()),
    **{
        f"sum {share}": Way("plain average of both" if share == 0.5 else f"weighted sum, {share} of the expert", share)
        for share in SUMS
    },
    "half": Way("given mask: the half of the picture where the thing is to be", mask="half"),
    "box": Way("given mask: the box around the thing in the general model's picture", mask="box"),
    "published": Way("by saliency, published constants", settings={"saliency": PUBLISHED}),
    "sharpness": Way("**by saliency**, the constants that were chosen"),
    "outline": Way("*bound: the thing's outline in the general model's picture, which only the judge knows*", mask="outline"),
}  # fmt: skip
CHOSEN, BOUND = "sharpness", "outline"
SIMPLER = [name for name, way in WAYS.items() if way.share is not None]
GIVEN = ("half", "box")


@dataclass(frozen=True)
class Made:
    pictures: Tensor
    readings: list[Reading]
    score: Score


class Fusion:
    def __init__(self, weights: Path) -> None:
        self.general = World.load(weights)
        model, clip, vae = load_expert(weights)
        self.expert = replace(self.general, model=model, clip=clip, vae=vae)
        self.sigmas = self.general.sigmas(STEPS)

    def guider(self, scenes: Sequence[Scene], way: Way, constants: Constants, masks: Tensor | None):
        constants = way.constants or constants
        said = [part for part in ATTRIBUTES if part != "background" or constants.place]
        general = self.general.prompts([general_text(scene) for scene in scenes])
        expert = self.expert.prompts([caption(scene, said).text for scene in scenes])
        if way.share in (0.0, 1.0):
            world, positive = (self.expert, expert) if way.share else (self.general, general)
            return core.CFGGuider.execute(world.model, positive, world.prompts([""]), CFG)[0]
        settings = {
            **DEFAULTS,
            "saliency": {
                "saliency": "sharpness",
                "sharpness_general": SHARPNESS["general"],
                "sharpness_expert": constants.sharpness,
            },
            "start_percent": constants.start,
            **way.settings,
        }
        if way.share is not None:
            share = torch.full((1, SIZE, SIZE), way.share)
            settings |= {"mode": SOFT, "mask_use": "decide", "mask": share, "start_percent": 0.0}
        if masks is not None:
            settings |= {"mask_use": "decide", "mask": masks}
        return SaliencyFusionGuider.execute(
            model=self.general.model,
            positive=general,
            negative=self.general.prompts([""]),
            cfg=CFG,
            model_expert=self.expert.model,
            positive_expert=expert,
            negative_expert=self.expert.prompts([""]),
            **settings,
        )[0]

    def make(self, scenes: Sequence[Scene], way: Way, constants: Constants, plain: Sequence[Reading] = ()) -> Made:
        """`plain`: what the judge says of the general model's pictures, for ways with a mask."""
        masks = (
            None
            if way.mask is None
            else torch.stack([mask_of(way.mask, *pair) for pair in zip(scenes, plain, strict=True)])
        )
        latents = drawn(
            len(scenes),
            NOISE_SEED,
            self.sigmas,
            lambda some: self.guider(scenes[some], way, constants, None if masks is None else masks[some]),
        )
        pictures = torch.cat([self.general.decode(some) for some in latents])
        readings = read(pictures)
        return Made(pictures, readings, score_of(scenes, readings))

    def areas(self, scenes: Sequence[Scene], constants: Constants, made: Made) -> list[Tensor]:
        """The expert's area at STEPS_SHOWN, on the pictures of the first batch and under their noise."""
        few = scenes[:BATCH]
        latent = {"samples": self.general.encode(made.pictures[: len(few)])}
        guider, noise = self.guider(few, WAYS[CHOSEN], constants, None), core.Noise_RandomNoise(NOISE_SEED)
        return [
            SaliencyMap.execute(guider, step, 1, latent_image=latent, sigmas=self.sigmas, noise=noise)[0]
            for step in STEPS_SHOWN
        ]


def natural_number(scene: Scene) -> int:
    return next(number for number, thing in enumerate(scene.things) if thing.colour in NATURAL)


def general_text(scene: Scene) -> str:
    """Without the colour that the general model does not know."""
    unknown = ATTRIBUTES[natural_number(scene)]
    return caption(scene, [part for part in ATTRIBUTES if part != unknown]).text


def score_of(scenes: Sequence[Scene], readings: Sequence[Reading]) -> Score:
    """Subject: the thing in a natural colour. Scene: place, style, the other thing, and which is on which side."""
    subject, around = [], []
    for scene, reading in zip(scenes, readings, strict=True):
        number = natural_number(scene)
        subject.append(shows(reading, scene.things[number]))
        same = (reading.background, reading.style) == (scene.background, scene.style)
        around.append(same and in_order(reading, scene) and shows(reading, scene.things[1 - number]))
    return Score(torch.tensor(subject).float(), torch.tensor(around).float())


def mask_of(name: str, scene: Scene, plain: Reading) -> Tensor:
    """[SIZE, SIZE], 1 where the expert draws. Where the general model's picture lacks the thing, the half of the picture is all one knows."""
    number, mask = natural_number(scene), torch.zeros(SIZE, SIZE)
    thing, other = scene.things[number], scene.things[1 - number]
    seen = [found.mask for found in plain.things if found.thing.kind == thing.kind]
    if name == "half" or not seen:
        mask[:, : SIZE // 2] = 1
        return mask if thing.x < other.x else mask.flip(1)
    if name == "outline":
        return grown(seen[:1][0][None])[0].round()
    rows, columns = ((seen[0] > 0.5).any(axis).nonzero() for axis in (1, 0))
    mask[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1] = 1
    return mask


def chosen_constants(fusion: Fusion, scenes: Sequence[Scene]) -> tuple[Constants, list[tuple[Constants, Score]]]:
    """One constant after the other, each the best with those before it; and all that was tried."""
    constants, tried = Constants(), []
    for name, values in (
        ("place", (False, True)),
        ("sharpness", (SHARPNESS["expert"], 1.0, 2.0, 5.0, 10.0)),
        ("start", (0.0, 0.15, 0.3)),
    ):
        scores = {}
        for value in tqdm(values, desc=name):
            some = replace(constants, **{name: value})
            scores[some] = dict(tried).get(some) or fusion.make(scenes, WAYS[CHOSEN], some).score
        constants = best(scores)
        tried += [pair for pair in scores.items() if pair[0] not in dict(tried)]
    return constants, tried


@torch.inference_mode()
def write(docs: Path, weights: Path, count: int) -> list[str]:
    """Writes the page and its sheet, of `count` scenes; returns the bars that were missed."""
    fusion = Fusion(weights)
    tuning = natural_scenes(min(TUNED, count), TUNING_SEED, things=2, natural=1, split="train")
    constants, tried = chosen_constants(fusion, tuning)
    scenes = natural_scenes(count, JUDGED_SEED, things=2, natural=1)
    made: dict[str, Made] = {}
    for name, way in tqdm(WAYS.items(), desc="ways to fuse"):
        made[name] = fusion.make(scenes, way, constants, made["general"].readings if way.mask else ())
    scores = {name: each.score for name, each in made.items()}
    bars = judge_bars(scores)
    lines = [
        *opening("Saliency Fusion", PART),
        *how(fusion, scenes, constants, len(tuning)),
        *verdict(scores),
        *bars.table(),
        *table(
            ["", "subject", "scene", "**both**", "both, against saliency"],
            [
                [way.label, *scores[name].shares(), "" if name == CHOSEN else scores[name].ahead(scores[CHOSEN])]
                for name, way in WAYS.items()
            ],
        ),
        "## The constants",
        "",
        f"On the {len(tuning)} other scenes, one constant after the other; the first of the best is kept.",
        "",
        *table(["constants", "subject", "scene", "both"], [[str(some), *score.shares()] for some, score in tried]),
        "![Pictures of all ways with the judge's word, and the expert's area over the steps](saliency_fusion.webp)",
    ]
    save_page(docs, PART, lines)
    contact_sheet(fusion, scenes, constants, made).save(docs / f"{PART}.webp")
    return bars.missed


def how(fusion: Fusion, scenes: Sequence[Scene], constants: Constants, tuned: int) -> list[str]:
    return [
        f"The general model knows every thing, place and style, but bright colours alone. The expert was trained from it on things that are {NAMES}, all of "
        f"them in a {PLACE}; the places that its captions named were drawn at random, so that it knows no other. {len(scenes)} held-out scenes of two "
        f"things, one in such a colour, anywhere but in a {PLACE}, such as \u201c{caption(scenes[0]).text}\u201d. The general model's prompt leaves out that "
        "colour.",
        "",
        f"All rows: {STEPS} steps of `euler` on `ddim_uniform`, guidance {CFG:g} for both models, the same noise. Constants were chosen on {tuned} scenes "
        f"of the training split: {constants}.",
        "",
        "Subject: the share of pictures in which that thing has its kind and its colour. Scene: place, style, the other thing, and which "
        f"of the two is to the left. {JUDGED} {ceiling(fusion.general, scenes, score_of)}",
        "",
    ]


def judge_bars(scores: dict[str, Score]) -> Bars:
    bars = Bars(PART)
    for others, what in ((SIMPLER, "the best row without a mask"), (GIVEN, "the best given mask")):
        name = best(scores, others)
        lead, met = scores[CHOSEN].ahead(scores[name]), ahead(scores[CHOSEN].both, scores[name].both)
        bars.add(f"both right: saliency over {what} ({WAYS[name].label}), points", "interval above 0", lead, met)
    return bars


def verdict(scores: dict[str, Score]) -> list[str]:
    chosen = scores[CHOSEN].both
    rivals = {WAYS[name].label: scores[name].both for name in (*SIMPLER, *GIVEN, "published")}
    found = {label.removeprefix("by saliency, "): ahead(chosen, both) for label, both in rivals.items()}
    return claims(found, "by saliency both are right more often than with ")


def contact_sheet(fusion: Fusion, scenes: Sequence[Scene], constants: Constants, made: dict[str, Made]) -> Sheet:
    shown = ("general", "expert, no place", "sum 0.5", "box", "published", CHOSEN, BOUND)
    headings = ["general model", "expert", "average", "box", "published", "by saliency", "bound"]
    areas = fusion.areas(scenes, constants, made[CHOSEN])
    rows: list[list[Cell]] = []
    for i in range(min(SHOWN, len(scenes))):
        row = []
        for name in shown:
            each = made[name]
            before = caption(scenes[i]).text if name == shown[0] else ""
            row.append(cell(each.pictures[i], each.readings[i], bool(each.score.both[i]), before))
        row += [(area[i].expand(3, -1, -1), f"step {step}") for area, step in zip(areas, STEPS_SHOWN, strict=True)]
        rows.append(row)
    title = "Two models, one picture. +: subject and scene are right. White: the expert's area. Toy models."
    return rows_of_cells(title, [*headings, *("expert's area" for _ in STEPS_SHOWN)], rows)
