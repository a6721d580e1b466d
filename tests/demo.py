"""`make demo`: the shipped workflows on a real ComfyUI server, from a drawn scene and a photograph to their edits.

Runs on the toy model of tests/toy, or with CHECKPOINT=<file> on an SD1.5 or SDXL checkpoint of your own (then PHOTO=<file>,
PROMPT="..." and SIZE=<pixels> name your picture, your edit and the side it is cut to). Everything lands in demo_output/.
"""

from __future__ import annotations

import io
import json
import os
import re
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from host.client import Client, Node, Run
from host.provision import comfyui_location
from host.server import PACK, Server
from PIL import Image, ImageDraw, ImageFont
from toy.photos import held_out_photo
from toy.scenes import Scene, caption, held_out, render
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
OUTPUT = ROOT / "demo_output"
WORKFLOWS = ROOT / "tests" / "browser" / "api_format"  # the shipped ones, as the real frontend hands them to the server
TOY_CFG = 3.0  # where docs/toy.md finds most prompts drawn rightly
TOY_PACK = ROOT / "tests" / "toy" / "pack"


@dataclass(frozen=True)
class Subject:
    name: str
    picture: Path
    prompts: list[str]


@dataclass
class Result:
    subject: Subject
    source: Image.Image
    reconstruction: Image.Image
    psnr: str
    edits: list[Image.Image]


class Workflow(dict):
    """A shipped workflow in the API format, its nodes found by class and title."""

    @classmethod
    def read(cls, name: str) -> Workflow:
        return cls(json.loads((WORKFLOWS / f"{name}.json").read_text(encoding="utf-8")))

    def find(self, class_type: str, title: str | None = None) -> Node:
        found = [
            key
            for key, spec in self.items()
            if spec["class_type"] == class_type and title in (None, spec["_meta"]["title"])
        ]
        if len(found) != 1:
            raise LookupError(f"Expected one {class_type} {title or ''} in the workflow, found {len(found)}.")
        return Node(found[0])

    def set(self, class_type: str, title: str | None = None, **inputs) -> None:
        self[self.find(class_type, title).id]["inputs"].update(inputs)

    def use_toy_model(self) -> None:
        self[self.find("CheckpointLoaderSimple").id] = {"class_type": "TOY_LoadGeneral", "inputs": {}}


class Demo:
    def __init__(self, client: Client, checkpoint: str | None, size: int) -> None:
        self.client = client
        self.checkpoint = checkpoint
        self.size = size

    def workflow(self, name: str, picture: str) -> Workflow:
        workflow = Workflow.read(name)
        workflow.set("LoadImage", image=picture)
        workflow.set("ImageScale", width=self.size, height=self.size)
        if self.checkpoint is None:
            workflow.use_toy_model()
        else:
            workflow.set("CheckpointLoaderSimple", ckpt_name=self.checkpoint)
        return workflow

    def run(self, workflow: Workflow, label: str) -> Run:
        with tqdm(desc=f"{label:<46.46}", unit="step", leave=True, ncols=100) as bar:
            run = self.client.run(workflow, on_progress=lambda *_: bar.update(), timeout=24 * 3600)
        if run.status != "success":
            reason = f"{run.error.node_type}: {run.error.message}" if run.error else run.status
            raise SystemExit(f"The workflow did not finish: {reason}")
        return run

    def image(self, run: Run, node: Node) -> Image.Image:
        return Image.open(io.BytesIO(self.client.image(run.images(node)[0]))).convert("RGB")

    def edit(self, subject: Subject) -> Result:
        picture = self.client.upload_image(subject.picture)
        workflow = self.workflow("Invert and reconstruct", picture)
        run = self.run(workflow, f"{subject.name}: invert, reconstruct")
        reconstruction = self.image(run, workflow.find("SaveImage"))
        compare = workflow.find("PAL_CompareImages", "Reconstruction against the picture")
        psnr = re.search(r"PSNR [\d.inf]+ dB", run.outputs[compare.id]["text"][0])[0]

        edits = []
        for prompt in subject.prompts:
            workflow = self.workflow("Plug-and-Play on a photo", picture)
            workflow.set("CLIPTextEncode", "What it becomes", text=prompt)
            if self.checkpoint is None:
                workflow.set("CLIPTextEncode", "What it looks like now", text="")
                workflow.set("CFGGuider", cfg=TOY_CFG)
            run = self.run(workflow, f"{subject.name}: {prompt}")
            edits.append(self.image(run, workflow.find("SaveImage")))
        source = self.image(run, workflow.find("PreviewImage"))
        return Result(subject, source, reconstruction, psnr, edits)


