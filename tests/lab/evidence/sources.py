"""Inverted pictures and their edits, in batches that one call of a node serves, and what is measured of the results."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from lab.evidence.edits import Edit
from lab.evidence.models import World
from lab.evidence.scores import grown, psnr, things_iou
from lab.world.judge import Reading, judge
from lab.world.render import render
from palimpsest.nodes.diffusion.conditioning import Conditioning
from palimpsest.nodes.diffusion.trajectory import Trajectory
from palimpsest.nodes.inversion.noise import TrajectoryNoise
from palimpsest.nodes.prompt_to_prompt.nodes import EncodePromptEdit
from palimpsest.nodes.prompt_to_prompt.prompt_edit import PromptEdit
from torch import Tensor
from tqdm import tqdm

BATCH = 20


@dataclass(frozen=True)
class Group:
    """Edits that one call of a node serves."""

    world: World
    rows: list[int]
    edits: list[Edit]
    latent: Tensor
    source: Conditioning
    target: Conditioning
    trajectory: Trajectory
    noise: TrajectoryNoise

    def sample(
        self, world: World, cfg: float, prompt: Conditioning | None = None, negative: Conditioning | None = None
    ) -> Tensor:
        """Pictures from the inverted noise; `prompt`: the target's if None."""
        sigmas = self.trajectory.sigmas
        return self.world.decode(world.sample(self.noise, prompt or self.target, cfg, sigmas, self.latent, negative))

    def inverted_with(self, prompt: Conditioning, cfg: float = 1.0) -> Group:
        trajectory, noise = self.world.invert(self.latent, prompt, self.trajectory.sigmas, cfg=cfg)
        return replace(self, trajectory=trajectory, noise=noise)


@dataclass(frozen=True)
class Judged:
    """What became of each edit."""

    pictures: Tensor
    readings: list[Reading]
    done: Tensor  # bool [N]
    iou: Tensor  # [N], of both things' masks with the source's true ones, the mean
    other: Tensor  # dB [N], of the thing that is not changed, against the unedited picture; NaN if the whole picture is changed
    background: Tensor  # dB [N], likewise

    @property
    def counts(self) -> tuple[int, int]:
        return int(self.done.sum()), len(self.done)

    @property
    def share(self) -> float:
        return float(self.done.float().mean())

    def of(self, rows: list[int]) -> Judged:
        parts = (self.pictures, self.done, self.iou, self.other, self.background)
        pictures, *rest = (part[rows] for part in parts)
        return Judged(pictures, [self.readings[i] for i in rows], *rest)


@dataclass(frozen=True)
class Sources:
    edits: list[Edit]
    groups: list[Group]
    unedited: Tensor  # [N, 3, H, W], the sources through the autoencoder
    pictures: Tensor  # the sources
    visible: Tensor  # [N, 2, H, W], true masks of the sources

    @classmethod
    def open(
        cls, world: World, edits: list[Edit], steps: int, method: str = "ddim", *, by_words: bool = True
    ) -> Sources:
        """Inverted with the captions of the sources. `by_words`: one PromptEdit fits all edits of a group."""
        drawn = render([edit.source for edit in edits])
        layouts: dict[tuple, list[int]] = defaultdict(list)
        for i, edit in enumerate(edits):
            layouts[_layout(world, edit) if by_words else ()].append(i)
        batches = [rows[k : k + BATCH] for rows in layouts.values() for k in range(0, len(rows), BATCH)]
        groups = []
        for rows in tqdm(batches, desc="inversions"):
            some, latent = [edits[i] for i in rows], world.encode(drawn.pictures[rows])
            source, target = (
                world.prompts([edit.source_text for edit in some]),
                world.prompts([edit.target_text for edit in some]),
            )
            opened = world.invert(latent, source, world.sigmas(steps), method)
            groups.append(Group(world, rows, some, latent, source, target, *opened))
        unedited = world.decode(world.encode(drawn.pictures))
        return cls(edits, groups, unedited, drawn.pictures, drawn.visible)

    def each(self, draw: Callable[[Group], Tensor]) -> Tensor:
        """Pictures that are made of each group, in the order of the edits."""
        pictures = torch.empty_like(self.unedited)
        for group in self.groups:
            pictures[group.rows] = draw(group)
        return pictures

    def judged(self, pictures: Tensor) -> Judged:
        readings = judge(pictures.clamp(0, 1))
        done = torch.tensor([edit.is_done(reading) for edit, reading in zip(self.edits, readings, strict=True)])
        other, background = self._kept(pictures)
        return Judged(pictures, readings, done, things_iou(readings, self.visible).mean(1), other, background)

    def edited(self, draw: Callable[[Group], Tensor]) -> Judged:
        return self.judged(self.each(draw))

    def rows(self, change: str) -> list[int]:
        return [i for i, edit in enumerate(self.edits) if edit.change == change]

    def _kept(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """PSNR of the thing that stays and of the background, away from where the thing that changes was or should be."""
        after = render([edit.target for edit in self.edits]).whole
        before = render([edit.source for edit in self.edits]).whole
        changed = torch.tensor([edit.number if edit.number is not None else 0 for edit in self.edits])
        rows = torch.arange(len(changed))
        touched = grown(torch.maximum(before[rows, changed], after[rows, changed]))
        stays = self.visible[rows, 1 - changed] * (1 - touched)
        behind = (1 - touched) * (1 - grown(before[rows, 1 - changed]))
        whole = torch.tensor([edit.number is None for edit in self.edits])
        return tuple(
            psnr(pictures, self.unedited, weights).masked_fill(whole, torch.nan) for weights in (stays, behind)
        )


def prompt_edit(world: World, edit: Edit, reweight: str = "", blend_words: str = "") -> PromptEdit:
    texts = edit.source_text, edit.target_text
    return EncodePromptEdit.execute(world.clip, *texts, "auto", reweight, blend_words)[1]


def blend_words(edit: Edit) -> str:
    """What an artist names to change one thing alone, in both prompts."""
    return ", ".join(dict.fromkeys(edit.phrases))


def reweighted(edit: Edit, factor: float) -> str:
    return f"{edit.source.things[edit.changed].colour}: {factor:g}" if edit.change == "weaken" else ""


def _layout(world: World, edit: Edit) -> tuple:
    """What of a PromptEdit control of the attention depends on: edits of one layout share one."""
    if edit.number is None:
        found = prompt_edit(world, edit)
    else:
        found = prompt_edit(world, edit, reweighted(edit, 0.0), blend_words(edit))
    tensors = (found.alignment.mapper, found.alignment.aligned, found.equalizer)
    return edit.change, found.source_blend, found.target_blend, *(part.numpy().tobytes() for part in tensors)
