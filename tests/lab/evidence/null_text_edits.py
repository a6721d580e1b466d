"""docs/null_text_edits.md: what an edit by words makes of its negative, the empty prompt or that of `PAL_NullTextOptimize`."""

from __future__ import annotations

from pathlib import Path

import torch
from lab.evidence.prompt_to_prompt import CFG, CHOSEN, HEADER, STEPS
from lab.evidence.prompt_to_prompt_edits import Edits, Group, Score, held_out_edits
from lab.evidence.world import World
from palimpsest.nodes.null_text.optimize import optimize
from palimpsest.nodes.null_text.solvers import Effort
from torch import Tensor
from tqdm import tqdm

EDITS = 18
NEGATIVES = ("the empty prompt", "negative_prompt", "fast", "null_text")


def edit_with_each(world: World) -> dict[str, Score]:
    edits = Edits.open(world, held_out_edits(EDITS, 700), STEPS)

    def draw(group: Group, negative: str) -> Tensor:
        found = None
        if negative != NEGATIVES[0]:
            empty = world.prompts([""])
            found, _ = optimize(world.model, group.source, empty, group.trajectory, CFG, Effort(), negative)
        steered, sigmas = group.steered(CHOSEN), group.trajectory.sigmas
        return world.decode(steered.sample(group.noise, group.target, CFG, sigmas, group.latent, found))

    return {
        negative: edits.each(lambda group, negative=negative: draw(group, negative))
        for negative in tqdm(NEGATIVES, desc="edits by negative")
    }


@torch.inference_mode()
def write(docs: Path) -> list[str]:
    """Write the page, which has no bar to miss."""
    scores = edit_with_each(World.load())
    lines = [
        "# Edits with the negatives of Null-Text Optimize: measured results",
        "",
        "All figures were measured on the CPU with the [toy model](toy.md), a small model trained on drawn scenes. "
        "They are not figures of Stable Diffusion: full-size models can behave differently. `make evidence "
        "PART=null_text_edits` measures them again and writes this page.",
        "",
        f"Prompt-to-Prompt with the settings of the first row of [its own page](prompt_to_prompt.md), {STEPS} steps "
        f"and guidance {CFG}, on {EDITS} other held-out scenes: a third of the edits change the colour, a third the "
        "shape, a third the background. The columns are those of that page. Prompt-to-Prompt takes its source from "
        "the trajectory, so that the negative changes only the edited picture.",
        "",
        "With so few edits, a small difference between two rows may be chance.",
        "",
        f"| negative | {HEADER}",
        "|---" * 10 + "|",
        *(score.row(name if name == NEGATIVES[0] else f"`{name}`") for name, score in scores.items()),
        "",
        "Other tolerances of `fast` are on [a page of their own](null_text_tolerances.md).",
        "",
        "In this table the edits with `fast` are like those with `negative_prompt`. A likely reason: the search of "
        "`fast` ends near the source prompt, so that guidance pushes away what the source prompt says about the "
        "background.",
    ]
    (docs / "null_text_edits.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))
    return []
