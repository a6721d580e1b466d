"""subject_fusion.md and its sheet: subjects from reference pictures in a scene from words, by two models and by one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import comfy_extras.nodes_custom_sampler as core
import numpy as np
import torch
from lab.evidence.bars import Bars
from lab.evidence.intervals import ahead, mean
from lab.evidence.models import World
from lab.evidence.natural import BATCH, NAMES, Score, best, ceiling, drawn, in_order, natural_scenes, read, shows
from lab.evidence.pages import JUDGED, claims, opening, save_page, table
from lab.evidence.sheet import Sheet
from lab.evidence.sheets import cell, rows_of_cells
from lab.world.captions import caption
from lab.world.judge import Reading, mask_iou
from lab.world.pack.tuned import load_subject
from lab.world.scenes import SIZE, Scene
from lab.world.studio import PLACE, before_backdrops, cut_out
from palimpsest.nodes.diffusion.conditioning import Conditioning
from palimpsest.nodes.saliency_fusion.nodes import SaliencyMap, SubjectFusion
from palimpsest.nodes.saliency_fusion.sockets import SHARPNESS
from palimpsest.nodes.subject.conditioning import subject_conditioning
from palimpsest.nodes.subject.encoder import subject_encoder
from palimpsest.nodes.subject.reference_pictures import Reference
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from nodes import ConditioningCombine, ConditioningSetTimestepRange

PART = "subject_fusion"
SCENES = 60  # of one subject, and as many of two
TUNED = 40  # scenes of each number of subjects at most to choose borders with
TUNING_SEED, JUDGED_SEED, NOISE_SEED = 8001, 8002, 500
STEPS = 20
CFG = 5.0
SHOWN = 4  # scenes of each number of subjects
SUBJECTS = {1: "one subject", 2: "two subjects"}
SAID = ("side", "background", "style")
BORDERS = (0.2, 0.3, 0.4, 0.5, 0.6)
STAGES = ((0.2, 0.6), (0.3, 0.6), (0.4, 0.6), (0.4, 0.7), (0.4, 0.8), (0.5, 0.8))
SALIENCY = {
    "sharpness": {
        "saliency": "sharpness",
        **{f"sharpness_{model}": SHARPNESS[model] for model in ("scene", "subject")},
    },
    "published": {"saliency": "published", "k_scene": 1.0, "k_subject": 1.0},
}


@dataclass(frozen=True)
class Way:
    """delay: the subject model alone, plain text first. stages: scene_end and fusion_end of both models. Neither: the scene model alone."""

    delay: float | None = None
    stages: tuple[float, float] | None = None
    saliency: str = "sharpness"

    @property
    def label(self) -> str:
        if self.stages is not None:
            first, last = self.stages
            if first == last:
                return f"both models, bare hand-over at {first:g}"
            constants = ", published constants" if self.saliency == "published" else ""
            return f"both models, scene_end {first:g}, fusion_end {last:g}{constants}"
        if self.delay is None:
            return "the scene model alone, without the references"
        return (
            f"the subject model alone, delayed conditioning until {self.delay:g}"
            if self.delay
            else "the subject model alone"
        )


ALONE, SUBJECT = Way(), Way(delay=0.0)
DELAYED = [Way(delay=border) for border in BORDERS]
HANDED = [Way(stages=(border, border)) for border in BORDERS]
FUSED = [Way(stages=stages) for stages in STAGES]
PUBLISHED = [Way(stages=stages, saliency="published") for stages in ((0.3, 0.6), (0.2, 0.6))]


@dataclass(frozen=True)
class Prompts:
    plain: Conditioning
    subjects: Conditioning


@dataclass(frozen=True)
class Posed:
    """Scenes all of whose things are subjects, and a reference picture of each."""

    scenes: Sequence[Scene]
    references: Tensor  # [N, things, 3, H, W] in 0..1

    @classmethod
    def some(cls, count: int, things: int, seed: int, split: str = "held_out") -> Posed:
        scenes = natural_scenes(count, seed, things=things, natural=things, split=split)
        cut = cut_out([thing for scene in scenes for thing in scene.things], np.random.default_rng((seed, 2)))
        pictures = before_backdrops(cut, torch.Generator().manual_seed(seed))
        return cls(scenes, pictures.unflatten(0, (-1, things)))

    def __len__(self) -> int:
        return len(self.scenes)

    def at(self, some: slice) -> Posed:
        return Posed(self.scenes[some], self.references[some])


@dataclass(frozen=True)
class Made:
    pictures: Tensor
    readings: list[Reading]
    score: Score


class Subjects:
    def __init__(self, weights: Path) -> None:
        self.scene = World.load(weights)
        model, clip, vae, tensors = load_subject(weights)
        self.subject = replace(self.scene, model=model, clip=clip, vae=vae)
        self.encoder = subject_encoder(tensors, torch.float32)
        self.sigmas = self.scene.sigmas(STEPS)

    def encode(self, posed: Posed) -> Prompts:
        pairs = [
            subject_conditioning(
                self.subject.clip,
                self.encoder,
                text_with_markers(scene),
                [Reference(p.movedim(0, -1)) for p in pictures],
            )
            for scene, pictures in zip(posed.scenes, posed.references, strict=True)
        ]
        subjects, plain = ([[torch.cat([pair[i][0][0] for pair in pairs]), {}]] for i in (0, 1))
        return Prompts(plain, subjects)

    def guider(self, posed: Posed, way: Way):
        prompts, empty = self.encode(posed), self.scene.prompts([""])
        if way.stages is not None:
            models, texts = (self.scene.model, self.subject.model), (prompts.plain, prompts.subjects, empty)
            return SubjectFusion.execute(*models, *texts, CFG, *way.stages, SALIENCY[way.saliency])[0]
        if way.delay is None:
            return core.CFGGuider.execute(self.scene.model, prompts.plain, empty, CFG)[0]
        return core.CFGGuider.execute(self.subject.model, delayed(prompts, way.delay), empty, CFG)[0]

    def make(self, posed: Posed, way: Way) -> Made:
        latents = drawn(len(posed), NOISE_SEED, self.sigmas, lambda some: self.guider(posed.at(some), way))
        pictures = torch.cat([self.scene.decode(some) for some in latents])
        readings = read(pictures)
        return Made(pictures, readings, score_of(posed.scenes, readings))

    def areas(self, posed: Posed, way: Way, made: Made) -> Tensor:
        """[B, SIZE, SIZE]: where the subject model decides in the middle of the fusion stage, on the pictures of the first batch."""
        few = posed.at(slice(0, BATCH))
        latent = {"samples": self.scene.encode(made.pictures[: len(few)])}
        step, noise = round(sum(way.stages) / 2 * STEPS), core.Noise_RandomNoise(NOISE_SEED)
        areas = SaliencyMap.execute(
            self.guider(few, way), step, 1, latent_image=latent, sigmas=self.sigmas, noise=noise
        )[0]
        return F.interpolate(areas[:, None], (SIZE, SIZE), mode="area")[:, 0]


def text_of(scene: Scene) -> str:
    """It says no colours."""
    return caption(scene, SAID).text


def text_with_markers(scene: Scene) -> str:
    text = text_of(scene)
    for thing in scene.things:  # `caption` names the things in their own order
        text = text.replace(f" {thing.kind}", f" {thing.kind} <|image|>", 1)
    return text


def delayed(prompts: Prompts, delay: float) -> Conditioning:
    """FastComposer's delayed conditioning as core nodes wire it."""
    if not delay:
        return prompts.subjects
    between = ConditioningSetTimestepRange().set_range
    first, then = between(prompts.plain, 0.0, delay)[0], between(prompts.subjects, delay, 1.0)[0]
    return ConditioningCombine().combine(first, then)[0]


