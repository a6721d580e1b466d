"""What becomes of held-out pictures in unCLIP: reconstructions, variations, morphs, and edits by words."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from lab.evidence.edits import Edit, held_out_edits
from lab.evidence.scores import psnr
from lab.evidence.unclip_models import UnCLIP, read_small, small
from lab.world.judge import Reading
from lab.world.render import render
from lab.world.scenes import Scene
from palimpsest.nodes.text.image_embedding import ImageEmbedding
from palimpsest.nodes.unclip.embeddings.nodes import EmbeddingSlerp, EmbeddingTextDiff, LatentSlerp
from torch import Tensor

CHANGES = ("style", "colour", "kind")
MORPH = (0.0, 0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0)
THETAS = (0.25, 0.375, 0.5)  # the paper ends at 0.25 to 0.5
VARIATION_CFGS = DIFF_CFGS = (1.0, 2.0, 4.0)


@dataclass(frozen=True)
class Opened:
    """Pictures as the decoder holds them: both of what they are made of."""

    scenes: list[Scene]
    small: Tensor
    embeds: Tensor
    start: Tensor

    @classmethod
    def of(cls, world: UnCLIP, scenes: Sequence[Scene]) -> Opened:
        images = torch.cat([render(scenes[i : i + 20]).pictures for i in range(0, len(scenes), 20)])
        pictures, embeds = small(images), world.see(images)
        return cls(list(scenes), pictures, embeds, world.start(pictures, world.tell([""] * len(scenes), embeds)))


@dataclass(frozen=True)
class Again:
    """Of each picture [B]: PSNR against what it was opened from, whether its things, style and background are read, and how far things moved."""

    label: str
    psnr: Tensor
    same: list[bool]
    moved: Tensor  # mean distance of the things' origins, in pixels of the judge's picture, where both are read
    pictures: Tensor
    readings: list[Reading]

    @classmethod
    def of(cls, world: UnCLIP, label: str, pictures: Tensor, opened: Opened) -> Again:
        readings = read_small(pictures)
        pairs = list(zip(readings, opened.scenes, strict=True))
        moved = torch.tensor([distance(r, s) for r, s in pairs if is_same(r, s)])
        return cls(label, psnr(pictures, opened.small), [is_same(r, s) for r, s in pairs], moved, pictures, readings)


def is_same(reading: Reading, scene: Scene) -> bool:
    seen = sorted((s.thing.kind, s.thing.colour) for s in reading.things)
    wanted = sorted((thing.kind, thing.colour) for thing in scene.things)
    return (seen, reading.style, reading.background) == (wanted, scene.style, scene.background)


def distance(reading: Reading, scene: Scene) -> float:
    """Of things that are the scene's own."""
    found = {(s.thing.kind, s.thing.colour): s.thing for s in reading.things}
    pairs = [(found[thing.kind, thing.colour], thing) for thing in scene.things]
    return sum(((a.x - b.x) ** 2 + (a.y - b.y) ** 2) ** 0.5 for a, b in pairs) / len(pairs)


def again(world: UnCLIP, opened: Opened, cfg: float) -> list[Again]:
    told = world.tell([""] * len(opened.scenes), opened.embeds)
    noise = torch.randn(opened.start.shape, generator=torch.Generator().manual_seed(0))
    noise = noise * (1 + world.sigmas("karras")[0] ** 2) ** 0.5
    made = {
        "reconstruction, from the inverted x_T": world.draw_from(opened.start, told),
        "from a random x_T": world.draw_from(noise, told),
        f"variation, eta 1, guidance {cfg:g}": world.draw_from(opened.start, told, cfg, 1.0),
    }
    return [Again.of(world, label, pictures, opened) for label, pictures in made.items()]


@dataclass(frozen=True)
class Morphs:
    edits: list[Edit]
    once: list[bool]  # whether a pair changes once, from the first picture's reading to the second's
    pictures: Tensor  # [pairs, MORPH, 3, DRAWN, DRAWN]
    readings: list[list[Reading]]


