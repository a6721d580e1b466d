"""What the miniature DALL-E 2 makes of texts, of pictures, and of what lies between them."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from lab.evidence.unclip_world import UnCLIP, enlarged, small_pictures
from lab.evidence.world import psnr_each
from lab.toy.judge import Reading, judge
from lab.toy.scenes import Scene, caption, edited, render
from lab.toy.unclip_scenes import ATTRIBUTES, SMALL
from palimpsest.nodes.text.image_embedding import ImageEmbedding
from palimpsest.nodes.text.text_states import text_states
from palimpsest.nodes.unclip.embeddings.nodes import EmbeddingSlerp, EmbeddingTextDiff, LatentSlerp
from torch import Tensor

CANDIDATES = 8
UPSAMPLED = 100  # pictures; more would take over five minutes of one core
CHANGED = ("shape", "colour", "texture", "background")
MORPH = "0, 0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1"
THETAS = (0.25, 0.375, 0.5)  # the paper ends at 0.25 to 0.5
THETA = 0.5
VARIATION_CFG, DIFF_CFG = 4.0, 4.0


@dataclass(frozen=True)
class Row:
    """Shares of pictures of which the judge reads what was wanted."""

    label: str
    same: dict[str, float]
    both: float
    everything: float

    @classmethod
    def of(cls, label: str, small: Tensor, scenes: Sequence[Scene]) -> Row:
        return cls.read(label, judge(enlarged(small) if small.shape[-1] == SMALL else small)[0], scenes)

    @classmethod
    def read(cls, label: str, readings: Sequence[Reading], scenes: Sequence[Scene]) -> Row:
        rows = [
            {name: getattr(reading, name) == getattr(scene, name) for name in ATTRIBUTES}
            for reading, scene in zip(readings, scenes, strict=True)
        ]
        count = len(rows)
        same = {name: sum(row[name] for row in rows) / count for name in ATTRIBUTES}
        both = sum(row["shape"] and row["colour"] for row in rows) / count
        return cls(label, same, both, sum(all(row.values()) for row in rows) / count)


@dataclass(frozen=True)
class Opened:
    """Held-out pictures as the decoder holds them: both of what they are made of."""

    scenes: list[Scene]
    small: Tensor
    embeds: Tensor
    start: Tensor

    @classmethod
    def of(cls, world: UnCLIP, scenes: list[Scene]) -> Opened:
        images = render(scenes)[0]
        small, embeds = small_pictures(images), world.see(images)
        return cls(scenes, small, embeds, world.start(small, world.tell([""] * len(scenes), embeds)))


# ------------------------------------------------------------------------------------------- (a), (f): from texts


@dataclass(frozen=True)
class Texts:
    rows: dict[str, Row]
    pictures: dict[str, Tensor]
    scenes: list[Scene]


def from_texts(world: UnCLIP, scenes: list[Scene]) -> Texts:
    words = [caption(scene) for scene in scenes]
    norm = world.see(render(scenes)[0]).norm(dim=1).mean()
    read = torch.cat([_pooled(world, text) for text in words])
    imagined = {count: world.imagine(words, count) for count in (1, 2, CANDIDATES)}
    ways = {
        "text": ("text alone", None),
        "as image": ("the text's embedding in place of a picture's", read / read.norm(dim=1, keepdim=True) * norm),
        "prior": ("**the prior's embedding**, best of 2", imagined[2]),
        "one": ("the prior's embedding, one candidate", imagined[1]),
        "many": (f"the prior's embedding, best of {CANDIDATES}", imagined[CANDIDATES]),
    }
    pictures = {
        name: world.paint(world.tell(words, embeds), len(words), label=label) for name, (label, embeds) in ways.items()
    }
    pictures["large"] = world.upsample(pictures["prior"][:UPSAMPLED], "both upsamplers")
    labels = {name: label for name, (label, _) in ways.items()} | {
        "large": f"the first {len(pictures['large'])} of these through both upsamplers"
    }
    rows = {name: Row.of(labels[name], drawn, scenes[: len(drawn)]) for name, drawn in pictures.items()}
    return Texts(rows, pictures, scenes)


def _pooled(world: UnCLIP, text: str) -> Tensor:
    return text_states(world.clip, [text], world.prior.width, "the table").pooled


# ------------------------------------------------------------------------------------- (b), (c): one picture again


@dataclass(frozen=True)
class Again:
    """PSNR [B] of the decoder's pictures against those they were opened from; how far readings are from the scenes."""

    psnr: dict[str, Tensor]
    rows: dict[str, Row]
    moved: dict[str, tuple[float, float]]
    pictures: dict[str, Tensor]


