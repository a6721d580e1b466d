"""docs/plug_and_play.md: Plug-and-Play on held-out scenes beside its own ablations, plain sampling and SDEdit."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path

import comfy_extras.nodes_custom_sampler as core
import torch
from lab.evidence.intervals import share
from lab.evidence.sheet import Sheet
from lab.evidence.world import World
from lab.toy.judge import Reading, judge, mask_iou
from lab.toy.photos import held_out_photo
from lab.toy.scenes import Scene, caption, edited, render, sample_scenes
from palimpsest.nodes.diffusion.trajectory import Trajectory
from palimpsest.nodes.inversion.noise import TrajectoryNoise
from palimpsest.nodes.plug_and_play.features import Features
from palimpsest.nodes.plug_and_play.nodes import CaptureFeatures
from torch import Tensor
from tqdm import tqdm

SCENES = 100
BATCH = 25
STEPS = 50
ITERATIONS = 5  # of the inversion, the node's default
CFG = 2.0
ATTRIBUTES = ("colour", "texture", "background")
SWEEP = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)  # strengths of SDEdit
SWEEP_SCENES = 12
SHOWN = 8
PHOTO_CAPTION = "a photo"
LOOKS = ("a sepia photo", "a night photo", "a negative photo")
IOU_BAR, ATTRIBUTE_BAR = 0.85, 0.90
HEADER = "| mask IoU, mean | median | new attribute | shape kept | all five attributes as in the prompt |"

# feature_end and attention_end; without either, the inverted noise is sampled as it is.
PUBLISHED = (0.8, 0.5)
PLUG_AND_PLAY = "Plug-and-Play"
EMPTY_TEXT = "Plug-and-Play, empty text"
WINDOWS = {
    PLUG_AND_PLAY: PUBLISHED,
    "attention only": (0.0, 0.5),
    "features only": (0.8, 0.0),
    "plain sampling": (0.0, 0.0),
}


@dataclass(frozen=True)
class Edit:
    source: Scene
    target: Scene
    attribute: str

    @property
    def words(self) -> str:
        return f"{getattr(self.source, self.attribute)} to {getattr(self.target, self.attribute)}"


@dataclass(frozen=True)
class Source:
    """A batch of pictures, inverted."""

    world: World
    latent: Tensor
    trajectory: Trajectory
    noise: TrajectoryNoise
    features: Features

    @classmethod
    def open(cls, world: World, images: Tensor, texts: Sequence[str]) -> Source:
        latent = world.encode(images)
        trajectory, noise = world.invert(latent, world.prompts(texts), world.sigmas(STEPS), iterations=ITERATIONS)
        features = CaptureFeatures.execute(world.model, trajectory, *PUBLISHED, "auto", "fp32")[0]
        return cls(world, latent, trajectory, noise, features)

    def edit(self, prompts: Sequence[str], windows: tuple[float, float]) -> Tensor:
        """Pictures [len(prompts), 3, H, W], one for each prompt; a single source serves them all."""
        latent = self.latent.expand(len(prompts), -1, -1, -1)
        patched = self.world.plug_and_play(self.trajectory, *windows, features=self.features)
        positive, sigmas = self.world.prompts(prompts), self.world.sigmas(STEPS)
        return self.world.decode(patched.sample(self.noise, positive, CFG, sigmas, latent))


def sdedit(
    world: World, latent: Tensor, prompts: Sequence[str], strength: float, steps: int = STEPS, cfg: float = CFG
) -> Tensor:
    """2108.01073: the last `strength` of the steps, from the latents under fresh noise."""
    latent = latent.expand(len(prompts), -1, -1, -1)
    sigmas = world.sigmas(steps)[-round(strength * steps) - 1 :]
    noise = core.RandomNoise.execute(1)[0]
    return world.decode(world.sample(noise, world.prompts(prompts), cfg, sigmas, latent))


@dataclass
class Score:
    """What the judge says of the results of one method."""

    edits: list[Edit]
    readings: list[Reading]
    iou: Tensor  # [N] of the judged mask with the source's true one

    @classmethod
    def of(cls, edits: list[Edit], images: Tensor) -> Score:
        readings, masks = judge(images)
        return cls(edits, readings, mask_iou(masks, render([edit.source for edit in edits])[1]))

    def counts(self, attribute: str | None = None) -> tuple[int, int]:
        """How many have the edited attribute as the prompt asks, of all edits or of those of one attribute."""
        pairs = [(e, r) for e, r in zip(self.edits, self.readings, strict=True) if attribute in (None, e.attribute)]
        return sum(getattr(r, e.attribute) == getattr(e.target, e.attribute) for e, r in pairs), len(pairs)

    def changed(self) -> float:
        right, count = self.counts()
        return right / count

    def kept(self, *attributes: str) -> tuple[int, int]:
        """How many have all of these attributes as in the prompt."""
        pairs = zip(self.edits, self.readings, strict=True)
        return sum(all(getattr(r, a) == getattr(e.target, a) for a in attributes) for e, r in pairs), len(self.edits)

    def iou_of(self, attribute: str) -> float:
        rows = [i for i, edit in enumerate(self.edits) if edit.attribute == attribute]
        return float(self.iou[rows].mean())

    @property
    def trade_off(self) -> float:
        return (float(self.iou.mean()) + self.changed()) / 2

    def row(self, name: str) -> str:
        iou = f"{float(self.iou.mean()):.3f} | {float(self.iou.median()):.3f}"
        shares = (self.counts(), self.kept("shape"), self.kept("shape", "colour", "texture", "position", "background"))
        return f"| {name} | {iou} | {' | '.join(share(*counts) for counts in shares)} |"


def held_out_edits(count: int) -> list[Edit]:
    rng = random.Random(0)
    scenes = sample_scenes(count, 300, split="held_out")
    return [Edit(s, edited(s, a, rng), a) for s, a in zip(scenes, islice(cycle(ATTRIBUTES), count), strict=True)]


@dataclass(frozen=True)
class Measured:
    """One network's edits, by method."""

    results: dict[str, Tensor]  # pictures
    scores: dict[str, Score]
    sweep: dict[float, Score]  # SDEdit's strengths, on the first edits
    best: float  # of these strengths