def morphs(world: UnCLIP, edits: list[Edit]) -> Morphs:
    """Between pictures that differ in one thing: embedding and x_T are interpolated together."""
    ends = [Opened.of(world, scenes) for scenes in zip(*((edit.source, edit.target) for edit in edits), strict=True)]
    thetas = ", ".join(map(str, MORPH))
    embeds = EmbeddingSlerp.execute(*(ImageEmbedding(end.embeds) for end in ends), thetas, 0)[0].image_embeds
    starts = LatentSlerp.execute(*({"samples": end.start} for end in ends), thetas, 0)[0]["samples"]
    pictures = world.draw_from(starts, world.tell([""] * len(embeds), embeds), label="morphs")
    readings = read_small(pictures)
    frames = [readings[i : i + len(MORPH)] for i in range(0, len(readings), len(MORPH))]
    once = [switches_once([end(edit, reading) for reading in row]) for edit, row in zip(edits, frames, strict=True)]
    return Morphs(edits, once, pictures.unflatten(0, (len(edits), len(MORPH))), frames)


def end(edit: Edit, reading: Reading) -> str:
    """Which end of a morph the picture is read as, in what is different between them."""
    back = replace(edit, target=edit.source)
    return "first" if back.is_done(reading) else "second" if edit.is_done(reading) else "neither"


def switches_once(ends: Sequence[str]) -> bool:
    return [value for value, _ in itertools.groupby(ends)] == ["first", "second"]


@dataclass(frozen=True)
class Moved:
    """Pictures edited by words, at one theta."""

    theta: float
    done: list[bool]
    kept: list[bool]  # the rest
    pictures: Tensor
    readings: list[Reading]


def by_words(world: UnCLIP, edits: list[Edit], opened: Opened, cfg: float) -> list[Moved]:
    """opened: the edits' sources."""
    found = []
    for theta in THETAS:
        embeds = [
            EmbeddingTextDiff.execute(ImageEmbedding(row), world.clip, edit.target_text, edit.source_text, f"{theta}", 0)[0]
            for row, edit in zip(opened.embeds.split(1), edits, strict=True)
        ]  # fmt: skip
        told = world.tell([""] * len(edits), torch.cat([embed.image_embeds for embed in embeds]))
        pictures = world.draw_from(opened.start, told, cfg, label=f"by words, theta {theta}")
        readings = read_small(pictures)
        pairs = list(zip(edits, readings, strict=True))
        done, kept = [e.is_done(r) for e, r in pairs], [rest_is_kept(e, r) for e, r in pairs]
        found.append(Moved(theta, done, kept, pictures, readings))
    return found


def rest_is_kept(edit: Edit, reading: Reading) -> bool:
    """What the edit does not name is read as before."""
    seen = sorted((s.thing.kind, s.thing.colour) for s in reading.things)
    wanted = [(thing.kind, thing.colour) for thing in edit.target.things]
    if edit.number is None:
        return seen == sorted(wanted) and reading.background == edit.source.background
    same = reading.style == edit.source.style and reading.background == edit.source.background
    return same and wanted[edit.other] in seen


def chosen_guidances(world: UnCLIP, count: int, seed: int) -> tuple[float, float]:
    """For variations and for edits by words: at which most tuning pictures are as they should be; the lowest of equals."""
    edits = held_out_edits(count, seed, CHANGES)
    opened = Opened.of(world, [edit.source for edit in edits])
    same = {cfg: sum(again(world, opened, cfg)[-1].same) for cfg in VARIATION_CFGS}
    both = {}
    for cfg in DIFF_CFGS:
        made = by_words(world, edits, opened, cfg)
        both[cfg] = max(sum(a and b for a, b in zip(m.done, m.kept, strict=True)) for m in made)
    return tuple(max(scores, key=lambda cfg, s=scores: (s[cfg], -cfg)) for scores in (same, both))