def again(world: UnCLIP, opened: Opened) -> Again:
    told = world.tell([""] * len(opened.scenes), opened.embeds)
    noise = torch.randn(opened.start.shape, generator=torch.Generator().manual_seed(0))
    noise = noise * (1 + world.sigmas("karras")[0] ** 2) ** 0.5
    pictures = {
        "inverted": world.paint_from(opened.start, told, label="from the inverted x_T"),
        "random": world.paint_from(noise, told, label="from a random x_T"),
        "varied": world.paint_from(opened.start, told, VARIATION_CFG, 1.0, label="variations"),
    }
    readings = {name: judge(enlarged(drawn))[0] for name, drawn in pictures.items()}
    labels = {"inverted": "eta 0: the reconstruction", "varied": f"**eta 1**, guidance {VARIATION_CFG:g}"}
    return Again(
        {name: psnr_each(pictures[name], opened.small) for name in pictures},
        {name: Row.read(label, readings[name], opened.scenes) for name, label in labels.items()},
        {name: _moved(readings[name], opened.scenes) for name in labels},
        pictures,
    )


def _moved(readings: Sequence[Reading], scenes: Sequence[Scene]) -> tuple[float, float]:
    """Mean distance of centres, and mean difference of radii, in pixels of SIZE."""
    pairs = list(zip(readings, scenes, strict=True))
    centre = sum(((r.centre[0] - s.centre[0]) ** 2 + (r.centre[1] - s.centre[1]) ** 2) ** 0.5 for r, s in pairs)
    return centre / len(pairs), sum(abs(r.radius - s.radius) for r, s in pairs) / len(pairs)


# ------------------------------------------------------------------------------------------------- (d): in between


@dataclass(frozen=True)
class Between:
    """switched: by attribute, the share of pairs whose reading is the first picture's up to a point and the second's from there on."""

    switched: dict[str, float]
    everywhere: float
    pictures: Tensor  # [pairs, thetas, 3, SMALL, SMALL]
    pairs: list[tuple[Scene, Scene]]


def between(world: UnCLIP, scenes: list[Scene]) -> Between:
    rng = random.Random(0)
    pairs = []
    for attribute, scene in zip(itertools.cycle(CHANGED), scenes):
        pairs.append((scene, edited(scene, attribute, rng)))
    ends = [Opened.of(world, [pair[i] for pair in pairs]) for i in (0, 1)]
    embeds = EmbeddingSlerp.execute(*(ImageEmbedding(end.embeds) for end in ends), MORPH, 0)[0].image_embeds
    starts = LatentSlerp.execute(*({"samples": end.start} for end in ends), MORPH, 0)[0]["samples"]
    pictures = world.paint_from(starts, world.tell([""] * len(embeds), embeds), label="morphs")
    readings = judge(enlarged(pictures))[0]
    frames = len(MORPH.split(","))
    by_attribute: dict[str, list[bool]] = {name: [] for name in CHANGED}
    for i, (pair, attribute) in enumerate(zip(pairs, itertools.cycle(CHANGED))):
        values = [getattr(reading, attribute) for reading in readings[i * frames : (i + 1) * frames]]
        by_attribute[attribute].append(switches_once(values, *(getattr(scene, attribute) for scene in pair)))
    every = [met for found in by_attribute.values() for met in found]
    return Between(
        {name: sum(found) / len(found) for name, found in by_attribute.items()},
        sum(every) / len(every),
        pictures.unflatten(0, (len(pairs), frames)),
        pairs,
    )


def switches_once(values: Sequence[str], first: str, last: str) -> bool:
    return [value for value, _ in itertools.groupby(values)] == [first, last]


# -------------------------------------------------------------------------------------------------- (e): by words


@dataclass(frozen=True)
class Moved:
    """Shares by theta: the named attribute reads as wanted; all others as they were; both."""

    changed: dict[float, float]
    kept: dict[float, float]
    both: dict[float, float]
    by_attribute: dict[str, float]
    pictures: dict[float, Tensor]


def by_words(world: UnCLIP, opened: Opened) -> Moved:
    rng = random.Random(1)
    targets = [
        edited(scene, attribute, rng) for scene, attribute in zip(opened.scenes, itertools.cycle(CHANGED), strict=False)
    ]
    changed, kept, both, pictures = {}, {}, {}, {}
    by_attribute: dict[str, float] = {}
    for theta in THETAS:
        embeds = [
            EmbeddingTextDiff.execute(ImageEmbedding(row), world.clip, caption(target), caption(scene), f"{theta}", 0)[
                0
            ].image_embeds
            for row, scene, target in zip(opened.embeds.split(1), opened.scenes, targets, strict=True)
        ]
        told = world.tell([""] * len(targets), torch.cat(embeds))
        pictures[theta] = world.paint_from(opened.start, told, DIFF_CFG, label=f"by words, theta {theta}")
        readings = judge(enlarged(pictures[theta]))[0]
        hits, rests = [], []
        for reading, target, attribute in zip(readings, targets, itertools.cycle(CHANGED), strict=False):
            hits.append(getattr(reading, attribute) == getattr(target, attribute))
            rests.append(
                all(getattr(reading, name) == getattr(target, name) for name in ATTRIBUTES if name != attribute)
            )
        changed[theta], kept[theta] = sum(hits) / len(hits), sum(rests) / len(rests)
        both[theta] = sum(a and b for a, b in zip(hits, rests, strict=True)) / len(hits)
        if theta == THETA:
            by_attribute = {
                name: sum(hits[i :: len(CHANGED)]) / len(hits[i :: len(CHANGED)]) for i, name in enumerate(CHANGED)
            }
    return Moved(changed, kept, both, by_attribute, pictures)