def measure(world: World, edits: list[Edit], windows: dict[str, tuple[float, float]]) -> Measured:
    images, _ = render([edit.source for edit in edits])
    prompts = [caption(edit.target) for edit in edits]
    subset = edits[:SWEEP_SCENES]
    latent = world.encode(images[:SWEEP_SCENES])
    sweep = {
        strength: Score.of(subset, sdedit(world, latent, prompts[:SWEEP_SCENES], strength))
        for strength in tqdm(SWEEP, desc="SDEdit strengths")
    }
    best = max(sweep, key=lambda strength: sweep[strength].trade_off)

    parts: dict[str, list[Tensor]] = {name: [] for name in (*windows, EMPTY_TEXT, "SDEdit", "source")}
    for start in tqdm(range(0, len(edits), BATCH), desc=f"edits, {BATCH} at a time"):
        rows = slice(start, start + BATCH)
        source = Source.open(world, images[rows], [caption(edit.source) for edit in edits[rows]])
        parts["source"].append(world.decode(source.latent))
        for name, pictures in edit_all(source, prompts[rows], windows, best).items():
            parts[name].append(pictures)
        parts[EMPTY_TEXT].append(Source.open(world, images[rows], [""]).edit(prompts[rows], windows[PLUG_AND_PLAY]))
    results = {name: torch.cat(chunks) for name, chunks in parts.items()}
    targets, _ = render([edit.target for edit in edits])
    results |= {"target": targets, "decoded target": world.decode(world.encode(targets))}
    return Measured(results, {name: Score.of(edits, pictures) for name, pictures in results.items()}, sweep, best)


