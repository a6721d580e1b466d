"""Edits of one word of a caption: their inverted sources, their settings, and how the results are judged."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from itertools import cycle, islice

import torch
import torch.nn.functional as F
from lab.evidence.intervals import share
from lab.evidence.plug_and_play import Edit
from lab.evidence.world import World
from lab.toy.judge import Reading, judge
from lab.toy.scenes import caption, edited, render, sample_scenes
from palimpsest.nodes.diffusion.conditioning import Conditioning
from palimpsest.nodes.diffusion.trajectory import Trajectory
from palimpsest.nodes.inversion.noise import TrajectoryNoise
from palimpsest.nodes.prompt_to_prompt.nodes import EncodePromptEdit
from palimpsest.nodes.prompt_to_prompt.prompt_edit import PromptEdit
from torch import Tensor
from tqdm import tqdm

BATCH = 25
ATTRIBUTES = ("colour", "shape", "background")
MARGIN = 2  # pixels around the object's outline that are not counted


def no_words(edit: Edit) -> str:
    return ""


def object_words(edit: Edit) -> str:
    """The words an artist names to change the object only; none if the background changes."""
    if edit.attribute == "background":
        return ""
    return ", ".join(f"{scene.colour} {scene.shape}" for scene in (edit.source, edit.target))


def changed_words(edit: Edit) -> str:
    if edit.attribute == "background":
        return ", ".join(f"{scene.background} background" for scene in (edit.source, edit.target))
    return object_words(edit)


@dataclass(frozen=True)
class Windows:
    """Settings of PAL_PromptToPrompt."""

    cross_end: float = 0.8
    self_end: float = 0.4
    blend_words: Callable[[Edit], str] = no_words
    blend_threshold: float = 0.3


def held_out_edits(count: int, seed: int) -> list[Edit]:
    rng = random.Random(seed)
    scenes = sample_scenes(count, seed, split="held_out")
    return [Edit(s, edited(s, a, rng), a) for s, a in zip(scenes, islice(cycle(ATTRIBUTES), count), strict=True)]


@dataclass(frozen=True)
class Group:
    """Edits whose captions have their words in the same columns: one PromptEdit is right for them all."""

    world: World
    rows: list[int]
    edits: list[Edit]
    latent: Tensor
    source: Conditioning
    target: Conditioning
    trajectory: Trajectory
    noise: TrajectoryNoise

    def prompt_edit(self, blend_words: Callable[[Edit], str]) -> PromptEdit:
        edit = self.edits[0]
        texts = caption(edit.source), caption(edit.target)
        return EncodePromptEdit.execute(self.world.clip, *texts, "auto", "", blend_words(edit))[1]

    def steered(self, windows: Windows, **optional) -> World:
        ends = windows.cross_end, windows.self_end
        edit = self.prompt_edit(windows.blend_words)
        return self.world.prompt_to_prompt(
            self.trajectory, self.source, edit, *ends, blend_threshold=windows.blend_threshold, **optional
        )

    def sample(self, world: World, cfg: float, prompt: Conditioning | None = None) -> Tensor:
        """prompt: the target's if None."""
        sigmas = self.trajectory.sigmas
        return self.world.decode(world.sample(self.noise, prompt or self.target, cfg, sigmas, self.latent))


@dataclass(frozen=True)
class Edits:
    """Edits, their inverted sources, and what results are compared with."""

    edits: list[Edit]
    groups: list[Group]
    unedited: Tensor  # [N, 3, H, W], the autoencoder's pictures of the sources

    @classmethod
    def open(cls, world: World, edits: list[Edit], steps: int, method: str = "fixed_point") -> Edits:
        images, _ = render([edit.source for edit in edits])
        layouts: dict[tuple, list[int]] = defaultdict(list)
        for i, edit in enumerate(edits):
            texts = caption(edit.source), caption(edit.target)
            found = EncodePromptEdit.execute(world.clip, *texts, "auto", "", changed_words(edit))[1]
            layouts[found.source.words, found.target.words, found.source_blend, found.target_blend].append(i)
        batches = [rows[k : k + BATCH] for rows in layouts.values() for k in range(0, len(rows), BATCH)]
        groups = []
        for rows in tqdm(batches, desc="inversions"):
            chosen, latent = [edits[i] for i in rows], world.encode(images[rows])
            source = world.prompts([caption(edit.source) for edit in chosen])
            target = world.prompts([caption(edit.target) for edit in chosen])
            opened = world.invert(latent, source, world.sigmas(steps), method)
            groups.append(Group(world, rows, chosen, latent, source, target, *opened))
        return cls(edits, groups, world.decode(world.encode(images)))

    def each(self, draw: Callable[[Group], Tensor]) -> Score:
        images = torch.empty_like(self.unedited)
        for group in self.groups:
            images[group.rows] = draw(group)
        return self.score(images)

    def score(self, images: Tensor) -> Score:
        source, target = (render([getattr(edit, end) for edit in self.edits])[1] for end in ("source", "target"))
        behind = torch.tensor([edit.attribute == "background" for edit in self.edits])
        inside, outside = 1.0 - grown(1.0 - source, MARGIN), 1.0 - grown(torch.maximum(source, target), MARGIN)
        return Score(
            self.edits,
            images,
            judge(images)[0],
            masked_psnr(images, self.unedited, outside)[~behind],
            masked_psnr(images, self.unedited, 1.0 - torch.maximum(source, target))[~behind],
            masked_psnr(images, self.unedited, inside)[behind],
        )


def grown(masks: Tensor, pixels: int) -> Tensor:
    return F.max_pool2d(masks[:, None], 2 * pixels + 1, 1, pixels)[:, 0]


def masked_psnr(a: Tensor, b: Tensor, weights: Tensor) -> Tensor:
    """PSNR in dB of each picture [B, 3, H, W] where weights [B, H, W] count."""
    error = ((a - b).square().mean(1) * weights).sum((1, 2)) / weights.sum((1, 2))
    return -10 * error.clamp_min(1e-12).log10()


@dataclass(frozen=True)
class Score:
    edits: list[Edit]
    images: Tensor
    readings: list[Reading]
    outside: Tensor  # dB, edits of the object: what is kept of the background
    to_outline: Tensor  # the same without a margin
    inside: Tensor  # dB, edits of the background: what is kept of the object

    def counts(self, attribute: str | None = None) -> tuple[int, int]:
        """In how many the judge finds the word that the prompt asks for, and of how many."""
        pairs = [(e, r) for e, r in zip(self.edits, self.readings, strict=True) if attribute in (None, e.attribute)]
        return sum(getattr(r, e.attribute) == getattr(e.target, e.attribute) for e, r in pairs), len(pairs)

    def done(self, attribute: str | None = None) -> float:
        right, count = self.counts(attribute)
        return right / count

    def as_prompted(self) -> int:
        """In how many all five are as in the prompt."""
        names = ("shape", "colour", "texture", "position", "background")
        pairs = zip(self.edits, self.readings, strict=True)
        return sum(all(getattr(r, n) == getattr(e.target, n) for n in names) for e, r in pairs)

    def row(self, label: str) -> str:
        shares = [self.counts(), *(self.counts(kind) for kind in ATTRIBUTES), (self.as_prompted(), len(self.edits))]
        kept = [self.outside.mean(), self.outside.median(), self.to_outline.mean(), self.inside.mean()]
        cells = [share(*counts) for counts in shares] + [f"{float(value):.1f}" for value in kept]
        return f"| {label} | {' | '.join(cells)} |"
