"""docs/null_text_tolerances.md: what `fast` trades at each tolerance, between reconstructing the picture and doing the edit."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from lab.evidence.intervals import share
from lab.evidence.prompt_to_prompt import CHOSEN, STEPS
from lab.evidence.prompt_to_prompt_edits import Edits, Group, held_out_edits, no_words
from lab.evidence.world import World, psnr_each
from palimpsest.nodes.diffusion.conditioning import Conditioning
from palimpsest.nodes.null_text.optimize import optimize
from palimpsest.nodes.null_text.solvers import Effort
from torch import Tensor
from tqdm import tqdm

EDITS = 18
CFG = 5.0
TOLERANCES = (1e-2, 1e-3, 1e-4, 1e-5)
EMPTY, SOURCE = "the empty prompt", "`negative_prompt`"
WINDOWS = replace(CHOSEN, blend_words=no_words)


@dataclass(frozen=True)
class Row:
    name: str
    reconstructed: Tensor  # dB, the picture sampled with its own prompt
    done: list[bool]
    kept: Tensor  # dB, the background of an edit of the object

    def cells(self) -> str:
        done = share(sum(self.done), len(self.done))
        return f"| {self.name} | {interval(self.reconstructed)} | {done} | {interval(self.kept)} |"


def interval(values: Tensor) -> str:
    """Mean and 95 % interval of the mean."""
    half = 1.96 * float(values.std()) / math.sqrt(len(values))
    return f"{float(values.mean()):.1f} ± {half:.1f} dB"


def measure(name: str, edits: Edits, negative: dict[int, Conditioning]) -> Row:
    """negative: of each group, by its number."""
    places = {id(group): i for i, group in enumerate(edits.groups)}

    def edited(group: Group) -> Tensor:
        steered, sigmas = group.steered(WINDOWS), group.trajectory.sigmas
        return group.world.decode(
            steered.sample(group.noise, group.target, CFG, sigmas, group.latent, negative[places[id(group)]])
        )

    reconstructed = torch.empty(len(edits.edits))
    for i, group in enumerate(edits.groups):
        back = group.world.sample(group.noise, group.source, CFG, group.trajectory.sigmas, group.latent, negative[i])
        reconstructed[group.rows] = psnr_each(group.world.decode(back), edits.unedited[group.rows])
    score = edits.each(edited)
    pairs = zip(score.edits, score.readings, strict=True)
    done = [getattr(found, edit.attribute) == getattr(edit.target, edit.attribute) for edit, found in pairs]
    row = Row(name, reconstructed, done, score.outside)
    print(row.cells(), flush=True)
    return row


def inverted_with(edits: Edits, prompt: Conditioning) -> Edits:
    groups = []
    for group in edits.groups:
        trajectory, noise = group.world.invert(group.latent, prompt, group.trajectory.sigmas)
        groups.append(replace(group, trajectory=trajectory, noise=noise))
    return replace(edits, groups=groups)


@torch.inference_mode()
def write(docs: Path) -> list[str]:
    """Write the page, which has no bar to miss."""
    world = World.load()
    empty = world.prompts([""])
    edits = Edits.open(world, held_out_edits(EDITS, 700), STEPS)
    places = range(len(edits.groups))
    rows = [measure(EMPTY, edits, dict.fromkeys(places, empty))]
    other = measure(f"{EMPTY}, also for the inversion", inverted_with(edits, empty), dict.fromkeys(places, empty))
    for tolerance in tqdm(TOLERANCES, desc="tolerances"):
        found = {
            i: optimize(world.model, group.source, empty, group.trajectory, CFG, Effort(tolerance=tolerance), "fast")[0]
            for i, group in enumerate(edits.groups)
        }
        rows.append(measure(f"`fast`, tolerance {tolerance:g}", edits, found))
    rows.append(measure(SOURCE, edits, {i: group.source for i, group in enumerate(edits.groups)}))
    lines = page(rows, other)
    (docs / "null_text_tolerances.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))
    return []


def page(rows: list[Row], other: Row) -> list[str]:
    return [
        "# The tolerance of Null-Text Optimize: measured results",
        "",
        "All figures were measured on the CPU with the [toy model](toy.md), a small model trained on drawn scenes. "
        "They are not figures of Stable Diffusion: full-size models can behave differently. `make evidence "
        "PART=null_text_tolerances` measures them again and writes this page.",
        "",
        f"{EDITS} edits of held-out scenes by Prompt-to-Prompt at guidance {CFG:g} with {STEPS} steps, without blend "
        "words: a third of the edits change the colour, a third the shape, a third the background. Reconstructed: "
        "PSNR of the picture sampled with its own prompt at that guidance, against the picture that the autoencoder "
        "alone reconstructs. Edit done: fraction of the edits in which the judge, a program that reads the drawn "
        "scenes, finds what the new prompt asks for. Background kept: PSNR outside the object, for the edits that "
        "change the object. Each cell has the mean or the fraction, and its 95 % interval.",
        "",
        "The intervals are wide. Where those of two rows overlap, this table does not show which row is better.",
        "",
        "| negative | reconstructed | edit done | background kept |",
        "|---|---|---|---|",
        *(row.cells() for row in rows),
        "",
        "The same pictures, inverted with the empty prompt instead of their captions:",
        "",
        "| negative | reconstructed | edit done | background kept |",
        "|---|---|---|---|",
        other.cells(),
    ]