def score_of(scenes: Sequence[Scene], readings: Sequence[Reading]) -> Score:
    """Subject: every subject with kind and colour of its reference. Scene: place, style, and which thing is on which side."""
    identity, around = [], []
    for scene, reading in zip(scenes, readings, strict=True):
        identity.append(all(shows(reading, thing) for thing in scene.things))
        same = (reading.background, reading.style) == (scene.background, scene.style)
        around.append(same and in_order(reading, scene))
    return Score(torch.tensor(identity).float(), torch.tensor(around).float())


def covered(readings: Sequence[Reading], areas: Tensor) -> Tensor:
    """[N]: IoU of the subject model's area with all things that are seen, of the pictures that show any."""
    found = [
        mask_iou(torch.stack([seen.mask for seen in reading.things]).amax(0), area)
        for reading, area in zip(readings, areas, strict=False)
        if reading.things
    ]
    return torch.stack(found) if found else torch.zeros(1)


@torch.inference_mode()
def write(docs: Path, weights: Path, count: int) -> list[str]:
    """Writes the page and its sheet, of `count` scenes with one subject and as many with two; returns the bars that were missed."""
    world, bars, found = Subjects(weights), Bars(PART), {}
    lines: list[str] = []
    rows = []
    for number, name in SUBJECTS.items():
        tuning = Posed.some(min(TUNED, count), number, TUNING_SEED, split="train")
        tried = {
            way: world.make(tuning, way).score for way in tqdm([*DELAYED, *HANDED, *FUSED], desc=f"{name}, borders")
        }
        delay, handed, fused = (best(tried, ways) for ways in (DELAYED, HANDED, FUSED))
        posed = Posed.some(count, number, JUDGED_SEED)
        ways = list(dict.fromkeys([ALONE, SUBJECT, delay, *HANDED, fused, Way(stages=(0.3, 0.6)), *PUBLISHED]))
        made = {way: world.make(posed, way) for way in tqdm(ways, desc=name)}
        scores = {way: each.score for way, each in made.items()}
        areas = {way: world.areas(posed, way, made[way]) for way in (fused, *PUBLISHED)}
        found |= compare(bars, name, scores, fused, {"one model": [SUBJECT, delay], "a bare hand-over": [handed]})
        lines += section(name, posed, tried, made, areas, (delay, handed, fused))
        lines += [ceiling(world.scene, posed.scenes, score_of), ""]
        shown = [ALONE, SUBJECT, delay, handed, fused, PUBLISHED[0]]
        for i in range(min(SHOWN, count)):
            row = [
                (picture, text_with_markers(posed.scenes[i]) if k == 0 else "")
                for k, picture in enumerate(posed.references[i])
            ]
            row += [
                cell(made[way].pictures[i], made[way].readings[i], bool(scores[way].both[i]), way.label)
                for way in shown
            ]
            rows.append([*row, *((areas[way][i].expand(3, -1, -1), way.label) for way in (fused, PUBLISHED[0]))])
    save_page(
        docs, PART, [*opening("Subject Fusion", PART), *how(count), *claims(found), *bars.table(), *lines, PICTURES]
    )
    contact_sheet(rows).save(docs / f"{PART}.webp")
    return bars.missed


