"""docs/attention_mask.md: how well the area of words, read from cross-attention, covers the object that they name."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from lab.evidence.bars import Bars
from lab.evidence.intervals import share
from lab.evidence.sheet import Sheet
from lab.evidence.world import World
from lab.toy.judge import mask_iou
from lab.toy.scenes import SHAPES, SIZE, Scene, caption, render, sample_scenes
from palimpsest.nodes.diffusion.conditioning import Conditioning
from palimpsest.nodes.diffusion.trajectory import Trajectory
from palimpsest.nodes.prompt_to_prompt.attention_mask import enlarged, mask_of, stretched, word_maps
from palimpsest.nodes.prompt_to_prompt.nodes import AttentionMask
from palimpsest.nodes.prompt_to_prompt.prompt_edit import columns_of
from palimpsest.nodes.text.tokens import tokenize
from torch import Tensor
from tqdm import tqdm

SCENES = 200
BATCH = 25
SUBSET = 24  # scenes of the second table
STEPS = 20
METHOD = ("ddim", 1)  # of the inversion: one evaluation a step
IOU_BAR = 0.6
WINDOWS = ((0.0, 0.5), (0.5, 1.0), (0.5, 0.55))
THRESHOLDS = (0.3, 0.4, 0.5, 0.6, 0.7)
SHOWN = 6

Words = Callable[[Scene], str]


def phrase(scene: Scene) -> str:
    return f"{scene.texture} {scene.colour} {scene.shape}"


def noun(scene: Scene) -> str:
    return scene.shape


def background(scene: Scene) -> str:
    return f"{scene.background} background"


@dataclass(frozen=True)
class Source:
    """Scenes whose captions have their words in the same columns, so that one call of the node serves them all."""

    rows: list[int]
    scenes: list[Scene]
    trajectory: Trajectory
    positive: Conditioning

    def read(self, world: World, words: Words, start: float = 0.0, end: float = 1.0) -> tuple[Tensor, Tensor]:
        """Masks [B, H, W] and heatmaps [B, 3, H, W]."""
        text, wanted = caption(self.scenes[0]), words(self.scenes[0])
        mask, heat, _ = AttentionMask.execute(
            world.model, world.clip, self.trajectory, text, wanted, start, end, 0.0, positive=self.positive
        ).args
        return mask, heat.movedim(-1, 1)

    def maps(self, world: World, words: Words) -> Tensor:
        """What the node puts its threshold to, [B, H, W]."""
        read = partial(tokenize, world.clip)
        text = read(caption(self.scenes[0]))
        columns = columns_of(read, words(self.scenes[0]), "words", text=text)
        maps = word_maps(world.model, self.trajectory, self.positive, [columns], len(text.ids), range(STEPS))
        return enlarged(stretched(maps[:, 0]), (SIZE, SIZE))


def open_sources(
    world: World, scenes: list[Scene], images: Tensor, inverted_with: Callable[[Scene], str]
) -> list[Source]:
    groups: dict[tuple, list[int]] = defaultdict(list)
    for i, scene in enumerate(scenes):
        groups[tokenize(world.clip, caption(scene)).words].append(i)
    batches = [rows[k : k + BATCH] for rows in groups.values() for k in range(0, len(rows), BATCH)]
    sources = []
    for batch in tqdm(batches, desc="inversions"):
        chosen = [scenes[i] for i in batch]
        latent, texts = world.encode(images[batch]), world.prompts([inverted_with(scene) for scene in chosen])
        trajectory, _ = world.invert(latent, texts, world.sigmas(STEPS), *METHOD)
        sources.append(Source(batch, chosen, trajectory, world.prompts([caption(scene) for scene in chosen])))
    return sources


def read_all(world: World, sources: list[Source], words: Words, *window: float) -> tuple[Tensor, Tensor]:
    """Masks and heatmaps of all scenes."""
    masks, heat = zip(*(source.read(world, words, *window) for source in sources), strict=True)
    return in_order(sources, masks), in_order(sources, heat)


def in_order(sources: list[Source], parts: Sequence[Tensor]) -> Tensor:
    """What was made for each source, in the order of the scenes."""
    return torch.cat(list(parts))[torch.tensor([row for source in sources for row in source.rows]).argsort()]


@torch.inference_mode()
def write(docs: Path) -> list[str]:
    """Write the page and its contact sheet; returns the bars that were missed."""
    world = World.load()
    scenes = sample_scenes(SCENES, 500, split="held_out")
    images, truth = render(scenes)
    sources = open_sources(world, scenes, images, caption)
    found = {words.__name__: read_all(world, sources, words) for words in tqdm((phrase, noun), desc="words")}
    few = open_sources(world, scenes[:SUBSET], images[:SUBSET], caption)
    empty = open_sources(world, scenes[:SUBSET], images[:SUBSET], lambda scene: "")
    windows = {window: read_all(world, few, phrase, *window)[0] for window in tqdm(WINDOWS, desc="windows")}
    maps = in_order(few, [source.maps(world, phrase) for source in few])
    behind, from_empty = read_all(world, few, background), read_all(world, empty, phrase)[0]

    iou = {name: mask_iou(masks, truth) for name, (masks, _) in found.items()}
    bars = Bars("attention_mask")
    middle = float(iou["phrase"].median())
    bars.add("median IoU with the true mask", f"at least {IOU_BAR}", f"{middle:.3f}", middle >= IOU_BAR)
    lines = [
        "# Attention Mask: measured results",
        "",
        "All figures were measured on the CPU with the [toy model](toy.md), a small model trained on drawn scenes. "
        "They are not figures of Stable Diffusion: full-size models can behave differently. `make evidence "
        "PART=attention_mask` measures them again and writes this page.",
        "",
        f"{SCENES} held-out scenes of 128 x 128 pixels were inverted with their own captions, with `{METHOD[0]}` on {STEPS} "
        "steps of `ddim_uniform`. `PAL_AttentionMask` then read the same captions at all of these steps. Its "
        "threshold was 0, which means that Otsu's method chooses it. The IoU compares the mask with the true mask "
        "of the object, which is known because the scenes are drawn. The attention maps have 16 x 16 pixels, so "
        "that one pixel of a map covers 8 x 8 pixels of the picture. "
        "Fractions are given with their 95 % interval (Wilson).",
        "",
        "Each scene has one object with a sharp outline. On photographs the IoU can be different.",
        "",
        *bars.table(),
        "| words | median IoU | mean | worst | scenes with IoU above 0.5 |",
        "|---|---|---|---|---|",
        row(f'the object\'s phrase ("{phrase(scenes[0])}")', iou["phrase"]),
        row(f'its noun only ("{noun(scenes[0])}")', iou["noun"]),
        row(
            "*for comparison: the true mask reduced to 16 x 16 pixels, then enlarged and thresholded in the same way*",
            mask_iou(reduced(truth, 16), truth),
        ),
        row("*for comparison: a mask of the whole picture*", mask_iou(torch.ones_like(truth), truth)),
        "",
        "![Scenes, heatmaps and masks](attention_mask.webp)",
        "",
        "## By shape",
        "",
        "| shape | scenes | phrase, median IoU | noun only, median IoU |",
        "|---|---|---|---|",
    ]
    for shape in SHAPES:
        rows = [i for i, scene in enumerate(scenes) if scene.shape == shape]
        middles = " | ".join(f"{float(iou[name][rows].median()):.3f}" for name in ("phrase", "noun"))
        lines.append(f"| {shape} | {len(rows)} | {middles} |")
    truth = truth[:SUBSET]
    found["background"], iou["background"] = behind, mask_iou(behind[0], 1.0 - truth)
    lines += [
        "",
        "## Steps, threshold and prompt of the inversion",
        "",
        f"The first {SUBSET} of these scenes. The words are the object's phrase unless the row says otherwise.",
        "",
        "| | median IoU | mean | worst | scenes with IoU above 0.5 |",
        "|---|---|---|---|---|",
        row(f"all {STEPS} steps, threshold by Otsu's method, inverted with the caption", iou["phrase"][:SUBSET]),
        row("the same, inverted with the empty prompt", mask_iou(from_empty, truth)),
        *(
            row(f"start {start}, end {end}: {steps_of(start, end)}", mask_iou(masks, truth))
            for (start, end), masks in windows.items()
        ),
        *(row(f"all steps, threshold {t}", mask_iou(mask_of(maps, t), truth)) for t in THRESHOLDS),
        row(
            f'the words of the background, such as "{background(scenes[0])}", compared with all but the object',
            iou["background"],
        ),
    ]
    (docs / "attention_mask.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))
    contact_sheet(scenes, images, found, iou).save(docs / "attention_mask.webp")
    return bars.missed


def steps_of(start: float, end: float) -> str:
    count = round((end - start) * STEPS)
    return f"{count} step{'s' if count > 1 else ''}"


def row(label: str, iou: Tensor) -> str:
    cells = [*(f"{float(value):.3f}" for value in (iou.median(), iou.mean(), iou.min()))]
    return f"| {label} | {' | '.join(cells)} | {share(int((iou > 0.5).sum()), len(iou))} |"


def reduced(masks: Tensor, size: int) -> Tensor:
    """Masks [B, H, W] as a map of size x size pixels could show them at best."""
    return mask_of(enlarged(F.adaptive_avg_pool2d(masks[:, None], size)[:, 0], tuple(masks.shape[-2:])), 0.0)


def contact_sheet(
    scenes: list[Scene], images: Tensor, found: dict[str, tuple[Tensor, Tensor]], iou: dict[str, Tensor]
) -> Sheet:
    """The first scenes as they come, and those of the subset that the phrase finds worst."""
    headings = ["scene", "phrase: heatmap", "mask", "noun: heatmap", "mask", "background", "mask"]
    sheet = Sheet(
        f"Where the model looks at words, {STEPS} steps read. The last three: the worst of {SUBSET}. Toy model.",
        headings,
    )
    worst = iou["phrase"][:SUBSET].argsort()[:3].tolist()
    for i in [*range(SHOWN), *worst]:
        cells = [(images[i], caption(scenes[i]))]
        for name, (masks, heat) in found.items():
            cells += [(heat[i], ""), (masks[i].expand(3, -1, -1), f"IoU {float(iou[name][i]):.2f}")]
        sheet.add(cells)
    return sheet
