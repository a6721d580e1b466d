"""Measures the toy world and writes docs/toy.md and docs/toy_samples.webp: make evidence PART=toy"""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
sys.path[0] = str(ROOT / "tests")

from support.host.provision import comfyui_location  # noqa: E402

sys.path.insert(1, str(comfyui_location()))

from comfy.cli_args import args as comfy_args  # noqa: E402

comfy_args.cpu = True
comfy_args.use_pytorch_cross_attention = True

import torch  # noqa: E402
from lab.toy import photos  # noqa: E402
from lab.toy.judge import Reading, judge, mask_iou  # noqa: E402
from lab.toy.pack.general import load_general  # noqa: E402
from lab.toy.pack.transformer import FILE as TRANSFORMER  # noqa: E402
from lab.toy.pack.transformer import STATE, load_transformer  # noqa: E402
from lab.toy.sampling import CFG, STEPS, psnr, reconstruct, sample  # noqa: E402
from lab.toy.scenes import SIZE, Scene, caption, render, sample_scenes  # noqa: E402
from lab.toy.train_transformer import BATCH as TRAINED_BATCH  # noqa: E402
from lab.toy.train_transformer import STEPS as TRAINED_STEPS  # noqa: E402
from PIL import Image, ImageDraw, ImageFont  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from torch import Tensor  # noqa: E402
from tqdm import tqdm  # noqa: E402

ATTRIBUTES = ("shape", "colour", "texture", "position", "background")
COLUMNS = [*ATTRIBUTES, "shape and colour", "all five"]
RENDERS = 500
PROMPTS = 200
SWEEP = (2.0, 3.0, 5.0, 7.5)
SWEEP_PROMPTS = 40
BATCH = 20
SHOWN, SHOWN_OF_TRANSFORMER = 34, 24
JUDGE_BAR, VAE_BAR, PROMPT_BAR = 0.98, 30.0, 0.90
PHOTO_PROMPTS = (
    "a photo of a cup of coffee",
    "a sepia photo of a rocket",
    "a night photo of an astronaut",
    "a gray photo of a man with a camera",
    "a sunset photo of a rocket",
    "a negative photo",
)


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


def bars(judged: float, decoded: float, prompted: float) -> tuple[list[str], bool]:
    """The lines that say which bars are met, and whether all are."""
    rows = (
        ("shape and colour read correctly in drawn held-out scenes", JUDGE_BAR, judged, "{:.1%}"),
        ("PSNR of held-out scenes through the autoencoder", VAE_BAR, decoded, "{:.2f} dB"),
        (f"shape and colour right in {PROMPTS} samples of held-out prompts", PROMPT_BAR, prompted, "{:.1%}"),
    )
    lines = [
        "| goal | required | measured | |",
        "|---|---|---|---|",
        *(
            f"| {name} | at least {form.format(bar)} | {form.format(got)} | {'met' if got >= bar else '**missed**'} |"
            for name, bar, got, form in rows
        ),
        "",
    ]
    return lines, all(got >= bar for _, bar, got, _ in rows)


