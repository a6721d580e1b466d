"""Rendered scenes to train on: pictures, and what networks see of them with captions and facts, kept in the cache."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, fields
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import comfy.latent_formats
import numpy as np
import torch
import torch.nn.functional as F
from lab.world import stream
from lab.world.pack.general import new_vae, under
from lab.world.pack.unclip import SEEN
from lab.world.scenes import NAMES, PALETTE, PLACES, Scene
from lab.world.styles import STYLES
from lab.world.train.loop import Run
from lab.world.train.text import COLUMNS, token_ids
from safetensors.torch import load_file
from torch import Tensor
from tqdm import tqdm

CHUNK = 64  # scenes that are rendered at once
FILE = 8  # chunks of a file of the cache
WORDINGS = 8  # captions of each scene
TOLD = 24  # columns of a caption that say something: the others are all the end token
NOTHING = 255
Draw = Callable[..., tuple]  # as stream.drawn


@dataclass(frozen=True)
class Pool:
    """What N scenes show; all but latents are bytes."""

    latents: Tensor  # half [N, 4, 32, 32], in the model's space; in a picture_pool, bytes [N, 3, SEEN, SEEN]
    captions: Tensor  # [N, WORDINGS, TOLD], rows of the vocabulary
    things: Tensor  # [N, CELLS, CELLS], as stream.drawn maps them
    kinds: Tensor  # [N, 2]; NOTHING if there is no second thing
    colours: Tensor  # [N, 2]
    styles: Tensor  # [N]
    backgrounds: Tensor  # [N]

    def to(self, device: torch.device) -> Pool:
        return Pool(*(part.to(device) for part in self.parts()))

    def rows(self, rows: Tensor) -> Pool:
        return Pool(*(part[rows] for part in self.parts()))

    def parts(self) -> tuple[Tensor, ...]:
        return tuple(getattr(self, field.name) for field in fields(Pool))


def drawn(run: Run, first: int, count: int, draw: Draw = stream.drawn) -> Iterator[tuple]:
    """Chunks of the numbers from `first` to `count`, by as many processes as the run has threads."""
    numbers = range(first, count)
    make = partial(draw, seed=run.seed, size=CHUNK)
    progress = partial(tqdm, desc="drawing", initial=first, total=count, unit_scale=CHUNK, mininterval=5.0)
    if run.threads == 1:
        yield from progress(map(make, numbers))
    elif numbers:
        with ProcessPoolExecutor(run.threads, get_context("spawn"), torch.set_num_threads, (1,)) as processes:
            yield from progress(processes.map(make, numbers))


def pictures_of(run: Run, count: int) -> Tensor:
    """uint8 [count, SIZE, SIZE, 3]."""
    return torch.cat([torch.from_numpy(pictures) for pictures, _, _ in drawn(run, 0, -(-count // CHUNK))])[:count]


def latent_pool(run: Run, count: int, words: Tensor, autoencoder: Path) -> Pool:
    """Of `count` scenes. What the cache has of them is read, as long as it comes from the same autoencoder and the same words."""
    vae = new_vae()
    vae.load_state_dict(under("", load_file(autoencoder)))
    vae = vae.to(run.device, memory_format=torch.channels_last)

    def encode(pictures: Tensor) -> Tensor:
        images = pictures.float() / 127.5 - 1
        with run.precision():
            parts = [vae.encode(part.to(run.device)).float().cpu() for part in images.split(16)]
        return comfy.latent_formats.SD15().process_in(torch.cat(parts)).half()

    return _kept(run, "latents", autoencoder.read_bytes(), count, words, encode)


def picture_pool(run: Run, count: int, words: Tensor) -> Pool:
    """Of `count` scenes, with pictures of SEEN pixels in bytes in the place of latents."""
    return _kept(run, "pictures", b"", count, words, lambda pictures: shrunk(pictures, SEEN))


def shrunk(pictures: Tensor, size: int) -> Tensor:
    """Square pictures in bytes [B, 3, *, *] to [B, 3, size, size], as core's CLIP Vision Encode makes them smaller."""
    small = F.interpolate(pictures.float(), (size, size), mode="bicubic", antialias=True)
    return small.clamp(0, 255).round().byte()


