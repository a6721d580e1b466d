"""Reads a scene back from its pixels, by analysis through synthesis: the renderer's own parts explain the picture best."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from lab.toy.scenes import (
    BACKGROUNDS,
    COLOURS,
    POSITIONS,
    SHADE,
    SHAPES,
    SIZE,
    TEXTURES,
    background_images,
    shape_distance,
    texture_weight,
)
from torch import Tensor

RADII = tuple(range(21, 40, 2))
GRID = SIZE // 2  # the search's resolution
CANDIDATES = 3  # shapes whose rendering is compared in full
SHIFTS = (-4.0, 0.0, 4.0)  # how far a texture may lie off the object's centre, since a model need not draw it there
MOVES = (3.0, 2.0, 1.0, 1.0, 0.5, 0.5, 0.25)  # pixels by which the last fit tries to shift and resize the object

Tone = tuple[str, float, float]  # a texture, and how far it lies off the object's centre


@dataclass(frozen=True)
class Reading:
    """What the judge sees. `error` is the root-mean-square distance between the picture and that explanation."""

    shape: str
    colour: str
    texture: str
    position: str
    background: str
    centre: tuple[float, float]
    radius: float
    error: float


@torch.no_grad()
def judge(images: Tensor, textures: Sequence[str] = TEXTURES) -> tuple[list[Reading], Tensor]:
    """Readings of images [B, 3, SIZE, SIZE] in 0..1, of which `textures` may be seen, and the objects' fitted masks [B, SIZE, SIZE]."""
    tones = [(TEXTURES[0], 0.0, 0.0), *itertools.product([t for t in textures if t != TEXTURES[0]], SHIFTS, SHIFTS)]
    parts = [_judge(chunk, tones) for chunk in images.float().split(8)]
    return [reading for readings, _ in parts for reading in readings], torch.cat([masks for _, masks in parts])


def mask_iou(a: Tensor, b: Tensor) -> Tensor:
    """Soft intersection over union of masks [B, H, W]."""
    return torch.minimum(a, b).flatten(1).sum(1) / torch.maximum(a, b).flatten(1).sum(1)


def _judge(images: Tensor, known: Sequence[Tone]) -> tuple[list[Reading], Tensor]:
    names = list(BACKGROUNDS)
    fields = background_images(names)
    # Truncated, so that the object itself does not vote.
    background = torch.stack(
        [(images - field).abs().sum(1).clamp(max=0.25).mean((1, 2)) for field in fields], 1
    ).argmin(1)
    field = fields[background]
    foreground = (((images - field).norm(dim=1) - 0.12) / 0.16).clamp(0, 1)
    shapes, centres, radii = _search(foreground)

    rows = torch.arange(len(images)).repeat_interleave(CANDIDATES)
    masks = _masks([SHAPES[i] for i in shapes.flatten()], centres.flatten(0, 1), radii.flatten())
    errors, colours, tones = _explain(images[rows], field[rows], masks, centres.flatten(0, 1), known)
    best = errors.view(-1, CANDIDATES).argmin(1) + torch.arange(len(images)) * CANDIDATES
    names_best = [SHAPES[i] for i in shapes.flatten()[best]]
    objects = _objects(colours[best], [known[i] for i in tones[best]], centres.flatten(0, 1)[best])
    fits = _refine(images, field, objects, names_best, centres.flatten(0, 1)[best], radii.flatten()[best])
    readings = [
        Reading(
            shape=shape,
            colour=list(COLOURS)[colours[i]],
            texture=known[tones[i]][0],
            position=_nearest_position(centre),
            background=names[b],
            centre=tuple(centre),
            radius=radius,
            error=error,
        )
        for i, b, shape, centre, radius, error in zip(
            best.tolist(),
            background.tolist(),
            names_best,
            fits.centres.tolist(),
            fits.radii.tolist(),
            fits.errors.tolist(),
            strict=True,
        )
    ]
    return readings, fits.masks


