"""What a model of the toy draws from prompts: how much of each the judge finds, and the pictures on a sheet."""

from __future__ import annotations

import torch
from lab.toy.judge import Reading, judge
from lab.toy.sampling import sample
from lab.toy.scenes import SIZE, Scene, caption
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from tqdm import tqdm

ATTRIBUTES = ("shape", "colour", "texture", "position", "background")
COLUMNS = [*ATTRIBUTES, "shape and colour", "all five"]
SWEEP = (2.0, 3.0, 5.0, 7.5)
SWEEP_PROMPTS = 40
BATCH = 20


def shares(readings: list[Reading], scenes: list[Scene]) -> dict[str, float]:
    right = [{a: getattr(r, a) == getattr(s, a) for a in ATTRIBUTES} for r, s in zip(readings, scenes, strict=True)]
    table = {a: sum(row[a] for row in right) / len(right) for a in ATTRIBUTES}
    table["shape and colour"] = sum(row["shape"] and row["colour"] for row in right) / len(right)
    table["all five"] = sum(all(row.values()) for row in right) / len(right)
    return table


def draw(world: tuple, scenes: list[Scene], cfg: float, label: str, scheduler: str = "ddim_uniform") -> Tensor:
    prompts = [caption(scene) for scene in scenes]
    batches = [prompts[start : start + BATCH] for start in range(0, len(prompts), BATCH)]
    return torch.cat(
        [
            sample(*world, batch, seed, cfg=cfg, scheduler=scheduler)
            for seed, batch in enumerate(tqdm(batches, desc=label))
        ]
    )


def sample_table(
    world: tuple, prompted: list[Scene], chosen: float, scheduler: str = "ddim_uniform"
) -> tuple[list[str], list[Reading], Tensor]:
    """The table of samples by guidance, and what was drawn of all prompts at the chosen one."""
    few = prompted[:SWEEP_PROMPTS]
    sweep = {cfg: shares(judge(draw(world, few, cfg, f"CFG {cfg}", scheduler))[0], few) for cfg in SWEEP}
    samples = draw(world, prompted, chosen, f"{len(prompted)} prompts", scheduler)
    readings, _ = judge(samples)
    table = [
        f"| CFG, prompts | {' | '.join(COLUMNS)} |",
        "|---" * (len(COLUMNS) + 1) + "|",
        *(row(f"{cfg}, {SWEEP_PROMPTS}", found) for cfg, found in sweep.items()),
        row(f"**{chosen}, {len(prompted)}**", shares(readings, prompted)),
    ]
    return table, readings, samples


def contact_sheet(images: Tensor, captions: list[str], columns: int) -> Image.Image:
    font = ImageFont.load_default(11)
    gap, foot = 8, 32
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * (SIZE + gap) + gap, rows * (SIZE + foot + gap) + gap), "white")
    pen = ImageDraw.Draw(sheet)
    for i, (image, words) in enumerate(zip(images, captions, strict=True)):
        x, y = gap + i % columns * (SIZE + gap), gap + i // columns * (SIZE + foot + gap)
        sheet.paste(Image.fromarray((image * 255).round().byte().permute(1, 2, 0).numpy()), (x, y))
        lines = [""]
        for word in words.split():
            if pen.textlength(f"{lines[-1]} {word}", font) > SIZE:
                lines.append("")
            lines[-1] = f"{lines[-1]} {word}".strip()
        pen.multiline_text((x, y + SIZE + 2), "\n".join(lines), "black", font, spacing=1)
    return sheet


def row(name: str, table: dict[str, float], *more: str) -> str:
    return " | ".join([f"| {name}", *(f"{100 * value:.1f} %" for value in table.values()), *more]) + " |"
