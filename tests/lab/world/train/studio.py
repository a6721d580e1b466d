"""Latents of the studio's scenes, and pictures of single things, for the trainings of the expert and the subject model."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import comfy.latent_formats
import numpy as np
import torch
from lab.world import studio
from lab.world.kinds import EVERY_COLOUR
from lab.world.pack.general import new_vae, under
from lab.world.scenes import Scene, Thing
from lab.world.train import pool
from lab.world.train.loop import Run, on
from safetensors.torch import load_file
from torch import Tensor
from tqdm import tqdm

SCENES, SCENES_CUDA = 4096, 16384
VIEWS = 6  # pictures of each individual
COLOURS = tuple(EVERY_COLOUR)


@dataclass(frozen=True)
class Studio:
    """N scenes; `colours` are of each cell, pool.NOTHING where no thing is."""

    scenes: Sequence[Scene]
    latents: Tensor  # half [N, 4, 32, 32], in the model's space
    colours: Tensor  # bytes [N, CELLS, CELLS], numbers in COLOURS

    def __len__(self) -> int:
        return len(self.scenes)


def studio_pool(run: Run, autoencoder: Path) -> Studio:
    """What the cache has of it is read, as long as it comes from the same autoencoder."""
    count = SCENES_CUDA if run.is_cuda else SCENES
    state = hashlib.sha256(autoencoder.read_bytes()).hexdigest()[:12]
    folder = run.cache / f"studio-{state}"
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{number:04}.pt" for number in range(-(-count // pool.CHUNK))]
    have = next((number for number, file in enumerate(files) if not file.exists()), len(files))
    vae = new_vae()
    vae.load_state_dict(under("", load_file(autoencoder)))
    vae = vae.to(run.device, memory_format=torch.channels_last)
    for file, chunk in zip(files[have:], pool.drawn(run, have, len(files), studio.drawn), strict=True):
        partial = file.with_suffix(".partial")
        torch.save(_encoded(run, vae, *chunk), partial)
        partial.replace(file)
    parts = [torch.load(file, weights_only=True) for file in files]
    scenes = [scene for n in range(len(files)) for scene in studio.studio_scenes(pool.CHUNK, (run.seed, n))]
    return Studio(scenes, *(torch.cat([part[name] for part in parts]).to(run.device) for name in parts[0]))


@torch.no_grad()
def _encoded(
    run: Run, vae: torch.nn.Module, pictures: np.ndarray, things: np.ndarray, scenes: list[Scene]
) -> dict[str, Tensor]:
    images = torch.from_numpy(pictures).movedim(-1, 1).float() / 127.5 - 1
    with run.precision():
        latents = torch.cat([vae.encode(part.to(run.device)).float().cpu() for part in images.split(16)])
    shown = [[COLOURS.index(thing.colour) for thing in scene.things] for scene in scenes]
    table = torch.tensor([[pool.NOTHING, *some, *[pool.NOTHING] * (2 - len(some))] for some in shown]).byte()
    cells = torch.from_numpy(things).long()
    colours = table.gather(1, cells.flatten(1)).view_as(cells)
    return {"latents": comfy.latent_formats.SD15().process_in(latents).half(), "colours": colours}


class Album:
    """VIEWS pictures of every individual."""

    def __init__(self, run: Run) -> None:
        self.individuals = studio.individuals()
        self.numbers = {(thing.kind, thing.colour): number for number, thing in enumerate(self.individuals)}
        chance = np.random.default_rng((run.seed, 7))
        parts = self.individuals * VIEWS
        starts = tqdm(range(0, len(parts), pool.CHUNK), desc="drawing single things", unit_scale=pool.CHUNK)
        views = [(studio.cut_out(parts[i : i + pool.CHUNK], chance) * 255).round().byte() for i in starts]
        self.views = torch.cat(views).to(run.device)

    def pictures(self, things: Sequence[Thing], chance: torch.Generator) -> Tensor:
        """[N, 3, REFERENCE, REFERENCE] in 0..1, of any of their views."""
        numbers = torch.tensor([self.numbers[thing.kind, thing.colour] for thing in things])
        view = torch.randint(VIEWS, (len(numbers),), generator=chance)
        cut = self.views[(view * len(self.individuals) + numbers).to(self.views.device)].float() / 255
        return studio.before_backdrops(cut, on(cut.device, chance))
