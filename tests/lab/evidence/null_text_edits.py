"""docs/null_text_edits.md: what an edit by words makes of its negative, the empty text or that of `PAL_NullTextOptimize`."""

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
NEGATIVES = ("the empty text", "negative_prompt", "fast", "null_text")


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
        "# Edits with null-text negatives, measured",
        "",
        "These are figures of the toy model, not of Stable Diffusion. `make evidence` writes this page "
        "(this part alone: `make evidence PART=null_text_edits`).",
        "",
        f"Prompt-to-Prompt in the setting of the first row of [its own page](prompt_to_prompt.md): {STEPS} steps, guidance {CFG}, "
        f"{EDITS} other held-out scenes, a colour, a shape or a background changed in a third each. The columns are that page's. Prompt-to-Prompt "
        "takes its source from the trajectory, so the negative changes the edited picture alone.",
        "",
        f"| negative | {HEADER}",
        "|---" * 10 + "|",
        *(score.row(name if name == NEGATIVES[0] else f"`{name}`") for name, score in scores.items()),
        "",
        "More tolerances of `fast`: [its own page](null_text_tolerances.md).",
        "",
        "`fast` ends near the source prompt and edits as `negative_prompt` does: what the source prompt says of the background is "
        "pushed away.",
    ]
    (docs / "null_text_edits.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))
    return []
