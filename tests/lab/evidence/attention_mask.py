"""docs/attention_mask.md: how well the areas of words cover the things they name, and whether they tell two of one kind apart."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from lab.evidence import intervals
from lab.evidence.edits import said, with_thing
from lab.evidence.intervals import ahead
from lab.evidence.models import NETWORKS, World
from lab.evidence.pages import JUDGED, claims, opening, save_page, table
from lab.evidence.sheets import rows_of_cells
from lab.world.judge import Reading, judge, mask_iou
from lab.world.measure import words
from lab.world.render import render
from lab.world.scenes import Scene, sample_scenes
from palimpsest.nodes.diffusion.conditioning import Conditioning
from palimpsest.nodes.diffusion.trajectory import Trajectory
from palimpsest.nodes.prompt_to_prompt.nodes import AttentionMask
from palimpsest.nodes.text.tokens import tokenize
from torch import Tensor
from tqdm import tqdm

SCENES, CHOSEN_ON = 100, 30  # of each sort, and other ones that the steps and the threshold are chosen on
SEED, CHOOSING_SEED = 500, 501
BATCH = 20
STEPS = 20
WINDOWS = ((0.0, 1.0), (0.0, 0.5), (0.5, 1.0))  # fractions of the steps
THRESHOLDS = (0.0, 0.3, 0.5)  # 0: by Otsu's method
DEFAULT = (0.0, 1.0, 0.0)
MAPS = {"UNet": 16, "transformer": 8}  # pixels along a side of the attention maps
SHOWN = 6

Setting = tuple[float, float, float]  # start, end, threshold
Wording = Callable[[Scene, int], str]


def noun(scene: Scene, number: int) -> str:
    return scene.things[number].kind


def phrase(scene: Scene, number: int) -> str:
    return f"{scene.things[number].colour} {scene.things[number].kind}"


def colour(scene: Scene, number: int) -> str:
    return scene.things[number].colour


def of_two_kinds(count: int, seed: int) -> list[Scene]:
    scenes = sample_scenes(2 * count + 8, seed, split="held_out")
    return [scene for scene in scenes if scene.things[0].kind != scene.things[1].kind][:count]


def of_one_kind(count: int, seed: int) -> list[Scene]:
    """Two things of one kind and of two colours."""
    return [with_thing(scene, 1, kind=scene.things[0].kind) for scene in of_two_kinds(count, seed)]


@dataclass(frozen=True)
class Source:
    """Scenes whose captions have their words in the same columns, so that one call of the node serves them all."""

    rows: list[int]
    scenes: list[Scene]
    pictures: Tensor
    trajectory: Trajectory
    positive: Conditioning

    def read(self, world: World, wording: Wording, number: int, setting: Setting) -> tuple[Tensor, Tensor]:
        """Masks [B, H, W] and heatmaps [B, 3, H, W] of the words for a thing."""
        text, wanted = said(self.scenes[0]), wording(self.scenes[0], number)
        image = self.pictures.movedim(1, -1)  # the node takes its size: a latent's pixel has 8 x 8 pixels otherwise
        mask, heat, _ = AttentionMask.execute(
            world.model, world.clip, self.trajectory, text, wanted, *setting, positive=self.positive, image=image
        ).args
        return mask, heat.movedim(-1, 1)


@dataclass(frozen=True)
class Opened:
    world: World
    scenes: list[Scene]
    pictures: Tensor
    visible: Tensor  # [N, 2, H, W]
    sources: list[Source]

    @classmethod
    def of(cls, world: World, scenes: list[Scene]) -> Opened:
        """Inverted by `ddim`, with their own captions."""
        drawn = render(scenes)
        layouts: dict[tuple, list[int]] = defaultdict(list)
        for i, scene in enumerate(scenes):
            layouts[tokenize(world.clip, said(scene)).words].append(i)
        batches = [rows[k : k + BATCH] for rows in layouts.values() for k in range(0, len(rows), BATCH)]
        sources = []
        for rows in tqdm(batches, desc="inversions"):
            positive = world.prompts([said(scenes[i]) for i in rows])
            pictures = drawn.pictures[rows]
            trajectory, _ = world.invert(world.encode(pictures), positive, world.sigmas(STEPS))
            sources.append(Source(rows, [scenes[i] for i in rows], pictures, trajectory, positive))
        return cls(world, scenes, drawn.pictures, drawn.visible, sources)

    def read(self, wording: Wording, setting: Setting) -> Areas:
        masks, heat = torch.zeros_like(self.visible), torch.zeros(len(self.scenes), 2, *self.pictures.shape[1:])
        for source in self.sources:
            for number in (0, 1):
                masks[source.rows, number], heat[source.rows, number] = source.read(
                    self.world, wording, number, setting
                )
        return Areas(masks, heat, mask_iou(masks, self.visible), mask_iou(masks, self.visible.flip(1)))


@dataclass(frozen=True)
class Areas:
    """Of both things' words; all [N, 2, ...]."""

    masks: Tensor
    heat: Tensor
    own: Tensor  # IoU with the thing that is meant
    other: Tensor  # IoU with the other thing

    @property
    def told_apart(self) -> Tensor:
        """Whether both words' areas cover their own thing more than the other, [N]."""
        return (self.own > self.other).all(1)


@dataclass(frozen=True)
class Measured:
    two: Opened
    one: Opened
    setting: Setting
    of_two: dict[str, Areas]
    of_one: dict[str, Areas]


