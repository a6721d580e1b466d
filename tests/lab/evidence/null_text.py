"""docs/null_text.md: how well guided sampling reconstructs an inverted picture, by every method, and what that costs."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, median

import torch
from lab.evidence.bars import Bars
from lab.evidence.null_text_ablations import ABLATIONS, ROWS, Ablation, ablate
from lab.evidence.sheet import Sheet
from lab.evidence.world import World, psnr_each
from lab.toy.scenes import Scene, caption, render, sample_scenes
from palimpsest.nodes.comparison.measures import ssim
from palimpsest.nodes.diffusion.conditioning import Conditioning
from palimpsest.nodes.null_text.optimize import Course, optimize
from palimpsest.nodes.null_text.solvers import Effort
from torch import Tensor
from tqdm import tqdm

SCENES = 100
BATCH = 20
ALONE = 4  # scenes optimised one at a time as well, to count what one picture costs
STEPS = 50
CFG = 7.5
SHOWN = 6
OPTIMISED = ("null_text", "fast", "negative_prompt")
TO_BOUND, ABOVE_PLAIN, TO_PUBLISHED = 1.5, 10.0, 0.1  # dB
SHARE_OF_EVALUATIONS = 1 / 3

NAMES = {
    "autoencoder": "*the autoencoder alone*",
    "guidance 1": "*the empty negative at guidance 1, where it has no effect*",
    "ddim": "the empty negative, inverted by `ddim`",
    "fixed_point": "the empty negative, inverted by `fixed_point`",
    "negative_prompt": "`negative_prompt`",
    "null_text": "`null_text`, as published",
    "fast": "`fast`",
}


@dataclass
class Reconstruction:
    images: list[Tensor] = field(default_factory=list)
    evaluations: list[int] = field(default_factory=list)  # of each batch

    def against(self, truth: Tensor) -> tuple[list[float], list[float]]:
        """PSNR in dB and SSIM of each picture."""
        images = torch.cat(self.images)
        similar = [ssim(a.movedim(0, -1)[None], b.movedim(0, -1)[None]) for a, b in zip(images, truth, strict=True)]
        return psnr_each(images, truth).tolist(), similar


def spent(course: Course) -> int:
    return course.evaluations.forwards + course.evaluations.backwards


def reconstruct_all(world: World, scenes: list[Scene], images: Tensor) -> dict[str, Reconstruction]:
    found = {name: Reconstruction() for name in NAMES}
    sigmas, empty = world.sigmas(STEPS), world.prompts([""])
    for start in tqdm(range(0, len(scenes), BATCH), desc=f"scenes, {BATCH} at a time"):
        rows = slice(start, start + BATCH)
        latent, positive = world.encode(images[rows]), world.prompts([caption(scene) for scene in scenes[rows]])

        def draw(name: str, noise, cfg: float, negative: Conditioning, latent=latent, positive=positive) -> None:
            latents = world.sample(noise, positive, cfg, sigmas, latent, negative)
            found[name].images.append(world.decode(latents))

        found["autoencoder"].images.append(world.decode(latent))
        draw("ddim", world.invert(latent, positive, sigmas, "ddim")[1], CFG, empty)
        trajectory, noise = world.invert(latent, positive, sigmas)
        draw("guidance 1", noise, 1.0, empty)
        draw("fixed_point", noise, CFG, empty)
        for method in OPTIMISED:
            negative, course = optimize(world.model, positive, empty, trajectory, CFG, Effort(), method)
            draw(method, noise, CFG, negative)
            found[method].evaluations.append(spent(course))
    return found


def cost_of_one(world: World, scenes: list[Scene], images: Tensor) -> dict[str, list[int]]:
    """Evaluations that each picture takes by itself; in a batch all go on until the last one stops."""
    costs: dict[str, list[int]] = {method: [] for method in OPTIMISED}
    for scene, image in zip(tqdm(scenes, desc="one scene at a time"), images, strict=True):
        positive = world.prompts([caption(scene)])
        trajectory, _ = world.invert(world.encode(image[None]), positive, world.sigmas(STEPS))
        for method in OPTIMISED:
            course = optimize(world.model, positive, world.prompts([""]), trajectory, CFG, Effort(), method)[1]
            costs[method].append(spent(course))
    return costs


@torch.inference_mode()
def write(docs: Path) -> list[str]:
    """Write the page and its pictures; returns the bars that were missed."""
    world = World.load()
    scenes = sample_scenes(SCENES, 400, split="held_out")
    images, _ = render(scenes)
    found = reconstruct_all(world, scenes, images)
    costs = cost_of_one(world, scenes[:ALONE], images[:ALONE])
    ablations = ablate(world, scenes[:ROWS], images[:ROWS], STEPS, CFG)

    bars, lines = report(found, images, costs, ablations)
    (docs / "null_text.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))
    contact_sheet(found, scenes, images).save(docs / "null_text.webp")
    return bars.missed


def judge_bars(quality: dict[str, list[float]], costs: dict[str, list[int]]) -> Bars:
    bars = Bars("null_text")
    middle = {name: median(psnrs) for name, psnrs in quality.items()}
    bound, plain = middle["autoencoder"], middle["ddim"]
    for name in ("null_text", "fast"):
        below, above = bound - middle[name], middle[name] - plain
        bars.add(
            f"{NAMES[name]}: loss of median PSNR against the autoencoder alone",
            f"at most {TO_BOUND} dB",
            f"{below:.2f} dB",
            below <= TO_BOUND,
        )
        bars.add(
            f"{NAMES[name]}: gain of median PSNR over the empty negative, inverted by `ddim`",
            f"at least {ABOVE_PLAIN:.0f} dB",
            f"{above:.2f} dB",
            above >= ABOVE_PLAIN,
        )
    short = middle["null_text"] - middle["fast"]
    bars.add(
        "`fast`: loss of median PSNR against `null_text` (negative: a gain)",
        f"at most {TO_PUBLISHED} dB",
        f"{short:.2f} dB",
        short <= TO_PUBLISHED,
    )
    share = median(a / b for a, b in zip(costs["fast"], costs["null_text"], strict=True))
    bars.add(
        "`fast`: model calls as a fraction of those of `null_text`, one picture at a time, median",
        "at most a third",
        f"{share:.2f}",
        share <= SHARE_OF_EVALUATIONS,
    )
    return bars


def report(
    found: dict[str, Reconstruction],
    images: Tensor,
    costs: dict[str, list[int]],
    ablations: dict[str, Ablation],
) -> tuple[Bars, list[str]]:
    figures = {name: result.against(images) for name, result in found.items()}
    bars = judge_bars({name: psnrs for name, (psnrs, _) in figures.items()}, costs)
    lines = [
        "# Null-Text Optimize: measured results",
        "",
        "All figures were measured on the CPU with the [toy model](toy.md), a small model trained on drawn scenes. "
        "They are not figures of Stable Diffusion: full-size models can behave differently. `make evidence "
        "PART=null_text` measures them again and writes this page.",
        "",
        f"{len(images)} held-out scenes of 128 x 128 pixels were inverted with their own captions on {STEPS} steps "
        f"of `ddim_uniform`, then sampled by ComfyUI's `euler` at guidance {CFG} with the same captions. The "
        "negative was the empty prompt or the output of `PAL_NullTextOptimize`. The inversion was `fixed_point` "
        "with 5 iterations unless the row says otherwise. PSNR and SSIM compare the result with the picture that "
        "was encoded.",
        "",
        "This page measures how well a picture is reconstructed. What the same negatives do to edits is on [another "
        "page](null_text_edits.md).",
        "",
        *bars.table(),
        "| | median PSNR | mean | worst | median SSIM | model calls for one picture |",
        "|---|---|---|---|---|---|",
    ]
    for name, label in NAMES.items():
        psnrs, ssims = figures[name]
        cost = f"{median(costs[name]):.0f} ({min(costs[name])} to {max(costs[name])})" if name in costs else ""
        lines.append(
            f"| {label} | {median(psnrs):.2f} dB | {mean(psnrs):.2f} dB | {min(psnrs):.2f} dB | {median(ssims):.3f} | {cost} |"
        )
    batches = {name: found[name].evaluations for name in ("null_text", "fast")}
    return bars, [
        *lines,
        "",
        "A model call is one evaluation of the UNet, and a backward pass counts as one too. The column has the "
        f"median and the range of {ALONE} scenes that were optimised one at a time. For the other columns the scenes "
        f"were optimised in batches of {BATCH}, where all scenes go on until the last one has stopped. Median calls "
        "for a batch: "
        + ", ".join(f"{NAMES[name]} {median(counts):.0f}" for name, counts in batches.items())
        + ". Sampling takes 100 calls more.",
        "",
        "`null_text`, as published, uses the constants of the published code, which the node has as its default. "
        "Their tolerance grows from 1e-5 to 1e-3 over the steps, for latents with a variance near 1 as in Stable "
        "Diffusion. The latents of the toy model have a standard deviation near 0.3, so that the same tolerance "
        "stops the search earlier. The tolerance of the paper stays at 1e-5. The ablations show what that changes.",
        "",
        "![Scenes and their reconstructions at this guidance](null_text.webp)",
        "",
        *ablation_table(ablations, figures),
    ]


def ablation_table(ablations: dict[str, Ablation], figures: dict[str, tuple[list[float], list[float]]]) -> list[str]:
    lines = [
        "## Ablations",
        "",
        f"The first {ROWS} of these scenes at guidance {CFG}. The rows in italics are the same scenes of the table "
        "above. Each other row is the published loop with one thing changed. The pivot is the trajectory that the "
        "search aims at. The third column is the PSNR of the final latent against the pivot's, as the mean over the "
        "scenes.",
        "",
        "| | median PSNR | worst | PSNR of the latent to the pivot | model calls |",
        "|---|---|---|---|---|",
    ]
    for name in ("autoencoder", "fixed_point", "null_text", "fast"):
        psnrs = figures[name][0][:ROWS]
        lines.append(f"| *{NAMES[name].strip('*')}* | {median(psnrs):.2f} dB | {min(psnrs):.2f} dB | | |")
    for name, result in ablations.items():
        psnrs = result.psnrs
        lines.append(
            f"| {ABLATIONS[name]} | {median(psnrs):.2f} dB | {min(psnrs):.2f} dB | {result.to_pivot:.2f} dB | {result.evaluations} |"
        )
    return lines


def contact_sheet(found: dict[str, Reconstruction], scenes: list[Scene], images: Tensor) -> Sheet:
    names = ["autoencoder", "ddim", "negative_prompt", "null_text", "fast"]
    sheet = Sheet(f"Inverted, then sampled at guidance {CFG} with the same caption. Toy model.", ["picture", *names])
    results = {name: torch.cat(found[name].images) for name in names}
    for i in range(SHOWN):
        row = [(images[i], caption(scenes[i]))]
        row += [
            (results[name][i], f"{float(psnr_each(results[name][i : i + 1], images[i : i + 1])):.1f} dB")
            for name in names
        ]
        sheet.add(row)
    return sheet
