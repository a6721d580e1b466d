"""`make demo`: the shipped workflows on a real ComfyUI server: a drawn scene and a photograph with their edits, and a picture by two models.

Runs on the toy model of tests/lab/toy, or with CHECKPOINT=<file> on an SD1.5 or SDXL checkpoint of your own (then PHOTO=<file>,
PROMPT="..." and SIZE=<pixels> name your picture, your edit and the side it is cut to; SOURCE="..." says what the picture
shows, so that it is also edited from those words to PROMPT). On the toy it ends with unCLIP. Everything lands in demo_output/.
"""

from __future__ import annotations

import os
import re
import tempfile
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from lab.demo.shipped import CROSS_END, SELF_END, TOY_CFG, TOY_SIZE, WORDS_CFG, Shipped, Workflow
from lab.demo.unclip import UnCLIPDemo
from lab.evidence.sheet import Sheet, as_image
from lab.toy.photos import held_out_photo
from lab.toy.scenes import Scene, caption, held_out, render
from PIL import Image
from support.host.client import Client
from support.host.provision import comfyui_location
from support.host.server import WITH_TOY, Server

ROOT = Path(__file__).resolve().parents[3]
OUTPUT = ROOT / "demo_output"
# What neither toy model knows all of, with the settings of docs/saliency_fusion.md.
FUSED_PROMPTS = (
    "a ringed red square on the right, meadow background",
    "a vertical yellow circle on the left, night background",
)
MASK_STEPS = (5, 15, 25, 35)


@dataclass(frozen=True)
class WordEdit:
    target_text: str
    blend_words: str = ""


@dataclass(frozen=True)
class Subject:
    """`prompts` are drawn with Plug-and-Play, `words` with Prompt-to-Prompt from `source_text`; `shown` is looked for in it."""

    name: str
    picture: Path
    prompts: list[str]
    source_text: str = ""
    words: tuple[WordEdit, ...] = ()
    shown: str = ""


@dataclass
class Result:
    subject: Subject
    source: Image.Image
    reconstruction: Image.Image
    psnr: str
    edits: list[Image.Image]
    word_edits: list[Image.Image]
    heatmap: Image.Image | None

    def pictures(self) -> dict[str, Image.Image]:
        """By the name of the file."""
        named = {"source": self.source, "reconstruction": self.reconstruction}
        named |= {f"edit_{i}": edit for i, edit in enumerate(self.edits, 1)}
        named |= {f"words_{i}": edit for i, edit in enumerate(self.word_edits, 1)}
        return named | ({"heatmap": self.heatmap} if self.heatmap else {})


@dataclass
class Fused:
    """masks: the expert's places at those steps."""

    prompt: str
    general: Image.Image
    expert: Image.Image
    fused: Image.Image
    masks: dict[int, Image.Image]


