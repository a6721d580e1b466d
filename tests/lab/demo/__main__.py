"""`make demo`: the shipped workflows on a real ComfyUI server: pictures edited, combined, and painted from words.

Runs on the toy models of tests/lab/world, or with CHECKPOINT=<file> on an SD1.5 or SDXL checkpoint of your own (then PHOTO=<file>,
PROMPT="..." and SIZE=<pixels> name your picture, your edit and the side it is cut to; SOURCE="..." says what the picture
shows, so that it is also edited from those words to PROMPT). On the toy two models draw one picture, subjects are placed in
new scenes, and unCLIP paints texts and a morph. Everything lands in demo_output/.
"""

from __future__ import annotations

import os
import re
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from lab.demo import pictures
from lab.demo.edits import Edits, Picture, TransformerEdits, WordEdit
from lab.demo.fusion import Fusion
from lab.demo.shipped import Row, Shipped
from lab.demo.unclip import UnCLIPDemo
from lab.evidence.sheet import Sheet
from PIL import Image
from support.host.client import Client
from support.host.provision import comfyui_location
from support.host.server import WITH_TOY, Server

ROOT = Path(__file__).resolve().parents[3]
OUTPUT = ROOT / "demo_output"


def on_the_toy(server: Server, shipped: Shipped) -> dict[str, Row]:
    scene, photograph = pictures.scene(server.base), pictures.photograph(server.base)
    unet, transformer = Edits(shipped), TransformerEdits(shipped)
    return {
        **unet.rows(scene),
        **unet.rows(photograph),
        **transformer.rows(pictures.for_the_transformer(scene)),
        **Fusion(shipped).rows(server.base),
        **UnCLIPDemo(server, shipped).rows(server.base),
    }


def on_a_checkpoint(server: Server, shipped: Shipped, checkpoint: Path, photo: Path) -> dict[str, Row]:
    prompt, shows = os.environ.get("PROMPT") or "an oil painting", os.environ.get("SOURCE") or ""
    words = (WordEdit(prompt),) if shows else ()
    name = server.link_model("checkpoints", checkpoint)
    edits = Edits(shipped, name, int(os.environ.get("SIZE") or 512))
    return edits.rows(Picture(photo.stem, photo, (prompt,), shows, words))


def contact_sheet(rows: dict[str, Row], model: str) -> Sheet:
    sheet = Sheet(f"Made by ComfyUI with Palimpsest. Model: {model}")
    for row in rows.values():
        sheet.add([(tensor(picture), label) for picture, label in row])
    return sheet


def tensor(picture: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(picture)).movedim(-1, 0) / 255


def main() -> None:
    checkpoint = Path(os.environ["CHECKPOINT"]).expanduser() if os.environ.get("CHECKPOINT") else None
    photo = Path(os.environ["PHOTO"]).expanduser() if os.environ.get("PHOTO") else None
    for label, file in (("CHECKPOINT", checkpoint), ("PHOTO", photo)):
        if file is not None and not file.is_file():
            raise SystemExit(f"{label}={file}: no such file.")
    if (checkpoint is None) != (photo is None):
        raise SystemExit("CHECKPOINT and PHOTO go together: the toy models know only their own world.")
    OUTPUT.mkdir(exist_ok=True)
    started = time.monotonic()
    cpu = checkpoint is None or not torch.cuda.is_available()
    with (
        tempfile.TemporaryDirectory(prefix="palimpsest-demo-") as base,
        Server(comfyui_location(), Path(base), WITH_TOY, cpu=cpu) as server,
        Client(server.address) as client,
    ):
        shipped = Shipped(client)
        rows = on_a_checkpoint(server, shipped, checkpoint, photo) if checkpoint else on_the_toy(server, shipped)
    for name, row in rows.items():
        stem = re.sub(r"\W+", "_", name).strip("_")
        for i, (picture, _) in enumerate(row, 1):
            picture.save(OUTPUT / f"{stem}_{i}.png")
    contact_sheet(rows, checkpoint.name if checkpoint else "toys trained on drawn scenes").save(OUTPUT / "sheet.webp")
    print(f"{time.monotonic() - started:.0f} s. Pictures: {OUTPUT}, all of them on {OUTPUT / 'sheet.webp'}")


if __name__ == "__main__":
    main()
