"""docs/flow_edit.md: edits of one word without inversion by PAL_FlowEditGuider on the toy's transformer, beside SDEdit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import comfy_extras.nodes_custom_sampler as core
import torch
from lab.evidence.plug_and_play import sdedit
from lab.evidence.prompt_to_prompt import HEADER
from lab.evidence.prompt_to_prompt_edits import BATCH, Edits, held_out_edits
from lab.evidence.sheet import Sheet
from lab.evidence.world import World
from lab.toy.scenes import caption, render
from palimpsest.nodes.flow_edit.nodes import FlowEdit
from torch import Tensor
from tqdm import tqdm

SCENES, STEPS = 60, 20
CFG, CFG_SOURCE = 3.5, 1.5
PUBLISHED = (13.5, 3.5)  # for SD3, of full size
STRENGTHS = (0.5, 0.65, 0.85, 1.0)
SDEDIT_CFG = 2.5
SDEDIT_STRENGTHS = (0.4, 0.5, 0.65, 0.8)
SHOWN = 9


def flow_edit(
    world: World, latent: Tensor, texts: tuple[Sequence[str], Sequence[str]], strength: float, cfgs: tuple[float, float]
) -> Tensor:
    """texts: of the source pictures, and of what they should become; cfgs: guidance towards the latter and the former."""
    source, target = (world.prompts(each) for each in texts)
    method = {"method": "flow_edit", "strength": strength, "averages": 1}
    cfg, cfg_source = cfgs
    guider = FlowEdit.execute(world.model, target, world.prompts([""]), source, cfg, cfg_source, method)[0]
    sampler, noise = core.KSamplerSelect.execute("euler")[0], core.RandomNoise.execute(1)[0]
    result = core.SamplerCustomAdvanced.execute(noise, guider, sampler, world.sigmas(STEPS), {"samples": latent})[0]
    return world.decode(result["samples"])


@torch.inference_mode()
def write(docs: Path) -> list[str]:
    """Write the page and its contact sheet; there is no bar to miss."""
    world = World.load_transformer()
    edits = held_out_edits(SCENES, 600)
    latent = world.encode(render([edit.source for edit in edits])[0])
    unedited = Edits(edits, [], world.decode(latent))
    before, after = ([caption(getattr(edit, end)) for edit in edits] for end in ("source", "target"))
    settings = {
        **{f"FlowEdit, strength {s}, cfg {CFG}, cfg_source {CFG_SOURCE}": (s, (CFG, CFG_SOURCE)) for s in STRENGTHS},
        "FlowEdit, strength 0.65, cfg {}, cfg_source {}, as published for SD3".format(*PUBLISHED): (0.65, PUBLISHED),
    }
    chunks = [slice(start, start + BATCH) for start in range(0, SCENES, BATCH)]
    scores = {
        name: unedited.score(
            torch.cat([flow_edit(world, latent[c], (before[c], after[c]), strength, cfgs) for c in chunks])
        )
        for name, (strength, cfgs) in tqdm(settings.items(), desc="FlowEdit")
    }
    scores |= {
        f"SDEdit, strength {s}": unedited.score(
            torch.cat([sdedit(world, latent[c], after[c], s, STEPS, SDEDIT_CFG) for c in chunks])
        )
        for s in tqdm(SDEDIT_STRENGTHS, desc="SDEdit")
    }
    lines = [
        "# Flow Edit: measured results",
        "",
        "All figures were measured on the CPU with the [toy's transformer](transformer.md), a small Stable Diffusion 3 trained on drawn scenes. "
        "The figures are not figures of Stable Diffusion: full-size models can behave differently. `make evidence PART=flow_edit` measures "
        "them again and writes this page.",
        "",
        f"{SCENES} held-out scenes, each with one word of its caption changed: edits of the same kind and columns as on [the page of "
        f"Prompt-to-Prompt](prompt_to_prompt.md), with {STEPS} steps of `simple` and ComfyUI's `euler`. `PAL_FlowEditGuider` with the "
        f"method `flow_edit` starts from the picture itself, without an inversion. SDEdit adds noise to the picture and samples "
        f"with guidance {SDEDIT_CFG}.",
        "",
        f"| method | {HEADER}",
        "|---" * 10 + "|",
        *(score.row(name) for name, score in scores.items()),
        "",
        "![Sources and results](flow_edit.webp)",
    ]
    (docs / "flow_edit.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))
    sheet = Sheet(
        f"One word changed without inversion, {STEPS} steps. Toy transformer.", ["source", *map(_short, scores)]
    )
    for i, edit in enumerate(edits[:SHOWN]):
        cells = [(unedited.unedited[i], f"{edit.attribute}: {edit.words}")]
        sheet.add(cells + [(score.images[i], "") for score in scores.values()])
    sheet.save(docs / "flow_edit.webp")
    return []


def _short(name: str) -> str:
    method, strength, *guidance = name.split(", ")
    return f"{method} {strength.removeprefix('strength ')}" + (" (SD3's)" if len(guidance) > 2 else "")