@torch.inference_mode()
def write(docs: Path) -> list[str]:
    """Write the page and its contact sheet; returns the bars that were missed."""
    edits = held_out_edits(SCENES)
    world = World.load()
    unet = measure(world, edits, WINDOWS)
    contact_sheet(world, edits, unet).save(docs / "plug_and_play.webp")
    missed, lines = report(unet)
    (docs / "plug_and_play.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))
    return missed


def edit_all(
    source: Source, prompts: Sequence[str], windows: dict[str, tuple[float, float]], strength: float
) -> dict[str, Tensor]:
    pictures = {name: source.edit(prompts, ends) for name, ends in windows.items()}
    return pictures | {"SDEdit": sdedit(source.world, source.latent, prompts, strength)}


def contact_sheet(world: World, edits: list[Edit], measured: Measured) -> Sheet:
    """The first edits as they come, and the held-out photograph under some looks."""
    names = [*WINDOWS, "SDEdit"]
    images, _ = render([edit.source for edit in edits[:SHOWN]])
    sheet = Sheet(
        f"Plug-and-Play and what it is compared with, {STEPS} steps, guidance {CFG}. Toy model.", ["source", *names]
    )
    for i, edit in enumerate(edits[:SHOWN]):
        words = f"{edit.attribute}: {edit.words}"
        sheet.add([(images[i], words), *((measured.results[name][i], "") for name in names)])
    photo = held_out_photo()
    looks = edit_all(Source.open(world, photo, [PHOTO_CAPTION]), LOOKS, WINDOWS, measured.best)
    for i, look in enumerate(LOOKS):
        sheet.add([(photo[0], f'"{look}"'), *((looks[name][i], "") for name in names)])
    return sheet


def report(measured: Measured) -> tuple[list[str], list[str]]:
    """The bars missed, and the page."""
    scores, sweep, best = measured.scores, measured.sweep, measured.best
    score = scores[PLUG_AND_PLAY]
    bars = (
        ("mean IoU of the object's mask with the source's", IOU_BAR, float(score.iou.mean())),
        ("fraction of the edits with the new attribute", ATTRIBUTE_BAR, score.changed()),
    )
    missed = [f"plug_and_play: {name}: at least {bar}, measured {got:.3f}" for name, bar, got in bars if got < bar]
    names = {
        PLUG_AND_PLAY: f"**Plug-and-Play, feature_end {PUBLISHED[0]}, attention_end {PUBLISHED[1]}, as published**",
        EMPTY_TEXT: "the same, inverted with the empty prompt",
        "attention only": f"attention only, attention_end {PUBLISHED[1]}",
        "features only": f"features only, feature_end {PUBLISHED[0]}",
        "plain sampling": "plain sampling from the inverted noise",
        "SDEdit": f"SDEdit at its best strength, {best}",
        "source": "*the source, unedited, through the autoencoder*",
        "target": "*the edited scenes, drawn by the renderer*",
        "decoded target": "*the same through the autoencoder*",
    }
    kinds = {attribute: sum(edit.attribute == attribute for edit in score.edits) for attribute in ATTRIBUTES}
    return missed, [
        "# Plug-and-Play: measured results",
        "",
        "All figures were measured on the CPU with the [toy model](toy.md), a small model trained on drawn scenes. "
        "They are not figures of Stable Diffusion: full-size models can behave differently. `make evidence "
        "PART=plug_and_play` measures them again and writes this page.",
        "",
        f"{len(score.edits)} held-out scenes. In each, the prompt changes one attribute ({', '.join((f'{kind} {count}' for kind, count in kinds.items()))}); "
        "the prompt is the whole caption of the edited scene. The source was inverted with its own caption by "
        f"`fixed_point`, {ITERATIONS} iterations. All methods used {STEPS} steps of `ddim_uniform`, ComfyUI's "
        f"`euler`, guidance {CFG} and the empty prompt as negative.",
        "",
        "The judge is a program (tests/lab/toy/judge.py) that finds the scene which explains a picture best. Mask "
        "IoU: the overlap of the object's mask that the judge finds in the result with the true mask of the source. "
        "New attribute: fraction of the results in which the judge finds the value that the prompt asks for, with its "
        "95 % interval (Wilson). All five attributes: shape, colour, texture, position and background. The rows in italics are not edits. They "
        "show how well the judge itself reads pictures.",
        "",
        "| goal | required | measured | |",
        "|---|---|---|---|",
        *(f"| {n} | at least {bar} | {got:.3f} | {'met' if got >= bar else '**missed**'} |" for n, bar, got in bars),
        "",
        f"| method {HEADER}",
        "|---" * 6 + "|",
        *(scores[name].row(label) for name, label in names.items()),
        "",
        f"The mean mask IoU is {float(score.iou.mean()):.3f} with injection and {float(scores['plain sampling'].iou.mean()):.3f} "
        "without it, from the same noise. With latents of 16 x 16, the inverted noise already holds the layout, and "
        "the features of block 4 have only 4 x 4 pixels. This page does not show what the method adds on real "
        "pictures.",
        "",
        "![Source and results of each method](plug_and_play.webp)",
        "",
        "## Plug-and-Play by the attribute that was changed",
        "",
        "| changed | mask IoU, mean | new attribute |",
        "|---|---|---|",
        *(f"| {kind} | {score.iou_of(kind):.3f} | {share(*score.counts(kind))} |" for kind in ATTRIBUTES),
        "",
        "## SDEdit by strength",
        "",
        f"The first {SWEEP_SCENES} of these scenes. The best strength is the one with the largest sum of the mean "
        "mask IoU and the fraction with the new attribute.",
        "",
        f"| strength {HEADER}",
        "|---" * 6 + "|",
        *(result.row(f"**{s}**" if s == best else str(s)) for s, result in sweep.items()),
    ]
