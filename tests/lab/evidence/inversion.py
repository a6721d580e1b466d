"""docs/inversion.md: how exactly sampling retraces an inversion, for every method, and what it costs."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from pathlib import Path

import comfy_extras.nodes_custom_sampler as core
import matplotlib
import torch
from lab.evidence import intervals
from lab.evidence.bars import Bars
from lab.evidence.convergence import Convergence, measure_convergence
from lab.evidence.edits import said
from lab.evidence.models import World
from lab.evidence.pages import opening, save_page
from lab.evidence.pages import table as page_table
from lab.evidence.scores import psnr
from lab.evidence.sheet import Sheet
from lab.world.render import render
from lab.world.scenes import sample_scenes
from palimpsest.nodes.diffusion.conditioning import Conditioning
from palimpsest.nodes.diffusion.trajectory import Trajectory
from palimpsest.nodes.inversion.nodes import SampleTrajectory
from palimpsest.nodes.inversion.noise import TrajectoryNoise
from torch import Tensor
from tqdm import tqdm

matplotlib.use("agg")
from matplotlib import pyplot as plt

PART = "inversion"
SCENES, STEPS = 20, 20
SEED = 200
ITERATIONS = (1, 2, 3, 5)
DEFAULT = ("fixed_point", 5)
PROBED = (19, 18, 17, 14, 10, 4, 0)  # steps whose convergence is shown, the last one first
EVALUATIONS = (1, 2, 3, 5, 8)  # after which it is shown
SHOWN = (("ddim", 1), ("euler", 1), ("fixed_point", 1), ("fixed_point", 3), ("fixed_point", 5))
SHOWN_SCENES = 4
ERROR_BAR = 1e-3  # the largest relative error of the latent after the round trip, with DEFAULT

Key = tuple[str, int, str]  # method, iterations, "empty" or "caption"


@dataclass(frozen=True)
class RoundTrip:
    evaluations: float  # of the model, for each step of the inversion
    residual: float  # the trajectory's own worst; NaN when the method measures none
    errors: Tensor  # [T+1, B] relative distance of the path sampled from the path inverted
    pictures: Tensor  # [B, 3, H, W] decoded from the end of the path sampled
    trajectory: Trajectory


@dataclass(frozen=True)
class Measured:
    pictures: Tensor
    decoded: Tensor  # the pictures through the autoencoder
    captions: list[str]
    trips: dict[Key, RoundTrip]


def retrace(world: World, noise: TrajectoryNoise, positive: Conditioning, sigmas: Tensor, latent: Tensor) -> Trajectory:
    """The path that euler takes from an inversion's noise at guidance 1."""
    guider, euler = core.BasicGuider.execute(world.model, positive)[0], core.KSamplerSelect.execute("euler")[0]
    return SampleTrajectory.execute(noise, guider, euler, sigmas, {"samples": latent})[1]


def round_trip(world: World, latent: Tensor, texts: list[str], method: str, iterations: int) -> RoundTrip:
    counted, calls = world.counting()
    sigmas, positive = world.sigmas(STEPS), world.prompts(texts)
    trajectory, noise = counted.invert(latent, positive, sigmas, method, iterations)
    path = retrace(world, noise, positive, sigmas, latent)
    return RoundTrip(
        evaluations=len(calls) / STEPS,
        residual=float(trajectory.residuals.max()),
        errors=relative_errors(path.latents, trajectory.latents),
        pictures=world.decode(world.model.model.process_latent_out(path.latents[-1])),
        trajectory=trajectory,
    )


def relative_errors(a: Tensor, b: Tensor) -> Tensor:
    """|a - b| / |b| over the last three dimensions of latents [..., C, H, W]."""
    difference, size = (x.flatten(-3).norm(dim=-1) for x in (a - b, b))
    return difference / size


def measure(world: World, scenes: int) -> Measured:
    held_out = sample_scenes(scenes, SEED, split="held_out")
    pictures, captions = render(held_out).pictures, [*map(said, held_out)]
    latent, texts = world.encode(pictures), {"empty": [""], "caption": captions}
    plan: list[Key] = [(method, 1, kind) for method in ("ddim", "euler") for kind in texts]
    plan += [*((DEFAULT[0], n, "empty") for n in ITERATIONS), (*DEFAULT, "caption")]
    trips = {key: round_trip(world, latent, texts[key[2]], *key[:2]) for key in tqdm(plan, desc="round trips")}
    return Measured(pictures, world.decode(latent), captions, trips)


@torch.inference_mode()
def write(docs: Path, weights: Path, scenes: int = SCENES) -> list[str]:
    """Writes the page and its pictures; returns the bars that were missed."""
    world = World.load(weights)
    measured = measure(world, scenes)
    exact = measured.trips[DEFAULT[0], max(ITERATIONS), "empty"].trajectory
    convergence = measure_convergence(world, exact, PROBED, evaluations=max(EVALUATIONS))
    bars = judge_bars(measured.trips)
    lines = [
        *opening("DDIM Invert", PART),
        f"{scenes} held-out scenes, 128 x 128 pixels each, are encoded, inverted by `PAL_DDIMInvert` in {STEPS} steps of the `ddim_uniform` schedule, "
        "sampled from its `noise` by ComfyUI's `euler` at guidance 1 with the same prompt, and decoded. The prompt is empty, or it is the picture's "
        "caption. The relative error is the distance between the sampled latent and the inverted one, divided by the norm of the inverted one. "
        "`fixed_point` makes at most `iterations` model calls per step on average: a difficult step can use calls that easier steps have left.",
        "",
        f"The autoencoder alone, without any inversion, reaches {intervals.mean(psnr(measured.decoded, measured.pictures), 1)} dB. Means have 95 % "
        "intervals by bootstrap over the pictures.",
        "",
        *bars.table(),
        "## Round trip",
        "",
        *table(measured),
        "![Relative error along the path](inversion_error.png)",
        "",
        "![Pictures after the round trip](inversion.webp)",
        "",
        *convergence_table(convergence),
    ]
    save_page(docs, PART, lines)
    error_curves(measured.trips).savefig(docs / f"{PART}_error.png", dpi=110)
    picture_sheet(measured).save(docs / f"{PART}.webp")
    return bars.missed