def choose(world: World, count: int) -> Setting:
    opened = Opened.of(world, of_two_kinds(count, CHOOSING_SEED))
    tried = [(*window, threshold) for window in WINDOWS for threshold in THRESHOLDS]
    return max(tqdm(tried, desc="settings"), key=lambda setting: float(opened.read(phrase, setting).own.mean()))


def measure(world: World, scenes: int) -> Measured:
    setting = choose(world, min(scenes, CHOSEN_ON))
    two, one = Opened.of(world, of_two_kinds(scenes, SEED)), Opened.of(world, of_one_kind(scenes, SEED))
    of_two = {
        "phrase, chosen steps and threshold": two.read(phrase, setting),
        "phrase, all steps, threshold by Otsu": two.read(phrase, DEFAULT),
        "noun, chosen steps and threshold": two.read(noun, setting),
    }
    of_one = {"phrase": one.read(phrase, setting), "colour alone": one.read(colour, setting)}
    return Measured(two, one, setting, of_two, of_one)


@torch.inference_mode()
def write(docs: Path, weights: Path, scenes: int = SCENES) -> list[str]:
    """Writes the page and its sheets; there is no bar to miss."""
    found = {name: measure(load(weights), scenes) for name, load in NETWORKS.items()}
    lines = [
        *opening("Attention Mask", "attention_mask"),
        f"{scenes} held-out scenes of two kinds of things, and the same with both things of one kind, in two colours. Each was inverted by `ddim` with "
        f"its own caption on {STEPS} steps. `PAL_AttentionMask` read each thing's words in that caption. IoU: of its mask with the visible part of "
        "the thing, which is known because the scenes are drawn. Told apart: both things' areas cover their own thing more than the other. Steps and "
        f"threshold were chosen on {CHOSEN_ON} other scenes.",
        "",
        JUDGED,
        "",
    ]
    for name, measured in found.items():
        start, end, threshold = measured.setting
        lines += [
            f"## {name}",
            "",
            f"Chosen: start {start:g}, end {end:g}, threshold {threshold:g}{' (by Otsu)' if not threshold else ''}.",
            "",
            *verdict(measured),
            *_table("two kinds", MAPS[name], measured.two, measured.of_two),
            *_table("one kind, two colours", MAPS[name], measured.one, measured.of_one),
        ]
        _sheet(name, measured).save(docs / f"attention_mask_{name.lower()}.webp")
        lines += [f"![Scenes, heatmaps and masks](attention_mask_{name.lower()}.webp)", ""]
    save_page(docs, "attention_mask", lines)
    return []


def verdict(measured: Measured) -> list[str]:
    phrase_, _, noun_ = measured.of_two.values()
    apart = measured.of_one["phrase"]
    gain = intervals.difference(apart.own.mean(1), apart.other.mean(1))
    tie = "" if intervals.differ(apart.own.mean(1), apart.other.mean(1)) else ": a tie"
    return [
        *claims(
            {
                "a phrase's area covers the thing meant better than the other thing": ahead(
                    phrase_.own.mean(1), phrase_.other.mean(1)
                ),
                "and better than a mask of the whole picture would": ahead(
                    phrase_.own.mean(1), iou_of_whole_picture(measured.two)
                ),
                "a phrase tells two things of one kind apart by their colours": ahead(
                    apart.own.mean(1), apart.other.mean(1)
                ),
            }
        ),
        f"- A phrase's area against its noun's: IoU {intervals.difference(phrase_.own.mean(1), noun_.own.mean(1))}.",
        f"- Two things of one kind: IoU with the own thing less that with the other {gain}{tie}.",
        "",
    ]


def iou_of_whole_picture(opened: Opened) -> Tensor:
    """The IoU that a mask of the whole picture has, [N]."""
    return mask_iou(torch.ones_like(opened.visible), opened.visible).mean(1)


def _table(title: str, side: int, opened: Opened, found: dict[str, Areas]) -> list[str]:
    whole = torch.ones_like(opened.visible)
    small = F.adaptive_avg_pool2d(opened.visible, side)
    best = (F.interpolate(small, opened.visible.shape[-2:], mode="bilinear") > 0.5).float()
    bounds = {
        "*a mask of the whole picture*": whole,
        f"*the true masks at {side} x {side} pixels*": best,
    }
    rows = {name: (f.own, f.other, intervals.share(int(f.told_apart.sum()), len(f.own))) for name, f in found.items()}
    for name, masks in bounds.items():
        rows[name] = (mask_iou(masks, opened.visible), mask_iou(masks, opened.visible.flip(1)), "")
    return table(
        [f"words, {title}", "IoU with the thing meant", "IoU with the other thing", "told apart"],
        [
            (name, intervals.mean(own.mean(1)), intervals.mean(other.mean(1)), apart)
            for name, (own, other, apart) in rows.items()
        ],
    )


def _sheet(network: str, measured: Measured):
    """The first scenes of both sorts as they come."""
    rows = []
    for opened, areas in (
        (measured.two, next(iter(measured.of_two.values()))),
        (measured.one, measured.of_one["phrase"]),
    ):
        readings: list[Reading] = judge(opened.pictures[:SHOWN])
        for i, scene in enumerate(opened.scenes[:SHOWN]):
            row = [(opened.pictures[i], words(readings[i]))]
            for number in (0, 1):
                row.append((areas.heat[i, number], phrase(scene, number)))
                row.append((areas.masks[i, number].expand(3, -1, -1), f"IoU {float(areas.own[i, number]):.2f}"))
            rows.append(row)
    headings = ["scene", "one thing", "its mask", "the other thing", "its mask"]
    return rows_of_cells(f"Where the {network} looks at words, {STEPS} steps", headings, rows)