def _kept(run: Run, name: str, state: bytes, count: int, words: Tensor, encode: Callable[[Tensor], Tensor]) -> Pool:
    """`encode` makes what a network sees of pictures in bytes; `state` is what it depends on."""
    state = hashlib.sha256(state + words.numpy().tobytes()).hexdigest()[:12]
    folder = run.cache / f"{name}-{state}"
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{number:04}.pt" for number in range(-(-count // (CHUNK * FILE)))]
    have = next((number for number, file in enumerate(files) if not file.exists()), len(files))
    parts: list[Pool] = []
    told_scenes = partial(stream.told, wordings=WORDINGS)
    for number, chunk in enumerate(drawn(run, have * FILE, len(files) * FILE, told_scenes), have * FILE):
        parts.append(_encoded(encode, words, *chunk))
        if len(parts) == FILE:
            _save(_joined(parts), files[number // FILE])
            parts.clear()
    pools = [Pool(**torch.load(file, weights_only=True)) for file in files]
    return _joined(pools).rows(torch.arange(count))


@torch.no_grad()
def _encoded(
    encode: Callable[[Tensor], Tensor],
    words: Tensor,
    pictures: np.ndarray,
    things: np.ndarray,
    scenes: list[Scene],
    captions: list[list[str]],
) -> Pool:
    ids = [[token_ids(text)[:TOLD] for text in texts] for texts in captions]
    pairs = [(*scene.things, *[None] * (2 - len(scene.things))) for scene in scenes]
    return Pool(
        latents=encode(torch.from_numpy(pictures).movedim(-1, 1)),
        captions=torch.searchsorted(words, torch.tensor(ids)).byte(),
        things=torch.from_numpy(things),
        kinds=torch.tensor([[NAMES.index(t.kind) if t else NOTHING for t in pair] for pair in pairs]).byte(),
        colours=torch.tensor([[PALETTE.index(t.colour) if t else NOTHING for t in pair] for pair in pairs]).byte(),
        styles=torch.tensor([STYLES.index(scene.style) for scene in scenes]).byte(),
        backgrounds=torch.tensor([PLACES.index(scene.background) for scene in scenes]).byte(),
    )


def _joined(pools: list[Pool]) -> Pool:
    return Pool(*(torch.cat([getattr(pool, field.name) for pool in pools]) for field in fields(Pool)))


def _save(pool: Pool, file: Path) -> None:
    partial_file = file.with_suffix(".partial")
    torch.save({field.name: getattr(pool, field.name) for field in fields(Pool)}, partial_file)
    partial_file.replace(file)


def chosen(pool: Pool, count: int, chance: torch.Generator, empty: float, end: int) -> tuple[Pool, Tensor]:
    """`count` random scenes, and a caption of each as rows of the vocabulary [count, COLUMNS]; a share `empty` of them says nothing.

    `end`: the row of the end token.
    """
    some = pool.rows(torch.randint(len(pool.latents), (count,), generator=chance).to(pool.latents.device))
    return some, F.pad(told(some, chance, empty, end), (0, COLUMNS - TOLD), value=end)


def told(shown: Pool, chance: torch.Generator, empty: float, end: int) -> Tensor:
    """One of the captions of each scene, as rows of the vocabulary [B, TOLD]."""
    device, count = shown.latents.device, len(shown.latents)
    wording = torch.randint(WORDINGS, (count,), generator=chance).to(device)
    silent = (torch.rand(count, generator=chance) < empty).to(device)
    rows = shown.captions[torch.arange(count, device=device), wording].long()
    rows[:, 1:][silent] = end
    return rows
