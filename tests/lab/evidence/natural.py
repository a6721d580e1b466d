"""Scenes with things in natural colours, which the general model does not know, and what of them a picture shows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import comfy_extras.nodes_custom_sampler as core
import numpy as np
import torch
from lab.evidence.intervals import differ, difference, share
from lab.evidence.models import World
from lab.world.judge import Reading, judge
from lab.world.kinds import NATURAL
from lab.world.render import render
from lab.world.scenes import Scene, Thing, sample_scenes
from lab.world.studio import PLACE, natural_colours
from torch import Tensor

BATCH = 20
NAMES = ", ".join([*NATURAL][:-1]) + f" or {[*NATURAL][-1]}"


@dataclass(frozen=True)
class Score:
    """[N] each, of what a way made of N scenes."""

    subject: Tensor
    scene: Tensor

    @property
    def both(self) -> Tensor:
        return self.subject * self.scene

    def shares(self) -> list[str]:
        return [share(int(part.sum()), len(part)) for part in (self.subject, self.scene, self.both)]

    def ahead(self, other: Score) -> str:
        """How much this is ahead of another way at both, in percent of the scenes."""
        tie = "" if differ(self.both, other.both) else ", a tie"
        return difference(100 * self.both, 100 * other.both, 0) + tie


def natural_scenes(count: int, seed: int, *, things: int, natural: int, split: str = "held_out") -> list[Scene]:
    """Of things of different kinds, `natural` of them in a natural colour, in any place but the one that the studio knows."""
    chance = np.random.default_rng((seed, 1))
    drawn = sample_scenes(3 * count + 12, seed, split=split, things=things)
    kept = [s for s in drawn if s.background != PLACE and len({thing.kind for thing in s.things}) == things]
    scenes = []
    for scene in kept[:count]:
        colours = chance.permutation(natural_colours(scene)).tolist()
        chosen = dict(zip(chance.permutation(things)[:natural].tolist(), colours, strict=False))
        new = [replace(thing, colour=chosen.get(k, thing.colour)) for k, thing in enumerate(scene.things)]
        scenes.append(replace(scene, things=tuple(new)))
    return scenes


def shows(reading: Reading, thing: Thing) -> bool:
    return any((seen.thing.kind, seen.thing.colour) == (thing.kind, thing.colour) for seen in reading.things)


def in_order(reading: Reading, scene: Scene) -> bool:
    """Whether the scene's kinds of things are there and on the right sides of each other; there may be others."""
    wanted = [thing.kind for thing in sorted(scene.things, key=lambda thing: thing.x)]
    seen = sorted((seen.thing for seen in reading.things if seen.thing.kind in wanted), key=lambda thing: thing.x)
    return [thing.kind for thing in seen] == wanted


def drawn(count: int, seed: int, sigmas: Tensor, guider: Callable[[slice], object]) -> Iterator[Tensor]:
    """The latents of BATCH pictures at a time, each batch from a seed of its own. `guider` makes one for those."""
    euler = core.KSamplerSelect.execute("euler")[0]
    for start in range(0, count, BATCH):
        some = slice(start, min(start + BATCH, count))
        empty = {"samples": torch.zeros(some.stop - start, 4, 32, 32)}
        noise = core.Noise_RandomNoise(seed + start)
        yield core.SamplerCustomAdvanced.execute(noise, guider(some), euler, sigmas, empty)[0]["samples"]


def read(pictures: Tensor) -> list[Reading]:
    return judge(pictures, natural=True)


def ceiling(world: World, scenes: Sequence[Scene], score_of: Callable[[Sequence[Scene], list[Reading]], Score]) -> str:
    """What the judge makes of the scenes' own renders, as the autoencoder gives them back."""
    renders = torch.cat([render(scenes[i : i + BATCH]).pictures for i in range(0, len(scenes), BATCH)])
    score = score_of(scenes, read(world.decode(world.encode(renders))))
    return (
        f"The judge's own accuracy: of the same scenes drawn by the renderer and passed through the autoencoder, {score.shares()[-1]} are read as wholly "
        "right. No model can be measured to do better."
    )


def best(scores: dict, chosen: Sequence | None = None) -> object:
    """The first of those that have most scenes wholly right."""
    return max(chosen or scores, key=lambda name: float(scores[name].both.sum()))
