"""docs/guided_inversion.md: inversion with guidance; how exactly it is sampled back, and how far its start is from noise."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from lab.evidence import intervals
from lab.evidence.bars import Bars
from lab.evidence.edits import said
from lab.evidence.models import World
from lab.evidence.pages import opening, save_page, table
from lab.evidence.scores import psnr
from lab.world.render import render
from lab.world.scenes import sample_scenes
from palimpsest.nodes.inversion.ddim import CONVERGED
from torch import Tensor
from tqdm import tqdm

PART = "guided_inversion"
SCENES, STEPS = 20, 20
SEED = 200
GUIDANCES = (1.0, 3.0, 7.5)
EXACT_BAR = 60.0  # dB, the worst picture at any guidance


@dataclass(frozen=True)
class Way:
    """A method of inversion, and whether sampling retraces it exactly."""

    label: str
    method: str
    exact: bool = False


DDIM = Way("`ddim`", "ddim")
FIXED_POINT = Way("`fixed_point`, 5 iterations", "fixed_point")
EXACT = Way("`ddim`, Exact Retracing", "ddim", exact=True)
WAYS = (DDIM, FIXED_POINT, EXACT)


@dataclass(frozen=True)
class RoundTrip:
    """psnr [N]: dB of each picture sampled back. spread [N]: standard deviation of its start over that of noise.

    missed: share of the steps in which fixed_point did not converge.
    """

    psnr: Tensor
    spread: Tensor
    missed: float


def round_trips(world: World, scenes: int) -> dict[tuple[float, Way], RoundTrip]:
    held_out = sample_scenes(scenes, SEED, split="held_out")
    latent = world.encode(render(held_out).pictures)
    positive, sigmas = world.prompts([*map(said, held_out)]), world.sigmas(STEPS)
    plain, found = world.decode(latent), {}
    for cfg, way in tqdm([(cfg, way) for cfg in GUIDANCES for way in WAYS], desc="round trips"):
        trajectory, noise = world.invert(latent, positive, sigmas, way.method, cfg=cfg)
        sampler = world.retracing(trajectory) if way.exact else world
        again = world.decode(sampler.sample(noise, positive, cfg, sigmas, latent))
        spread = trajectory.start.flatten(1).std(dim=1) / float(sigmas[0] ** 2 + 1) ** 0.5
        missed = float((trajectory.residuals > CONVERGED).float().mean())
        found[cfg, way] = RoundTrip(psnr(again, plain), spread, missed)
    return found


@torch.inference_mode()
def write(docs: Path, weights: Path, scenes: int = SCENES) -> list[str]:
    """Writes the page; returns the goals that were missed."""
    trips = round_trips(World.load(weights), scenes)
    bars = Bars(PART)
    worst = min(float(trip.psnr.min()) for (_, way), trip in trips.items() if way == EXACT)
    name = "worst picture retraced exactly, any guidance"
    bars.add(name, f"at least {EXACT_BAR:.0f} dB", f"{worst:.1f} dB", worst >= EXACT_BAR)
    rows = [
        (
            f"{cfg:g}",
            way.label,
            intervals.mean(trip.psnr, 1),
            f"{float(trip.psnr.min()):.1f} to {float(trip.psnr.max()):.1f}",
            intervals.mean(trip.spread),
            f"{100 * trip.missed:.0f} %" if way == FIXED_POINT else "",
        )
        for (cfg, way), trip in trips.items()
    ]
    headings = ["guidance", "inversion", "PSNR, dB", "lowest to highest", "spread of the start", "not converged"]
    lines = [
        *opening("Inversion with guidance", PART),
        *bars.table(),
        f"{scenes} held-out scenes, {STEPS} steps of `ddim_uniform`. DDIM Invert inverts each picture with its caption, an empty negative prompt and a "
        "guidance. ComfyUI's `euler` and CFG Guider then sample from its `noise` at the same guidance. PSNR: against the picture that the autoencoder "
        "alone reconstructs; 120 dB is the largest that this page can show. Spread of the start: its standard deviation divided by that of noise, so 1 is "
        "that of noise. Not converged: the share of the steps that `fixed_point` could not solve. Means have 95 % intervals by bootstrap over the "
        "pictures. Edits at such guidances are on [the page of null-text](null_text.md), as `aligned`.",
        "",
        *table(headings, rows),
    ]
    save_page(docs, PART, lines)
    return bars.missed
