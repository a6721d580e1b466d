"""The colour and the marking of a thing whose place is known."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from lab.world import styles
from lab.world.backgrounds import SIZE
from lab.world.kinds import COLOURS
from lab.world.markings import looks, textures
from lab.world.render import Poses, colour_maps, lighting, marked, sampled
from torch import Tensor

STEP = 2  # pixels between those that are compared
SOFT = 0.1  # squared error beyond which a pixel counts less
MARKED = 0.97  # of the cost without markings: what a marking must come below


@dataclass(frozen=True)
class Coat:
    """[B] each: the number of the colour, and of the marking: 0 is none."""

    colour: Tensor
    marking: Tensor

    @classmethod
    def plain(cls, colour: Tensor) -> Coat:
        return cls(colour, torch.zeros_like(colour))

    def colours(self, pose: Poses) -> Tensor:
        """As render.colour_maps."""
        return colour_maps(pose, torch.tensor(list(COLOURS.values()))[self.colour], self.marking)

    def removed(self, pictures: Tensor, pose: Poses, style: str) -> Tensor:
        """The pictures with the markings in the things' own colour."""
        share = _painted(pose, style)[0][:, :1]
        return pictures + share * (Coat.plain(self.colour).colours(pose) - self.colours(pose))


def _painted(pose: Poses, style: str) -> tuple[Tensor, Tensor]:
    """As styles.drawn."""
    along = torch.arange(SIZE) + 0.5
    light = lighting(pose, along[None, None], along[None, :, None])
    return styles.drawn(sampled(pose), light, style, styles.patterns())


def coat_of(pictures: Tensor, beneath: Tensor, weight: Tensor, pose: Poses, style: str) -> Coat:
    """What explains the things' bodies best. Pictures and what lies beneath [B, 3, SIZE, SIZE]; `weight` [B, SIZE, SIZE] of the pixels."""
    paint, cover = _painted(pose, style)
    fields = (pictures - beneath * (1 - cover) - paint[:, 1:], paint[:, :1], weight[:, None])
    wanted, share, weight = (field[..., ::STEP, ::STEP] for field in fields)
    covers = [
        marked(pose, torch.full_like(pose.kind, number))[..., ::STEP, ::STEP] for number in range(len(textures()))
    ]
    palette = torch.tensor(list(COLOURS.values()))[..., None, None]
    costs = []
    for pattern, ink in zip(*looks(), strict=True):
        colours = torch.lerp(palette, ink[:, None, None], covers[pattern][:, None])  # B x colours x 3 x pixels
        error = (wanted[:, None] - share[:, None] * colours).square().sum(2)
        costs.append((error / (error + SOFT) * weight * (share > 0.05)).sum((2, 3)))
    cost = torch.stack(costs, 1)  # B x markings x colours
    least = cost.amin(2)
    plain, best = least[:, 0], least[:, 1:].argmin(1) + 1
    marking = torch.where(least.amin(1) < MARKED * plain, best, 0)
    return Coat(cost[torch.arange(len(cost)), marking].argmin(1), marking)