PICTURES = "![References and the pictures of all ways with the judge's word, and the subject model's area](subject_fusion.webp)"


def compare(
    bars: Bars, name: str, scores: dict[Way, Score], fused: Way, others: dict[str, list[Way]]
) -> dict[str, bool]:
    """Adds what three stages are held against, and says which of it they beat."""
    found = {}
    for what, ways in others.items():
        other = best(scores, ways)
        lead, met = scores[fused].ahead(scores[other]), ahead(scores[fused].both, scores[other].both)
        bars.add(f"{name}, both right: three stages over {what} ({other.label}), points", "interval above 0", lead, met)
        found[f"{name}: three stages make both right more often than {what}"] = met
    return found


def how(count: int) -> list[str]:
    return [
        f"A subject is one thing in a natural colour ({NAMES}), of which the prompt says nothing: it names the kind alone, such as "
        f"\u201c{text_with_markers(Posed.some(1, 1, JUDGED_SEED).scenes[0])}\u201d. A reference picture, flat, in another size and turn, shows the rest. "
        f"The scene model is the general one, which never saw such a colour. The subject model was trained from it, with FastComposer's architecture, on "
        f"scenes in a {PLACE}, whose captions named places drawn at random: it has lost all others, as the papers' models have by their training on "
        f"portraits. {count} held-out scenes of one subject and {count} of two, all anywhere but in a {PLACE}.",
        "",
        f"All rows: {STEPS} steps of `euler` on `ddim_uniform`, guidance {CFG:g}, the same noise. Borders are fractions of the steps. The border of delayed "
        "conditioning, that of the bare hand-over which is compared, and both of the three stages were chosen on other scenes, of the training split.",
        "",
        f"Identity: the share of pictures with every subject's kind and colour. Scene: place, style, and the right things on the right sides. "
        f"{JUDGED}",
        "",
    ]


def section(
    name: str,
    posed: Posed,
    tried: dict[Way, Score],
    made: dict[Way, Made],
    areas: dict[Way, Tensor],
    chosen: tuple[Way, Way, Way],
) -> list[str]:
    fused = chosen[-1]
    score = made[fused].score
    rows = [
        [
            f"**{way.label}**" if way in chosen else way.label,
            *each.score.shares(),
            "" if way == fused else each.score.ahead(score),
        ]
        for way, each in made.items()
    ]
    covers = [
        [
            way.label,
            mean(covered(made[way].readings, area)) if len(posed) > 1 else "",
            f"{100 * float(area.mean()):.0f} %",
        ]
        for way, area in areas.items()
    ]
    return [
        f"## {name[:1].upper()}{name[1:]}",
        "",
        f"{len(posed)} scenes. Bold: chosen on {len(next(iter(tried.values())).both)} other scenes.",
        "",
        *table(["", "identity", "scene", "**both**", f"both, against {fused.label}"], rows),
        f"Where the subject model decides in the middle of the fusion stage, in {min(BATCH, len(posed))} pictures:",
        "",
        *table(["", "IoU with the things that the judge sees", "share of the picture"], covers),
        "On the scenes that the borders were chosen on:",
        "",
        *table(["", "identity", "scene", "both"], [[way.label, *each.shares()] for way, each in tried.items()]),
    ]


def contact_sheet(rows: list) -> Sheet:
    title = (
        "Subjects from pictures in scenes from words, first one, then two. +: identity and scene are right. Toy models."
    )
    return rows_of_cells(title, [], rows)