class Demo:
    def __init__(self, client: Client, checkpoint: str | None, size: int) -> None:
        self.client = client
        self.checkpoint = checkpoint
        self.size = size
        self.shipped = Shipped(client)

    def workflow(self, name: str, picture: str) -> Workflow:
        workflow = self.shipped.workflow(name)
        workflow.set("LoadImage", image=picture)
        workflow.set("ImageScale", width=self.size, height=self.size)
        if self.checkpoint is None:
            workflow.use_toy_model()
        else:
            workflow.set("CheckpointLoaderSimple", ckpt_name=self.checkpoint)
        return workflow

    def edit(self, subject: Subject) -> Result:
        picture = self.client.upload_image(subject.picture)
        workflow = self.workflow("Invert and reconstruct", picture)
        run = self.shipped.run(workflow, f"{subject.name}: invert, reconstruct")
        reconstruction = self.shipped.image(run, workflow.find("SaveImage"))
        compare = workflow.find("PAL_CompareImages", "Reconstruction against the picture")
        psnr = re.search(r"PSNR [\d.inf]+ dB", run.results(compare)[0])[0]

        edits = []
        for prompt in subject.prompts:
            workflow = self.workflow("Plug-and-Play on a photo", picture)
            workflow.set("CLIPTextEncode", "What it becomes", text=prompt)
            if self.checkpoint is None:
                workflow.set("CLIPTextEncode", "What it looks like now", text="")
                workflow.set("CFGGuider", cfg=TOY_CFG)
            run = self.shipped.run(workflow, f"{subject.name}: {prompt}")
            edits.append(self.shipped.image(run, workflow.find("SaveImage")))
        source = self.shipped.image(run, workflow.find("PreviewImage"))
        word_edits = [self.edit_by_words(subject, picture, words) for words in subject.words]
        heatmap = self.find_words(subject, picture) if subject.shown else None
        return Result(subject, source, reconstruction, psnr, edits, word_edits, heatmap)

    def edit_by_words(self, subject: Subject, picture: str, words: WordEdit) -> Image.Image:
        workflow = self.workflow("Swap a word in a photo", picture)
        texts = {"source_text": subject.source_text, "target_text": words.target_text}
        workflow.set("PAL_EncodePromptEdit", **texts, blend_words=words.blend_words)
        if self.checkpoint is None:
            workflow.set("KSamplerAdvanced", cfg=WORDS_CFG)
            workflow.set("PAL_PromptToPrompt", cross_end=CROSS_END, self_end=SELF_END)
        run = self.shipped.run(workflow, f"{subject.name}, by words: {words.target_text}")
        return self.shipped.image(run, workflow.find("SaveImage"))

    def find_words(self, subject: Subject, picture: str) -> Image.Image:
        workflow = self.workflow("Mask by a word, then inpaint", picture)
        workflow.set("CLIPTextEncode", "What it shows", text=subject.source_text)
        workflow.set("PAL_AttentionMask", text=subject.source_text, words=subject.shown)
        del workflow[workflow.find("SaveImage").id]  # nothing is inpainted
        run = self.shipped.run(workflow, f"{subject.name}: find {subject.shown}")
        return self.shipped.image(run, workflow.find("PreviewImage", "Where the words are"))

    def fuse(self, prompt: str) -> Fused:
        """By the toy models alone: an expert of your own is one more checkpoint than a demo asks for."""

        words = {"TOY_LoadGeneral": prompt, "TOY_LoadExpert": prompt.partition(",")[0]}  # as their captions were

        def workflow(general: str, expert: str, share: float) -> Workflow:
            chosen = self.shipped.workflow("Two checkpoints, one picture")
            chosen.use_toy_model("General model", general)
            chosen.use_toy_model("Expert: the second model", expert)
            chosen.set("CLIPTextEncode", "General model: prompt", text=words[general])
            chosen.set("CLIPTextEncode", "Expert: prompt", text=words[expert])
            for title in ("General model: negative prompt", "Expert: negative prompt"):
                chosen.set("CLIPTextEncode", title, text="")
            chosen.set("EmptyLatentImage", width=self.size, height=self.size)
            chosen.set("PAL_SaliencyFusionGuider", cfg=TOY_CFG, cfg_expert=TOY_CFG, end_percent=share)
            return chosen

        def picture(chosen: Workflow, label: str) -> Image.Image:
            return self.shipped.image(self.shipped.run(chosen, label), chosen.find("SaveImage"))

        both = workflow("TOY_LoadGeneral", "TOY_LoadExpert", 1.0)
        masks = {}
        for step in MASK_STEPS:
            both.set("PAL_SaliencyMap", step=step)
            label = f"two models: {prompt}" if step == MASK_STEPS[0] else f"their places at step {step}"
            run = self.shipped.run(both, label)
            masks[step] = self.shipped.image(run, both.find("MaskPreview"))
            if step == MASK_STEPS[0]:
                fused = self.shipped.image(run, both.find("SaveImage"))
        alone = [
            picture(workflow(loader, other, 0.0), label)
            for loader, other, label in (
                ("TOY_LoadGeneral", "TOY_LoadExpert", "the general model alone"),
                ("TOY_LoadExpert", "TOY_LoadGeneral", "the expert alone"),
            )
        ]
        return Fused(prompt, *alone, fused, masks)


