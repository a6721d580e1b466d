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
from lab.toy.judge import judge, mask_iou  # noqa: E402
from lab.toy.pack.general import load_general  # noqa: E402
from lab.toy.samples import COLUMNS, contact_sheet, row, sample_table, shares  # noqa: E402
from lab.toy.sampling import CFG, STEPS, psnr, reconstruct, sample  # noqa: E402
from lab.toy.scenes import caption, render, sample_scenes  # noqa: E402

RENDERS = 500
PROMPTS = 200
SHOWN = 34
JUDGE_BAR, VAE_BAR, PROMPT_BAR = 0.98, 30.0, 0.90
PHOTO_PROMPTS = (
    "a photo of a cup of coffee",
    "a sepia photo of a rocket",
    "a night photo of an astronaut",
    "a gray photo of a man with a camera",
    "a sunset photo of a rocket",
    "a negative photo",
)


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
    table, readings, samples = sample_table(world, prompted, CFG)

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
        "A [transformer](transformer.md) draws the same scenes.",
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
    ]
    docs.mkdir(exist_ok=True)
    (docs / "toy.md").write_text("\n".join(lines))
    print("\n".join(lines))
    shown = [caption(scene) for scene in prompted[:SHOWN]]
    pictures = torch.cat([samples[:SHOWN], sample(*world, PHOTO_PROMPTS, 7)])
    contact_sheet(pictures, [*shown, *PHOTO_PROMPTS], 8).save(docs / "toy_samples.webp", quality=88, method=6)
    for reading, scene in zip(readings, prompted, strict=True):
        if (reading.shape, reading.colour) != (scene.shape, scene.colour):
            print(f"asked for {caption(scene)}; drawn: {reading}")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