def toy_subjects(folder: Path) -> list[Subject]:
    """A scene the toy model was not trained on, and a photograph it has never seen."""
    colours = ("striped blue star", "plain yellow star", "dotted purple star")
    scene = Scene("star", "red", "striped", "right", "meadow")
    assert held_out(scene)
    prompts = [f"a {colour} on the right, meadow background" for colour in colours]
    looks = ["a sepia photo", "a night photo", "a negative photo"]
    pictures = {
        caption(scene): (render([scene])[0], prompts),
        "a photograph": (held_out_photo(), looks),
    }
    subjects = []
    for name, (picture, words) in pictures.items():
        file = folder / f"{name.replace(' ', '_')}.png"
        Image.fromarray((picture[0].movedim(0, -1) * 255).round().byte().numpy()).save(file)
        subjects.append(Subject(name, file, words))
    return subjects


def contact_sheet(results: list[Result], caption: str) -> Image.Image:
    tile, gap, text, margin = 256, 12, 44, 16
    columns = 2 + max(len(result.edits) for result in results)
    width = margin * 2 + columns * tile + (columns - 1) * gap
    height = margin * 2 + 28 + len(results) * (tile + text + gap)
    sheet = Image.new("RGB", (width, height), "#f6f4ef")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(15)
    draw.text((margin, margin - 4), caption, fill="#555", font=font)
    for row, result in enumerate(results):
        labels = [result.subject.name, f"inverted and drawn again\n{result.psnr}", *result.subject.prompts]
        pictures = [result.source, result.reconstruction, *result.edits]
        for column, (picture, label) in enumerate(zip(pictures, labels, strict=True)):
            x = margin + column * (tile + gap)
            y = margin + 28 + row * (tile + text + gap)
            sheet.paste(picture.resize((tile, tile), Image.Resampling.LANCZOS), (x, y))
            draw.multiline_text((x, y + tile + 4), wrap(label, draw, font, tile), fill="#222", font=font, spacing=2)
    return sheet


def wrap(text: str, draw: ImageDraw.ImageDraw, font: ImageFont.FreeTypeFont, width: int) -> str:
    lines = [""]
    for word in re.split(r" |(?=\n)", text):
        line = f"{lines[-1]} {word}".strip(" ")
        if word.startswith("\n") or (draw.textlength(line, font) > width and lines[-1]):
            lines.append(word.strip())
        else:
            lines[-1] = line
    return "\n".join(lines)


def main() -> None:
    checkpoint = Path(os.environ["CHECKPOINT"]).expanduser() if os.environ.get("CHECKPOINT") else None
    photo = Path(os.environ["PHOTO"]).expanduser() if os.environ.get("PHOTO") else None
    for label, file in (("CHECKPOINT", checkpoint), ("PHOTO", photo)):
        if file is not None and not file.is_file():
            raise SystemExit(f"{label}={file}: no such file.")
    if (checkpoint is None) != (photo is None):
        raise SystemExit("CHECKPOINT and PHOTO go together: the toy model knows only its own scenes and photographs.")
    OUTPUT.mkdir(exist_ok=True)
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="palimpsest-demo-") as base:
        if checkpoint is None:
            subjects, size = toy_subjects(Path(base)), 128
        else:
            prompts = [os.environ.get("PROMPT") or "an oil painting"]
            subjects, size = [Subject(photo.stem, photo, prompts)], int(os.environ.get("SIZE") or 512)
        packs = {"palimpsest": PACK, "palimpsest_toy": TOY_PACK}
        cpu = checkpoint is None or not torch.cuda.is_available()
        with Server(comfyui_location(), Path(base), packs, cpu=cpu) as server, Client(server.address) as client:
            name = server.link_model("checkpoints", checkpoint) if checkpoint else None
            demo = Demo(client, name, size)
            results = [demo.edit(subject) for subject in subjects]
    for result in results:
        stem = re.sub(r"\W+", "_", result.subject.name).strip("_")
        result.source.save(OUTPUT / f"{stem}_source.png")
        result.reconstruction.save(OUTPUT / f"{stem}_reconstruction.png")
        for i, edit in enumerate(result.edits, 1):
            edit.save(OUTPUT / f"{stem}_edit_{i}.png")
        print(f"{result.subject.name}: reconstruction {result.psnr}")
    model = "a toy model trained on drawn scenes and a dozen photographs" if checkpoint is None else checkpoint.name
    contact_sheet(results, f"Plug-and-Play edits by ComfyUI with Palimpsest. Model: {model}").save(OUTPUT / "sheet.png")
    print(f"{time.monotonic() - started:.0f} s. Pictures: {OUTPUT}, all of them on {OUTPUT / 'sheet.png'}")


if __name__ == "__main__":
    main()
