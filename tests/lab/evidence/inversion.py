"""docs/inversion.md: how exactly sampling retraces an inversion, for every method, and what it costs."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import torch
from lab.evidence.convergence import Convergence, measure_convergence
from lab.evidence.sheet import Sheet
from lab.evidence.world import World, psnr_each, relative_errors
from lab.toy.photos import held_out_photo
from lab.toy.scenes import caption, render, sample_scenes
from palimpsest.nodes.diffusion.trajectory import Trajectory
from torch import Tensor
from tqdm import tqdm

matplotlib.use("agg")
from matplotlib import pyplot as plt

SCENES = 16
PHOTO = SCENES  # its row in the batch, after the scenes
STEPS = (20, 50)
ITERATIONS = (1, 2, 3, 5, 10)
DEFAULT = ("fixed_point", 5)
PHOTO_CAPTION = "a photo"
PROBED = (19, 18, 17, 14, 10, 4, 0)  # steps of the shorter schedule whose convergence is shown, the last one first
SHOWN = (1, 2, 3, 5, 8)  # evaluations after which it is shown

# Steps -> largest relative error of the latent after the round trip, with DEFAULT.
ERROR_BARS = {20: 1e-2, 50: 2e-3}
PHOTO_BAR = 24.0  # dB, after encode, invert, sample, decode

Key = tuple[str, int, str, int]  # method, iterations, "empty" or "caption", steps


@dataclass(frozen=True)
class RoundTrip:
    evaluations: float  # of the model, for each step of the inversion
    residual: float  # the trajectory's own worst; NaN when the method measures none
    errors: Tensor  # [T+1, B] relative distance of the path sampled from the path inverted
    images: Tensor  # [B, 3, H, W] decoded from the end of the path sampled
    trajectory: Trajectory


def round_trip(world: World, latent: Tensor, texts: list[str], steps: int, method: str, iterations: int) -> RoundTrip:
    counted, calls = world.counting()
    sigmas, positive = world.sigmas(steps), world.prompts(texts)
    trajectory, noise = counted.invert(latent, positive, sigmas, method, iterations)
    path = world.retrace(noise, positive, sigmas, latent)
    return RoundTrip(
        evaluations=len(calls) / steps,
        residual=float(trajectory.residuals.max()),
        errors=relative_errors(path.latents, trajectory.latents),
        images=world.decode(world.model.model.process_latent_out(path.latents[-1])),
        trajectory=trajectory,
    )


def pictures() -> tuple[Tensor, dict[str, list[str]]]:
    """Held-out scenes and a photograph; and what they are inverted with."""
    scenes = sample_scenes(SCENES, 200, split="held_out")
    images = torch.cat([render(scenes)[0], held_out_photo()])
    return images, {"empty": [""], "caption": [*map(caption, scenes), PHOTO_CAPTION]}


def round_trips(
    world: World, latent: Tensor, texts: dict[str, list[str]], schedules: Sequence[int]
) -> dict[Key, RoundTrip]:
    plan: list[Key] = []
    for steps in schedules:
        plan += [("ddim", 1, kind, steps) for kind in texts] + [("euler", 1, kind, steps) for kind in texts]
        plan += [("fixed_point", n, "empty", steps) for n in ITERATIONS] + [(*DEFAULT, "caption", steps)]
    return {key: round_trip(world, latent, texts[key[2]], key[3], *key[:2]) for key in tqdm(plan, desc="round trips")}


@torch.inference_mode()
def write(docs: Path) -> list[str]:
    """Write the page and its pictures; returns the bars that were missed."""
    world = World.load()
    images, texts = pictures()
    latent = world.encode(images)

    trips = round_trips(world, latent, texts, STEPS)
    exact = trips["fixed_point", max(ITERATIONS), "empty", min(STEPS)].trajectory
    convergence = measure_convergence(world, exact, PROBED, evaluations=max(SHOWN))

    vae = world.decode(latent)
    missed, bars = judge_bars(trips, images)
    page = "\n".join(
        [
            *introduction(images, vae),
            *bars,
            *round_trip_section(trips, images, vae),
            *convergence_table(convergence),
        ]
    )
    (docs / "inversion.md").write_text(page + "\n")
    print(page)
    error_curves(trips).savefig(docs / "inversion_error.png", dpi=110)
    picture_sheet(trips, images, vae, texts["caption"]).save(docs / "inversion.webp")
    return missed


def judge_bars(trips: dict[Key, RoundTrip], images: Tensor) -> tuple[list[str], list[str]]:
    """The bars missed, and the lines that say so or not."""
    rows: list[tuple[str, str, str, bool]] = []
    for steps, bar in ERROR_BARS.items():
        for kind in ("empty", "caption"):
            trip = trips[(*DEFAULT, kind, steps)]
            error = float(trip.errors[-1].max())
            name = f"relative error at the end, {steps} steps, {DEFAULT[1]} iterations, {kind} prompt, worst picture"
            rows.append((name, f"at most {bar:.0e}", f"{error:.1e}", error <= bar))
        errors = [float(trips["fixed_point", n, "empty", steps].errors[-1].mean()) for n in ITERATIONS]
        falling = all(b < a for a, b in itertools.pairwise(errors))
        rows.append(
            (f"the mean error falls as `iterations` rises, {steps} steps", "yes", "yes" if falling else "no", falling)
        )
    for steps in STEPS:
        photo = float(psnr_each(trips[(*DEFAULT, "empty", steps)].images, images)[PHOTO])
        name = f"PSNR of the held-out photograph after encoding, inverting, sampling and decoding, {steps} steps"
        rows.append((name, f"at least {PHOTO_BAR:.0f} dB", f"{photo:.2f} dB", photo >= PHOTO_BAR))
    lines = [
        "| goal | required | measured | |",
        "|---|---|---|---|",
        *(f"| {name} | {wanted} | {got} | {'met' if met else '**missed**'} |" for name, wanted, got, met in rows),
        "",
    ]
    return [f"inversion: {name}: {wanted}, measured {got}" for name, wanted, got, met in rows if not met], lines


def introduction(images: Tensor, vae: Tensor) -> list[str]:
    own = psnr_each(vae, images)
    return [
        "# DDIM Invert: measured results",
        "",
        "All figures were measured on the CPU with the [toy model](toy.md), a small model trained on drawn scenes. "
        "They are not figures of Stable Diffusion: full-size models can behave differently. `make evidence "
        "PART=inversion` measures them again and writes this page.",
        "",
        f"{SCENES} held-out scenes and one held-out photograph, 128 x 128 pixels each, are encoded, inverted by "
        "`PAL_DDIMInvert` on the `ddim_uniform` schedule, sampled from its `noise` by ComfyUI's `euler` at guidance "
        "1 with the same prompt, and decoded. The prompt is empty, or it is the caption of the picture "
        f"(`{PHOTO_CAPTION}` for the photograph). The relative error is the distance between the sampled latent and the "
        "inverted one, divided by the norm of the inverted one. `fixed_point` makes at most `iterations` model "
        "calls per step on average: a difficult step can use calls that easier steps have left.",
        "",
        f"The autoencoder alone, without any inversion, reaches {own[:PHOTO].mean():.2f} dB on the scenes and {own[PHOTO]:.2f} "
        "dB on the photograph. That is the limit for the last column, the PSNR to the picture.",
        "",
    ]


def round_trip_section(trips: dict[Key, RoundTrip], images: Tensor, vae: Tensor) -> list[str]:
    return [
        "## Round trip",
        "",
        "Error on the path: the mean over all pictures, at the worst step. Error at the end: the error of the final "
        "latent, as the mean over all pictures and for the worst one. Residual: the figure that the trajectory "
        "reports, which is the error of one sampling step, at the worst step of the worst picture. PSNR: the mean "
        "of the scenes / the photograph.",
        "",
        *table(trips, images, vae),
        "",
        "![Relative error along the path](inversion_error.png)",
        "",
        "![Pictures after the round trip](inversion.webp)",
        "",
    ]


def table(trips: dict[Key, RoundTrip], images: Tensor, vae: Tensor) -> list[str]:
    lines = [
        "| steps | method | iterations | prompt | model calls per step | residual | error on the path | error at "
        "the end, mean | worst | PSNR to the autoencoder's picture | PSNR to the picture |",
        "|---" * 11 + "|",
    ]
    for (method, iterations, kind, steps), trip in sorted(trips.items(), key=lambda item: item[0][3]):
        psnrs = [psnr_each(trip.images, reference) for reference in (vae, images)]
        cells = [
            str(steps),
            f"`{method}`",
            str(iterations) if method == "fixed_point" else "",
            kind,
            f"{trip.evaluations:.2f}",
            "" if math.isnan(trip.residual) else f"{trip.residual:.1e}",
            f"{float(trip.errors.mean(1).max()):.1e}",
            f"{float(trip.errors[-1].mean()):.1e}",
            f"{float(trip.errors[-1].max()):.1e}",
            *(f"{float(p[:PHOTO].mean()):.2f} / {float(p[PHOTO]):.2f} dB" for p in psnrs),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def convergence_table(found: list[Convergence]) -> list[str]:
    lines = [
        "## Plain iteration and Anderson mixing",
        "",
        "For every step, an inversion solves the equation y = x + d(y) (sigma_high - sigma_low). Plain iteration "
        "converges slowly where sigma changes by a large factor in one step, which is at the end of the schedule, "
        "near the picture. `fixed_point` therefore combines its last evaluations (Anderson mixing, depth 3). The "
        f"table has the relative residual that the n-th evaluation finds, for the worst picture and {min(STEPS)} "
        "steps. Both ways begin with the same first guess as an inversion: the slope of the step before.",
        "",
        f"| sigma | {' | '.join(f'plain {n}' for n in SHOWN)} | {' | '.join(f'Anderson {n}' for n in SHOWN)} |",
        "|---" * (1 + 2 * len(SHOWN)) + "|",
    ]
    for c in found:
        cells = [f"{curve[n - 1]:.1e}" for curve in (c.plain, c.anderson) for n in SHOWN]
        lines.append(f"| {c.low:.3g} to {c.high:.3g} | {' | '.join(cells)} |")
    return lines


def error_curves(trips: dict[Key, RoundTrip]) -> plt.Figure:
    figure, axes = plt.subplots(1, len(STEPS), figsize=(11, 4.2), sharey=True, layout="constrained")
    for ax, steps in zip(axes, STEPS, strict=True):
        for (method, iterations, kind, trip_steps), trip in trips.items():
            if trip_steps == steps and kind == "empty":
                label = f"{method} {iterations}" if method == "fixed_point" else method
                style = "-" if method == "fixed_point" else "--"
                ax.semilogy(trip.errors.mean(1).clamp_min(1e-8), style, label=label)
        ax.axhline(ERROR_BARS[steps], color="#999", linewidth=1, linestyle=":")
        ax.set_title(f"{steps} steps (dotted: the bar for the end)")
        ax.set_xlabel("sampling step, from noise to the picture")
        ax.set_ylim(bottom=1e-8)
        ax.grid(alpha=0.25)
    axes[0].set_ylabel("relative error of the latent")
    axes[-1].legend(fontsize=8, loc="lower right")
    return figure


def picture_sheet(trips: dict[Key, RoundTrip], images: Tensor, vae: Tensor, captions: list[str]) -> Sheet:
    shown = [("ddim", 1), ("euler", 1), ("fixed_point", 1), ("fixed_point", 3), ("fixed_point", 5)]
    steps = min(STEPS)
    sheet = Sheet(f"Inverted and sampled back, {steps} steps, empty text. Toy model.")
    for i in (0, 1, 2, PHOTO):
        row = [(images[i], "a photograph" if i == PHOTO else captions[i])]
        row.append((vae[i], f"autoencoder\n{float(psnr_each(vae, images)[i]):.1f} dB"))
        for method, n in shown:
            result = trips[method, n, "empty", steps].images
            name = f"{method}, {n} iterations" if method == "fixed_point" else method
            row.append((result[i], f"{name}\n{float(psnr_each(result, images)[i]):.1f} dB"))
        sheet.add(row)
    return sheet