def main() -> int:
    """0 when every bar is met."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--docs", type=Path, default=ROOT / "docs")
    docs = parser.parse_args().docs
    torch.set_flush_denormal(True)
    world = load_general()
    vae = world[2]

    scenes = sample_scenes(RENDERS, 100, split="held_out")
    images, masks = render(scenes)
    decoded = reconstruct(vae, images)
    true_readings, true_masks = judge(images)
    vae_readings, vae_masks = judge(decoded)
    pictures = {size: photos.held_out_photo(size) for size in (128, 256)}
    photo_psnr = {size: psnr(reconstruct(vae, picture), picture) for size, picture in pictures.items()}

    prompted = sample_scenes(PROMPTS, 101, split="held_out")
    flow_table, _, flow_samples = sample_table(load_transformer(), prompted, CFG, "simple")
    table, readings, samples = sample_table(world, prompted, CFG)

    parameters = sum(value.numel() for value in load_file(TRANSFORMER).values())
    final, rendered, fidelity = shares(readings, prompted), shares(true_readings, scenes), psnr(decoded, images)
    bar_lines, met = bars(rendered["shape and colour"], fidelity, final["shape and colour"])
    lines = [
        "# The toy world: measured results",
        "",
        "The toy world is a set of small models with real architectures, trained on drawn scenes and a few "
        "photographs by `make toy`. Most other result pages are measured with these models.",
        "The UNet in the repository was trained for 10,000 steps in four runs, each of which continued the one "
        "before; `make toy` trains 9,000 steps in one run.",
        "The expert of [Saliency Fusion](saliency_fusion.md) and the subject model of [Subject "
        "Fusion](subject_fusion.md) are low-rank changes (rank 16) of that UNet. The expert was trained for 2,000 "
        "steps in two runs. The subject model was trained for 2,500 steps, the first 1,500 of them with another "
        "noun in its captions. `make toy` trains as many steps in one run each.",
        "The [transformer](#transformer) draws the same scenes.",
        "A miniature DALL-E 2 of the same scenes has [a page of its own](unclip.md).",
        "`make evidence PART=toy` measures the figures again, on the CPU, and writes this page. \u201cHeld out\u201d means "
        "not used for training: the combinations of shape, colour and position in the scenes of these pages, before "
        "an edit changes them, and the photograph of a cat.",
        "",
        *bar_lines,
        "## Autoencoder",
        "",
        "| picture | PSNR |",
        "|---|---|",
        f"| {RENDERS} held-out scenes, 128x128 | {fidelity:.2f} dB |",
        *(f"| held-out photograph, {size}x{size} | {value:.2f} dB |" for size, value in photo_psnr.items()),
        "",
        "## Judge",
        "",
        "The judge is a program that finds the drawn scene which explains a picture best. The table has the "
        f"fraction of {RENDERS} held-out scenes in which it reads each attribute correctly, and the mean IoU of the "
        "mask that it finds with the true one.",
        "",
        f"| pictures | {' | '.join(COLUMNS)} | mask IoU |",
        "|---" * (len(COLUMNS) + 2) + "|",
        row("as drawn", rendered, f"{mask_iou(true_masks, masks).mean():.3f}"),
        row("through the autoencoder", shares(vae_readings, scenes), f"{mask_iou(vae_masks, masks).mean():.3f}"),
        "",
        "## Samples",
        "",
        f"Pictures sampled from held-out prompts with {STEPS} steps of DDIM: the fraction with each attribute as in "
        "the prompt, as the judge reads it.",
        "",
        *table,
        "",
        "![The first of these samples, and pictures sampled from prompts for photographs](toy_samples.webp)",
        "",
        "## Transformer",
        "",
        "A small Stable Diffusion 3 (MMDiT), loaded by ComfyUI's own detection: 3 blocks of two streams, width 192, patches of "
        f"2 x 2, {parameters / 1e6:.1f} million parameters ({TRANSFORMER.stat().st_size / 1e6:.1f} MB in half precision). It "
        "reads the latents of the same autoencoder and the texts of the UNet's text encoder, which stayed as it was, in 16 "
        f"columns. `make toy` trains it for {TRAINED_STEPS:,} steps of {TRAINED_BATCH} scenes, without photographs. {STATE} "
        "Samples of the same held-out prompts with "
        f"{STEPS} steps of `euler` on the `simple` schedule:",
        "",
        *flow_table,
        "",
        "![The first of these samples](toy_transformer.webp)",
        "",
    ]
    docs.mkdir(exist_ok=True)
    (docs / "toy.md").write_text("\n".join(lines))
    print("\n".join(lines))
    shown = [caption(scene) for scene in prompted[:SHOWN]]
    pictures = torch.cat([samples[:SHOWN], sample(*world, PHOTO_PROMPTS, 7)])
    contact_sheet(flow_samples[:SHOWN_OF_TRANSFORMER], shown[:SHOWN_OF_TRANSFORMER], 8).save(
        docs / "toy_transformer.webp", quality=88, method=6
    )
    contact_sheet(pictures, [*shown, *PHOTO_PROMPTS], 8).save(docs / "toy_samples.webp", quality=88, method=6)
    for reading, scene in zip(readings, prompted, strict=True):
        if (reading.shape, reading.colour) != (scene.shape, scene.colour):
            print(f"asked for {caption(scene)}; drawn: {reading}")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
