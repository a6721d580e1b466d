"""docs/guided_inversion.md: inversion with guidance; how exactly it is sampled back, and how far its start is from noise."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from lab.evidence.bars import Bars
from lab.evidence.world import World, psnr_each
from lab.toy.photos import held_out_photo
from lab.toy.scenes import caption, render, sample_scenes
from palimpsest.nodes.inversion.ddim import CONVERGED
from palimpsest.nodes.retracing.nodes import ExactRetracing
from torch import Tensor
from tqdm import tqdm

SCENES, STEPS = 7, 20
PHOTO_CAPTION = "a photo"
GUIDANCES = (1.0, 3.0, 5.0, 7.5)
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


def round_trips(world: World) -> dict[tuple[float, Way], RoundTrip]:
    scenes = sample_scenes(SCENES, 200, split="held_out")
    latent = world.encode(torch.cat([render(scenes)[0], held_out_photo()]))
    positive, sigmas = world.prompts([*map(caption, scenes), PHOTO_CAPTION]), world.sigmas(STEPS)
    plain, found = world.decode(latent), {}
    for cfg, way in tqdm([(cfg, way) for cfg in GUIDANCES for way in WAYS], desc="round trips"):
        trajectory, noise = world.invert(latent, positive, sigmas, way.method, cfg=cfg)
        sampler = world.with_model(ExactRetracing.execute(world.model, trajectory)[0]) if way.exact else world
        again = world.decode(sampler.sample(noise, positive, cfg, sigmas, latent))
        spread = trajectory.start.flatten(1).std(dim=1) / float(sigmas[0] ** 2 + 1) ** 0.5
        missed = float((trajectory.residuals > CONVERGED).float().mean())
        found[cfg, way] = RoundTrip(psnr_each(again, plain), spread, missed)
    return found


@torch.inference_mode()
def write(docs: Path) -> list[str]:
    """Write the page; returns the goals that were missed."""
    trips = round_trips(World.load())
    bars = Bars("guided_inversion")
    worst = min(float(trip.psnr.min()) for (_, way), trip in trips.items() if way == EXACT)
    bars.add(
        "worst picture retraced exactly, any guidance",
        f"at least {EXACT_BAR:.0f} dB",
        f"{worst:.1f} dB",
        worst >= EXACT_BAR,
    )
    lines = page(trips, bars)
    (docs / "guided_inversion.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))
    return bars.missed


def page(trips: dict[tuple[float, Way], RoundTrip], bars: Bars) -> list[str]:
    return [
        "# Inversion with guidance: measured results",
        "",
        "All figures were measured on the CPU with the [toy model](toy.md), a small model trained on drawn scenes. They are not figures of Stable "
        "Diffusion: full-size models can behave differently. `make evidence PART=guided_inversion` measures them again and writes this page.",
        "",
        *bars.table(),
        f"{SCENES} held-out scenes and the held-out photograph, 128x128, {STEPS} steps of `ddim_uniform`. DDIM Invert inverts each picture with its "
        f'caption ("{PHOTO_CAPTION}" for the photograph), an empty negative prompt and a guidance. ComfyUI\'s `euler` and CFG Guider then sample '
        "from its `noise` at the same guidance. PSNR: against the picture that the autoencoder alone reconstructs; 120 dB is the largest that this "
        "page can show. Spread of the start: its standard deviation divided by that of noise, so 1 is that of noise. Not converged: the share of the "
        "steps that `fixed_point` could not solve. Edits at these guidances were not measured.",
        "",
        "| guidance | inversion | PSNR, median | lowest to highest | spread of the start, median | not converged |",
        "|---|---|---|---|---|---|",
        *(
            f"| {cfg:g} | {way.label} | {float(trip.psnr.quantile(0.5)):.1f} dB | {float(trip.psnr.min()):.1f} to {float(trip.psnr.max()):.1f} | "
            f"{float(trip.spread.quantile(0.5)):.2f} | {f'{100 * trip.missed:.0f} %' if way == FIXED_POINT else ''} |"
            for (cfg, way), trip in trips.items()
        ),
    ]