@cache
def _bank() -> tuple[Tensor, Tensor]:
    """Silhouettes at the origin of a GRID x GRID torus: their spectra [S, R, GRID, GRID // 2 + 1] and areas [S, R]."""
    shapes = [shape for shape in SHAPES for _ in RADII]
    centres = torch.full((len(shapes), 2), SIZE / 2)
    masks = F.avg_pool2d(_masks(shapes, centres, torch.tensor(RADII * len(SHAPES)).float())[:, None], 2)[:, 0]
    masks = masks.roll((-GRID // 2, -GRID // 2), (1, 2)).view(len(SHAPES), len(RADII), GRID, GRID)
    return torch.fft.rfft2(masks).conj(), masks.sum((2, 3))


def _search(foreground: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The CANDIDATES best shapes [B, C] by overlap, each with its centre [B, C, 2] (x, y) and radius [B, C] in pixels."""
    spectra, areas = _bank()
    coarse = F.avg_pool2d(foreground[:, None], 2)[:, 0]
    shared = torch.fft.irfft2(torch.fft.rfft2(coarse)[:, None, None] * spectra, s=(GRID, GRID))
    overlap = shared / (coarse.sum((1, 2))[:, None, None, None, None] + areas[..., None, None] - shared)
    peak = overlap.flatten(2).max(2)
    order = peak.values.topk(CANDIDATES, dim=1).indices
    index = peak.indices.gather(1, order)
    radius, y, x = index // GRID**2, index // GRID % GRID, index % GRID
    rows = torch.arange(len(foreground))[:, None]

    def at(dr: int, dy: int, dx: int) -> Tensor:
        return overlap[rows, order, (radius + dr).clamp(0, len(RADII) - 1), (y + dy) % GRID, (x + dx) % GRID]

    def vertex(before: Tensor, here: Tensor, after: Tensor) -> Tensor:
        """Where the parabola through three values peaks, in steps from the middle one."""
        return ((before - after) / (2 * (before - 2 * here + after)).clamp(max=-1e-6)).clamp(-0.5, 0.5)

    here = at(0, 0, 0)
    fine_x = x + vertex(at(0, 0, -1), here, at(0, 0, 1))
    fine_y = y + vertex(at(0, -1, 0), here, at(0, 1, 0))
    fine_radius = radius + vertex(at(-1, 0, 0), here, at(1, 0, 0))
    return order, torch.stack([fine_x, fine_y], -1) * 2, fine_radius * (RADII[1] - RADII[0]) + RADII[0]


def _offsets(centres: Tensor) -> tuple[Tensor, Tensor]:
    pixels = torch.arange(SIZE) + 0.5
    x = (pixels - centres[:, :1])[:, None, :].expand(-1, SIZE, -1)
    y = (pixels - centres[:, 1:])[:, :, None].expand(-1, -1, SIZE)
    return x, y


def _masks(shapes: Sequence[str], centres: Tensor, radii: Tensor) -> Tensor:
    x, y = _offsets(centres)
    masks = torch.empty_like(x)
    radii = radii[:, None, None]
    for shape in set(shapes):
        rows = [i for i, name in enumerate(shapes) if name == shape]
        distance = shape_distance(shape, x[rows] / radii[rows], y[rows] / radii[rows]) * radii[rows]
        masks[rows] = (0.5 - distance).clamp(0, 1)
    return masks


def _explain(
    images: Tensor, field: Tensor, masks: Tensor, centres: Tensor, known: Sequence[Tone]
) -> tuple[Tensor, Tensor, Tensor]:
    """The best colour and texture for each mask: squared errors [B], indices of COLOURS and `known` [B].

    With tone g of a texture, the squared error of colour c is |r|^2 - 2 c.(sum m g r) + |c|^2 sum (m g)^2, where r is
    the picture less the background's share.
    """
    palette = torch.tensor(list(COLOURS.values()))
    rest = images - field * (1 - masks)[:, None]
    x, y = _offsets(centres)
    tone = torch.stack([masks * _shade(x, y, *tone) for tone in known], 1).flatten(2)  # B x tones x pixels
    correlation = torch.bmm(tone, rest.flatten(2).transpose(1, 2))  # B x tones x 3
    energy = tone.square().sum(2)
    squared = energy[..., None] * palette.square().sum(1) - 2 * correlation @ palette.T
    best = squared.flatten(1).min(1)
    return best.values + rest.square().sum((1, 2, 3)), best.indices % len(palette), best.indices // len(palette)


def _shade(x: Tensor, y: Tensor, texture: str, dx: float, dy: float) -> Tensor:
    return 1 - (1 - SHADE) * texture_weight(texture, x - dx, y - dy)


def _objects(colours: Tensor, tones: Sequence[Tone], centres: Tensor) -> Tensor:
    """[B, 3, SIZE, SIZE], each colour and texture over the whole picture."""
    palette = torch.tensor(list(COLOURS.values()))
    x, y = _offsets(centres)
    shades = [_shade(x[i], y[i], *tone) for i, tone in enumerate(tones)]
    return palette[colours][:, :, None, None] * torch.stack(shades)[:, None]


@dataclass(frozen=True)
class _Fits:
    masks: Tensor  # [B, SIZE, SIZE]
    centres: Tensor  # [B, 2]
    radii: Tensor  # [B]
    errors: Tensor  # [B], root-mean-square


def _refine(
    images: Tensor, field: Tensor, objects: Tensor, shapes: Sequence[str], centres: Tensor, radii: Tensor
) -> _Fits:
    """Shifts and resizes the cut-out of `objects` to where it explains the picture best.

    The search before took everything unlike the background for the object; a halo around it is not.
    """
    place = torch.cat([centres, radii[:, None]], 1)
    directions = torch.cat([torch.zeros(1, 3), torch.eye(3), -torch.eye(3)])
    rows = torch.arange(len(images))
    # |field + m (object - field) - image|^2 = a + 2 m b + m^2 c at every pixel.
    change, missing = objects - field, field - images
    a, b, c = (missing * missing).sum((1, 2, 3)), (change * missing).sum(1)[:, None], (change * change).sum(1)[:, None]
    for move in MOVES:
        trials = place[:, None] + move * directions  # B x 7 x 3
        masks = _masks([s for s in shapes for _ in directions], trials[..., :2].flatten(0, 1), trials[..., 2].flatten())
        masks = masks.unflatten(0, (len(images), len(directions)))
        errors = a[:, None] + (masks * (2 * b + masks * c)).sum((2, 3))
        best = errors.argmin(1)
        place = trials[rows, best]
    return _Fits(
        masks[rows, best], place[:, :2], place[:, 2], (errors[rows, best] / images[0].numel()).clamp(min=0).sqrt()
    )


def _nearest_position(centre: Sequence[float]) -> str:
    return min(POSITIONS, key=lambda name: sum((a - b) ** 2 for a, b in zip(POSITIONS[name][0], centre, strict=True)))