def judge_bars(trips: dict[Key, RoundTrip]) -> Bars:
    bars = Bars(PART)
    for kind in ("empty", "caption"):
        error = float(trips[(*DEFAULT, kind)].errors[-1].max())
        name = f"relative error at the end, {DEFAULT[1]} iterations, {kind} prompt, worst picture"
        bars.add(name, f"at most {ERROR_BAR:.0e}", f"{error:.1e}", error <= ERROR_BAR)
    errors = [float(trips[DEFAULT[0], n, "empty"].errors[-1].mean()) for n in ITERATIONS]
    falling = all(b < a for a, b in itertools.pairwise(errors))
    bars.add("the mean error falls as `iterations` rises", "yes", "yes" if falling else "no", falling)
    return bars


def table(measured: Measured) -> list[str]:
    rows = [
        (
            f"`{method}`",
            str(iterations) if method == DEFAULT[0] else "",
            kind,
            f"{trip.evaluations:.2f}",
            "" if math.isnan(trip.residual) else f"{trip.residual:.1e}",
            f"{float(trip.errors.mean(1).max()):.1e}",
            f"{float(trip.errors[-1].mean()):.1e}",
            f"{float(trip.errors[-1].max()):.1e}",
            *(intervals.mean(psnr(trip.pictures, to), 1) for to in (measured.decoded, measured.pictures)),
        )
        for (method, iterations, kind), trip in measured.trips.items()
    ]
    headings = ["method", "iterations", "prompt", "model calls per step", "residual", "error on the path"]
    headings += ["error at the end, mean", "worst", "PSNR to the autoencoder's picture, dB", "PSNR to the picture, dB"]
    return [
        "Error on the path: the mean over all pictures, at the worst step. Error at the end: the error of the final latent, as the mean over all pictures "
        "and for the worst one. Residual: the figure that the trajectory reports, which is the error of one sampling step, at the worst step of the worst "
        "picture. 120 dB is the largest PSNR that this page can show.",
        "",
        *page_table(headings, rows),
    ]


def convergence_table(found: list[Convergence]) -> list[str]:
    headings = ["sigma", *(f"{way} {n}" for way in ("plain", "Anderson") for n in EVALUATIONS)]
    rows = [
        [f"{c.low:.3g} to {c.high:.3g}", *(f"{curve[n - 1]:.1e}" for curve in (c.plain, c.anderson) for n in EVALUATIONS)]
        for c in found
    ]  # fmt: skip
    return [
        "## Plain iteration and Anderson mixing",
        "",
        "For every step, an inversion solves the equation y = x + d(y) (sigma_high - sigma_low). Plain iteration converges slowly where sigma changes by a "
        "large factor in one step, which is at the end of the schedule, near the picture. `fixed_point` therefore combines its last evaluations (Anderson "
        "mixing, depth 3). The table has the relative residual that the n-th evaluation finds, for the worst picture. Both ways begin with the same first "
        "guess as an inversion: the slope of the step before.",
        "",
        *page_table(headings, rows),
    ]


def error_curves(trips: dict[Key, RoundTrip]) -> plt.Figure:
    figure, axes = plt.subplots(figsize=(7, 4.4), layout="constrained")
    for (method, iterations, kind), trip in trips.items():
        if kind == "empty":
            label = f"{method} {iterations}" if method == DEFAULT[0] else method
            style = "-" if method == DEFAULT[0] else "--"
            axes.semilogy(trip.errors.mean(1).clamp_min(1e-8), style, label=label)
    axes.axhline(ERROR_BAR, color="#999", linewidth=1, linestyle=":")
    axes.set_title(f"{STEPS} steps (dotted: the bar for the end)")
    axes.set(xlabel="sampling step, from noise to the picture", ylabel="relative error of the latent")
    axes.set_ylim(bottom=1e-8)
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8, loc="lower right")
    return figure


def picture_sheet(measured: Measured) -> Sheet:
    sheet = Sheet(f"Inverted and sampled back, {STEPS} steps, empty text. Toy model.")
    own = psnr(measured.decoded, measured.pictures)
    for i in range(min(SHOWN_SCENES, len(measured.pictures))):
        row = [(measured.pictures[i], measured.captions[i])]
        row.append((measured.decoded[i], f"autoencoder\n{float(own[i]):.1f} dB"))
        for method, n in SHOWN:
            pictures = measured.trips[method, n, "empty"].pictures
            name = f"{method}, {n} iterations" if method == DEFAULT[0] else method
            row.append((pictures[i], f"{name}\n{float(psnr(pictures, measured.pictures)[i]):.1f} dB"))
        sheet.add(row)
    return sheet
