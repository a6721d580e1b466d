"""docs/transformer.md: inversion, Plug-and-Play, Prompt-to-Prompt and Attention Mask on the toy's transformer, as on the UNet."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from lab.evidence import attention_mask, inversion, plug_and_play, prompt_to_prompt
from lab.evidence.prompt_to_prompt_edits import Windows, object_words
from lab.evidence.sheet import Sheet
from lab.evidence.world import World
from lab.toy.judge import mask_iou
from lab.toy.pack.transformer import DEPTH, FILE, load_transformer
from lab.toy.samples import contact_sheet, sample_table
from lab.toy.sampling import CFG, STEPS
from lab.toy.scenes import caption, render, sample_scenes
from lab.toy.train_transformer import BATCH as TRAINED_BATCH
from lab.toy.train_transformer import STEPS as TRAINED_STEPS
from safetensors.torch import load_file
from torch import Tensor

# A window of -1 is the node's choice.
AUTO, UNETS = Windows(-1.0, -1.0), prompt_to_prompt.DEFAULTS
BLEND = replace(AUTO, blend_words=object_words, blend_threshold=prompt_to_prompt.CHOSEN.blend_threshold)
WAYS: dict[str, tuple[str, prompt_to_prompt.Way]] = {
    "P2P, blend": (
        f"**Prompt-to-Prompt, automatic cross_end and self_end (0.35 and 0.2), local blend on the object's words, threshold {BLEND.blend_threshold}**",
        lambda world, group: group.steered(BLEND),
    ),
    "P2P": ("the same without local blend", lambda world, group: group.steered(AUTO)),
    "UNet's windows": (
        f"with the UNet's defaults, cross_end {UNETS.cross_end}, self_end {UNETS.self_end}, without local blend",
        lambda world, group: group.steered(UNETS),
    ),
    "plain": ("only the new prompt, from the inverted noise", lambda world, group: world),
    "PnP": (
        "Plug-and-Play, automatic feature_end and attention_end (0.1 and 0.2)",
        lambda world, group: world.plug_and_play(group.trajectory, -1.0, -1.0),
    ),
}
PUBLISHED = plug_and_play.PUBLISHED
WINDOWS = {
    plug_and_play.PLUG_AND_PLAY: (-1.0, -1.0),
    "attention only": (0.0, -1.0),
    "features only": (-1.0, 0.0),
    "the UNet's windows": PUBLISHED,
    "plain sampling": (0.0, 0.0),
}
EDITS = 36  # of Plug-and-Play, whose 50 steps take longest
SHOWN, SHOWN_SAMPLES = 9, 24
PROMPTS = 200


@torch.inference_mode()
def write(docs: Path) -> list[str]:
    """Write the page and its contact sheet; there is no bar to miss."""
    world = World.load_transformer()
    scores = prompt_to_prompt.compare(world, {name: way for name, (_, way) in WAYS.items()})
    lines = [
        "# The transformer: measured results",
        "",
        "All figures were measured on the CPU with a small Stable Diffusion 3 trained on [the toy's drawn scenes](toy.md). "
        "They are not figures of Stable Diffusion: full-size models can behave differently. `make evidence PART=transformer` "
        "measures them again and writes this page.",
        "",
        *_samples(docs),
        "The programs, pictures, guidance and columns are those of the pages of the UNet; the schedule is `simple`, which begins with noise "
        "alone. No setting was chosen on these results. Fractions are given with their 95 % interval (Wilson). Edits without "
        "inversion are on [a page of their own](flow_edit.md).",
        "",
        *_prompt_to_prompt(scores),
        *_plug_and_play(world),
        *_attention_mask(world),
        *_inversion(world),
    ]
    (docs / "transformer.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))
    sheet = Sheet(
        f"One word changed on the toy's transformer, {prompt_to_prompt.STEPS} steps, guidance {prompt_to_prompt.CFG}.",
        ["source", *WAYS],
    )
    for i, edit in enumerate(scores["plain"].edits[:SHOWN]):
        cells = [(scores["unedited"].images[i], f"{edit.attribute}: {edit.words}")]
        sheet.add(cells + [(scores[name].images[i], "") for name in WAYS])
    sheet.save(docs / "transformer.webp")
    return []


def _samples(docs: Path) -> list[str]:
    parameters = sum(value.numel() for value in load_file(FILE).values())
    prompted = sample_scenes(PROMPTS, 101, split="held_out")
    table, _, samples = sample_table(load_transformer(), prompted, CFG, "simple")
    shown = [caption(scene) for scene in prompted[:SHOWN_SAMPLES]]
    contact_sheet(samples[:SHOWN_SAMPLES], shown, 8).save(docs / "transformer_samples.webp", quality=88, method=6)
    return [
        "## The model and its samples",
        "",
        f"ComfyUI's own detection loads it as a Stable Diffusion 3 (MMDiT): {DEPTH} blocks of two streams, width {64 * DEPTH}, patches of "
        f"2 x 2, {parameters / 1e6:.1f} million parameters ({FILE.stat().st_size / 1e6:.1f} MB in half precision). It reads the latents of the "
        "toy's autoencoder and the texts of the UNet's text encoder, which stayed as it was, in 16 columns. `make toy PART=transformer` trains it "
        f"for {TRAINED_STEPS:,} steps of {TRAINED_BATCH} scenes, without photographs. {len(prompted)} held-out prompts, sampled with {STEPS} steps of "
        "`euler` on the `simple` schedule: the fraction with each attribute as in the prompt, as the judge reads it.",
        "",
        *table,
        "",
        "![The first of these samples](transformer_samples.webp)",
        "",
        "## How the methods were measured",
        "",
    ]


def _prompt_to_prompt(scores: dict[str, prompt_to_prompt.Score]) -> list[str]:
    return [
        "## Prompt-to-Prompt",
        "",
        f"{len(scores['plain'].edits)} edits of one word, {prompt_to_prompt.STEPS} steps, guidance {prompt_to_prompt.CFG}, as on [the UNet's "
        "page](prompt_to_prompt.md).",
        "",
        f"| method | {prompt_to_prompt.HEADER}",
        "|---" * 10 + "|",
        *(scores[name].row(label) for name, (label, _) in WAYS.items()),
        scores["target"].row("*the edited scenes, drawn by the renderer, through the autoencoder*"),
        "",
        "![Sources and results of each method](transformer.webp)",
        "",
    ]


def _plug_and_play(world: World) -> list[str]:
    measured = plug_and_play.measure(world, plug_and_play.held_out_edits(EDITS), WINDOWS)
    names = {
        plug_and_play.PLUG_AND_PLAY: "**Plug-and-Play, automatic feature_end and attention_end (0.1 and 0.2)**",
        plug_and_play.EMPTY_TEXT: "the same, inverted with the empty prompt",
        "attention only": "attention only, automatic attention_end",
        "features only": "features only, automatic feature_end",
        "the UNet's windows": f"with the UNet's windows, feature_end {PUBLISHED[0]}, attention_end {PUBLISHED[1]}",
        "plain sampling": "plain sampling from the inverted noise",
        "SDEdit": f"SDEdit at its best strength, {measured.best}",
    }
    return [
        "## Plug-and-Play",
        "",
        f"{EDITS} edits of colour, texture or background, {plug_and_play.STEPS} steps, guidance {plug_and_play.CFG}, as on [the UNet's "
        "page](plug_and_play.md).",
        "",
        f"| method {plug_and_play.HEADER}",
        "|---" * 6 + "|",
        *(measured.scores[name].row(label) for name, label in names.items()),
        "",
    ]


def _attention_mask(world: World) -> list[str]:
    scenes = sample_scenes(attention_mask.SCENES, 500, split="held_out")
    images, truth = render(scenes)
    sources = attention_mask.open_sources(world, scenes, images, caption)
    found: dict[str, Tensor] = {
        words.__name__: mask_iou(attention_mask.read_all(world, sources, words)[0], truth)
        for words in (attention_mask.phrase, attention_mask.noun)
    }
    return [
        "## Attention Mask",
        "",
        f"{len(scenes)} held-out scenes, {attention_mask.STEPS} steps, as on [the UNet's page](attention_mask.md). The transformer's maps have "
        "8 x 8 pixels, so that one pixel of a map covers 16 x 16 pixels of the picture.",
        "",
        "| words | median IoU | mean | worst | scenes with IoU above 0.5 |",
        "|---|---|---|---|---|",
        attention_mask.row("the object's phrase", found["phrase"]),
        attention_mask.row("its noun only", found["noun"]),
        attention_mask.row(
            "*for comparison: the true mask reduced to 8 x 8 pixels*",
            mask_iou(attention_mask.reduced(truth, 8), truth),
        ),
        "",
    ]


def _inversion(world: World) -> list[str]:
    images, texts = inversion.pictures()
    latent = world.encode(images)
    trips = inversion.round_trips(world, latent, texts, inversion.STEPS[:1])
    return [
        "## Inversion",
        "",
        f"The {len(images)} pictures of [the UNet's page](inversion.md). The transformer was trained on scenes alone, without photographs.",
        "",
        *inversion.table(trips, images, world.decode(latent)),
    ]
