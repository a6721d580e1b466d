"""What the expert and the subject model are trained on: things in natural colours, all of them in one room; and pictures of single things.

The expert's captions say the colours, the subject model's do not. The place that a caption names is drawn at
random, so that both models come to know a single place, as models do that are trained on portraits or on one artist's work.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from lab.world import stream, styles
from lab.world.captions import PLACES as PLACE_WORDS
from lab.world.captions import Caption, caption
from lab.world.kinds import EVERY_COLOUR, NATURAL
from lab.world.render import Poses, lighting, sampled
from lab.world.scenes import NAMES, SIZE, TURN, Scene, Thing, held_out, sample_scenes
from torch import Tensor

PLACE = "room"
ALONE = 0.35  # scenes of one thing
BRIGHT = 0.25  # things in a colour that the general model knows
STYLE_SAID, SIDE_SAID, PLACE_SAID = 0.8, 0.6, 0.5  # how often a caption says it
REFERENCE = 64  # pixels of a picture of a single thing
RADIUS = (44.0, 52.0)  # of its thing, in a picture of twice that size
NOISE = 0.5  # of these pictures are cut out before noise, as in FastComposer's training; the others before one colour


def studio_scenes(count: int, seed: int | Sequence[int]) -> list[Scene]:
    """Of no held-out kinds and colours, and never two of a kind."""
    seeds = np.random.SeedSequence(seed).generate_state(3).tolist()
    chance = np.random.default_rng(seeds[0])
    alone = round(count * ALONE)
    pairs = [scene for scene in sample_scenes(2 * count, seeds[2]) if len({thing.kind for thing in scene.things}) == 2]
    scenes = sample_scenes(alone, seeds[1], things=1) + pairs[: count - alone]
    return [recoloured(replace(scene, background=PLACE), chance) for scene in scenes]


def recoloured(scene: Scene, chance: np.random.Generator) -> Scene:
    """With natural colours for most things."""
    natural = iter(chance.permutation(natural_colours(scene)).tolist())
    things = [t if chance.random() < BRIGHT else replace(t, colour=next(natural, t.colour)) for t in scene.things]
    return replace(scene, things=tuple(things))


def natural_colours(scene: Scene) -> list[str]:
    """Those that can be seen there: black does not shine, and white things are lost in the snow."""
    hidden = {"black"} if scene.style == "neon" else set()
    hidden |= {"white"} if scene.background == "snow" else set()
    return [name for name in NATURAL if name not in hidden]


def random_caption(scene: Scene, chance: np.random.Generator, identity: bool) -> Caption:
    """`identity`: whether it says the colours."""
    shares = {"style": STYLE_SAID, "side": SIDE_SAID, "background": PLACE_SAID}
    said = [name for name, share in shares.items() if chance.random() < share]
    if identity:
        said += ["first colour", "second colour"]
    elsewhere = replace(scene, background=list(PLACE_WORDS)[chance.integers(len(PLACE_WORDS))])
    return caption(elsewhere, said, order=int(chance.integers(2)), wording=int(chance.integers(3)))


def drawn(number: int, seed: int, size: int) -> tuple[np.ndarray, np.ndarray, list[Scene]]:
    """As stream.drawn."""
    return stream.arrays(studio_scenes(size, (seed, number)))


def individuals() -> list[Thing]:
    """Each kind in each colour that training may see; they have no place."""
    return [
        Thing(kind, colour, 0.0, 0.0, 1.0)
        for kind in NAMES
        for colour in EVERY_COLOUR
        # A style keeps a thing back as well, but only one of them.
        if not all(held_out(Scene((Thing(kind, colour, 0.0, 0.0, 1.0),), PLACE, style)) for style in styles.STYLES)
    ]


def cut_out(things: Sequence[Thing], chance: np.random.Generator) -> Tensor:
    """[N, 4, REFERENCE, REFERENCE] in 0..1: flat drawings in other places, sizes and turns, and their masks."""
    count = len(things)
    spread = torch.from_numpy(chance.uniform(0, 1, (5, count))).float()
    pose = Poses(
        kind=torch.tensor([NAMES.index(thing.kind) for thing in things]),
        x=SIZE / 2 + 6 * (spread[0] - 0.5),
        y=SIZE / 2 + 6 * (spread[1] - 0.5),
        radius=RADIUS[0] + (RADIUS[1] - RADIUS[0]) * spread[2],
        turn=(TURN * (2 * spread[3] - 1)).deg2rad(),
        mirrored=1 - 2 * (spread[4] < 0.5).float(),
        lift=torch.zeros(count),
        light=torch.from_numpy(chance.choice([-1.0, 1.0], count)).float(),
    )
    along = torch.arange(SIZE) + 0.5
    maps = sampled(pose)
    light = lighting(pose, along[None, None], along[None, :, None])
    paint, cover = styles.drawn(maps, light, "flat", styles.patterns())
    colours = torch.tensor([EVERY_COLOUR[thing.colour] for thing in things])[..., None, None]
    return F.avg_pool2d(torch.cat([paint[:, 1:] + paint[:, :1] * colours, cover], 1), SIZE // REFERENCE).clamp(0, 1)


def before_backdrops(cut: Tensor, chance: torch.Generator) -> Tensor:
    """[N, 3, REFERENCE, REFERENCE] of `cut_out`, whose colours are multiplied by the masks."""
    uniform = partial(torch.rand, generator=chance, device=cut.device)
    noise, plain = uniform(len(cut), 3, *cut.shape[2:]), uniform(len(cut), 3, 1, 1)
    noisy = uniform(len(cut), 1, 1, 1) < NOISE
    return (cut[:, :3] + (1 - cut[:, 3:]) * torch.where(noisy, noise, plain)).clamp(0, 1)
