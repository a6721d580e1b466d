"""What a prior is worth: how often pictures show what a caption says, and how much they vary in what it leaves unsaid.

The variety of an attribute is its collision entropy, -log2 of the chance that two pictures of one caption agree in it. It is estimated without
bias from pairs of pictures, however few of a caption's pictures count; and those alone count that show what the caption says.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import cycle

import torch
from lab.evidence.unclip_models import UnCLIP, read_small
from lab.world.captions import ATTRIBUTES, caption
from lab.world.judge import Reading
from lab.world.render import render
from lab.world.scenes import PALETTE, PLACES, Scene, Thing, sample_scenes
from lab.world.styles import STYLES
from torch import Tensor

SAMPLES = 8  # pictures of a caption
GUIDANCES = (1.0, 2.0, 4.0, 8.0)
SAID = (("first colour", "style"), ("second colour", "background"))  # in turn; which is to the left is never said
# The most that two pictures can differ, in bits.
MOST = {
    name: math.log2(count)
    for name, count in zip(ATTRIBUTES, (len(PALETTE), len(PALETTE), 2, len(PLACES), len(STYLES)), strict=True)
}
CENTRED = 200  # scenes of the training split
RESAMPLES = 2000


@dataclass(frozen=True)
class Prompt:
    scene: Scene
    said: tuple[str, ...]
    text: str

    @classmethod
    def some(cls, count: int, seed: int, split: str = "held_out") -> list[Prompt]:
        """Of scenes of two kinds."""
        found = sample_scenes(2 * count + 8, seed, split=split)
        scenes = [scene for scene in found if len({thing.kind for thing in scene.things}) == 2]
        pairs = zip(scenes[:count], cycle(SAID))
        return [cls(scene, said, caption(scene, said).text) for scene, said in pairs]

    @property
    def wanted(self) -> dict[str, str]:
        shown = self.values(self.scene.things, self.scene.background, self.scene.style)
        return {name: value for name, value in (shown or {}).items() if name in self.said}

    def seen(self, reading: Reading) -> dict[str, str] | None:
        """The value of each of ATTRIBUTES, if the picture shows what the caption says."""
        shown = self.values([seen.thing for seen in reading.things], reading.background, reading.style)
        is_right = shown is not None and self.wanted.items() <= shown.items()
        return shown if is_right else None

    def values(self, things: Sequence[Thing], background: str | None, style: str | None) -> dict[str, str] | None:
        kinds = [thing.kind for thing in self.scene.things]
        if sorted(thing.kind for thing in things) != sorted(kinds) or style is None or background is None:
            return None
        first, second = sorted(things, key=lambda thing: kinds.index(thing.kind))
        side = "left" if first.x < second.x else "right"
        return dict(zip(ATTRIBUTES, (first.colour, second.colour, side, background, style), strict=True))


@dataclass(frozen=True)
class Score:
    """fidelity: [P], the share of a caption's pictures that show what it says; pairs: [ATTRIBUTES, P, 2], pairs of these
    pictures that agree, and all pairs, where the caption leaves the attribute unsaid."""

    fidelity: Tensor
    pairs: Tensor

    @classmethod
    def of(cls, prompts: Sequence[Prompt], readings: Sequence[Reading]) -> Score:
        """readings: those of the first prompt's pictures, then those of the second's, and so on."""
        samples = len(readings) // len(prompts)
        fidelity, pairs = torch.zeros(len(prompts)), torch.zeros(len(ATTRIBUTES), len(prompts), 2)
        for row, prompt in enumerate(prompts):
            own = [prompt.seen(reading) for reading in readings[row * samples : (row + 1) * samples]]
            right = [values for values in own if values is not None]
            fidelity[row] = len(right) / samples
            for k, name in enumerate(ATTRIBUTES):
                if name not in prompt.said:
                    pairs[k, row] = torch.tensor(agreeing([values[name] for values in right]))
        return cls(fidelity, pairs)

    @property
    def mean(self) -> float:
        return float(self.fidelity.mean())

    def bits(self, rows: Tensor | None = None) -> Tensor:
        """[ATTRIBUTES], of the captions `rows`; NaN where no two pictures count."""
        agree, pairs = (self.pairs if rows is None else self.pairs[:, rows]).sum(1).unbind(1)
        return torch.minimum(-(agree / pairs).log2(), torch.tensor(list(MOST.values())))

    def text(self) -> list[str]:
        """The sum of all attributes' bits with its interval, and each attribute's."""
        low, high = _interval(len(self.fidelity), lambda rows: float(self.bits(rows).sum()))
        each = self.bits()
        return [with_interval(each.sum(), low, high), *map(in_bits, each)]

    def ahead(self, other: Score) -> tuple[float, float, float]:
        """By how many bits in all, with its interval (paired bootstrap over the captions)."""

        def difference(rows: Tensor | None) -> float:
            return float(self.bits(rows).sum() - other.bits(rows).sum())

        return difference(None), *_interval(len(self.fidelity), difference)


def in_bits(value: Tensor | float, sign: str = "") -> str:
    return "none to measure" if math.isnan(value) else f"{float(value) + 0.0:{sign}.2f}"  # no -0.00


def with_interval(value: Tensor | float, low: float, high: float, sign: str = "") -> str:
    whole = in_bits(value, sign)
    return whole if math.isnan(value) else f"{whole} ({in_bits(low, sign)} to {in_bits(high, sign)})"


def agreeing(values: Sequence[str]) -> tuple[int, int]:
    """How many ordered pairs agree, and how many there are."""
    counts = [values.count(value) for value in set(values)]
    return sum(n * (n - 1) for n in counts), len(values) * (len(values) - 1)


def _interval(count: int, measure: Callable[[Tensor], float]) -> tuple[float, float]:
    """95 %, of captions drawn anew with a fixed seed."""
    chance = torch.Generator().manual_seed(0)
    values = torch.tensor([measure(torch.randint(count, (count,), generator=chance)) for _ in range(RESAMPLES)])
    low, high = values.nanquantile(torch.tensor([0.025, 0.975])).tolist()
    return low, high


# --------------------------------------------------------------------------------------- ways to tell the decoder


@dataclass(frozen=True)
class Centres:
    """Where the embeddings of texts and of pictures lie: the mean directions of both, and the mean length of those of pictures."""

    text: Tensor
    picture: Tensor
    length: Tensor

    @classmethod
    def of(cls, world: UnCLIP, count: int = CENTRED) -> Centres:
        scenes = sample_scenes(count, 5001)
        texts = world.pooled([caption(scene).text for scene in scenes])
        pictures = torch.cat([world.see(render(scenes[i : i + 20]).pictures) for i in range(0, count, 20)])
        return cls(_unit(texts).mean(0), _unit(pictures).mean(0), pictures.norm(dim=1).mean())

    @property
    def gap(self) -> float:
        """Between the two centres; embeddings have length 1."""
        return float((self.text - self.picture).norm())

    def as_picture(self, texts: Tensor) -> Tensor:
        return _unit(texts) * self.length

    def moved(self, texts: Tensor) -> Tensor:
        return _unit(_unit(texts) - self.text + self.picture) * self.length


def _unit(x: Tensor) -> Tensor:
    return x / x.norm(dim=1, keepdim=True)


Way = Callable[[UnCLIP, Centres, Sequence[str]], Tensor | None]
PRIOR = "**the prior's embedding**"
WAYS: dict[str, Way] = {
    "the caption alone": lambda _world, _centres, _texts: None,
    "the text's embedding": lambda world, centres, texts: centres.as_picture(world.pooled(texts)),
    "the text's embedding, moved": lambda world, centres, texts: centres.moved(world.pooled(texts)),
    PRIOR: lambda world, _centres, texts: world.imagine(texts),
}


@dataclass(frozen=True)
class Drawn:
    score: Score
    pictures: Tensor  # [P * SAMPLES, 3, DRAWN, DRAWN]
    readings: list[Reading]


def drawn(world: UnCLIP, centres: Centres, prompts: Sequence[Prompt], way: str, cfg: float, samples: int) -> Drawn:
    """The same noise in every way and at every guidance."""
    texts = [prompt.text for prompt in prompts for _ in range(samples)]
    told = world.tell(texts, WAYS[way](world, centres, texts))
    pictures = world.draw(told, len(texts), cfg, f"{way}, guidance {cfg:g}")
    readings = read_small(pictures)
    return Drawn(Score.of(prompts, readings), pictures, readings)


def guidances(tuned: dict[str, dict[float, Score]]) -> dict[str, float]:
    """Of each way: the prior's at which most pictures are right, and the others' at which as nearly as many are; the lowest of equals."""
    prior = max(tuned[PRIOR].items(), key=lambda item: (item[1].mean, -item[0]))
    chosen = {
        way: min(scores.items(), key=lambda item: (abs(item[1].mean - prior[1].mean), item[0]))[0]
        for way, scores in tuned.items()
    }
    return chosen | {PRIOR: prior[0]}