def toy_subjects(folder: Path) -> list[Subject]:
    """A scene the toy model was not trained on, and a photograph it has never seen."""
    scene = Scene("star", "red", "striped", "right", "meadow")
    assert held_out(scene)
    shows = caption(scene)
    colours = ("striped blue star", "plain yellow star", "dotted purple star")
    changes = (
        WordEdit(shows.replace("red", "blue"), "red star, blue star"),
        WordEdit(shows.replace("star", "heart"), "red star, red heart"),
        WordEdit(shows.replace("meadow", "night")),
    )
    looks = ("sepia", "night", "negative", "sunset")
    subjects = []
    for picture, subject in (
        (
            render([scene])[0],
            partial(
                Subject,
                shows,
                prompts=[f"a {colour} on the right, meadow background" for colour in colours],
                source_text=shows,
                words=changes,
                shown="red star",
            ),
        ),
        (
            held_out_photo(),
            partial(
                Subject,
                "a photograph",
                prompts=[f"a {look} photo" for look in looks[:3]],
                source_text="a photo",
                words=tuple(WordEdit(f"a {look} photo") for look in looks),
            ),
        ),
    ):
        file = folder / f"{len(subjects)}.png"
        as_image(picture[0]).save(file)
        subjects.append(subject(picture=file))
    return subjects


def contact_sheet(results: list[Result], fused: list[Fused], model: str, settings: str) -> Sheet:
    sheet = Sheet(f"Made by ComfyUI with Palimpsest. Model: {model}")
    for result in results:
        subject = result.subject
        row = [(result.source, subject.name), (result.reconstruction, f"inverted and drawn again\n{result.psnr}")]
        row += [(edit, f"Plug-and-Play: {prompt}") for edit, prompt in zip(result.edits, subject.prompts, strict=True)]
        sheet.add([(tensor(picture), label) for picture, label in row])
    for result in results:
        subject = result.subject
        if not subject.words:
            continue
        row = [(result.source, f"{subject.source_text}\nPrompt-to-Prompt from these words{settings}")]
        if result.heatmap:
            row.append((result.heatmap, f"where the model finds \u201c{subject.shown}\u201d"))
        for edit, words in zip(result.word_edits, subject.words, strict=True):
            may = f"only \u201c{words.blend_words}\u201d may change" if words.blend_words else "all may change"
            row.append((edit, f"{words.target_text}\n({may})"))
        sheet.add([(tensor(picture), label) for picture, label in row])
    for made in fused:
        row = [(made.general, f"{made.prompt}\nthe general model alone"), (made.expert, "the expert alone")]
        row.append((made.fused, "both: Saliency Fusion Guider"))
        row += [(mask, f"the expert's places, step {step}") for step, mask in made.masks.items()]
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
        raise SystemExit("CHECKPOINT and PHOTO go together: the toy model knows only its own scenes and photographs.")
    OUTPUT.mkdir(exist_ok=True)
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="palimpsest-demo-") as base:
        if checkpoint is None:
            subjects, size = toy_subjects(Path(base)), TOY_SIZE
        else:
            prompts = [os.environ.get("PROMPT") or "an oil painting"]
            shows = os.environ.get("SOURCE") or ""
            words = (WordEdit(prompts[0]),) if shows else ()
            subjects = [Subject(photo.stem, photo, prompts, shows, words)]
            size = int(os.environ.get("SIZE") or 512)
        cpu = checkpoint is None or not torch.cuda.is_available()
        with Server(comfyui_location(), Path(base), WITH_TOY, cpu=cpu) as server, Client(server.address) as client:
            name = server.link_model("checkpoints", checkpoint) if checkpoint else None
            demo = Demo(client, name, size)
            results = [demo.edit(subject) for subject in subjects]
            fused = [demo.fuse(prompt) for prompt in FUSED_PROMPTS] if checkpoint is None else []
            unclip = UnCLIPDemo(server, demo.shipped).rows(OUTPUT) if checkpoint is None else []
    for result in results:
        stem = re.sub(r"\W+", "_", result.subject.name).strip("_")
        for name, picture in result.pictures().items():
            picture.save(OUTPUT / f"{stem}_{name}.png")
        print(f"{result.subject.name}: reconstruction {result.psnr}")
    for made in fused:
        stem = re.sub(r"\W+", "_", made.prompt)
        made.fused.save(OUTPUT / f"{stem}.png")
    model = "a toy trained on drawn scenes and a dozen photographs" if checkpoint is None else checkpoint.name
    settings = f": cfg {WORDS_CFG}, cross_end {CROSS_END}, self_end {SELF_END}" if checkpoint is None else ""
    sheet = contact_sheet(results, fused, model, settings)
    for row in unclip:
        sheet.add([(tensor(picture), label) for picture, label in row])
    sheet.save(OUTPUT / "sheet.webp")
    print(f"{time.monotonic() - started:.0f} s. Pictures: {OUTPUT}, all of them on {OUTPUT / 'sheet.webp'}")


if __name__ == "__main__":
    main()
