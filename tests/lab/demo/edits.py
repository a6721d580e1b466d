"""The demo's rows of edits: a picture inverted, drawn again, and edited by structure and by words."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from lab.demo.shipped import TOY_CFG, TOY_SIZE, Row, Shipped, Workflow
from PIL import Image

STEPS = 20  # of the toy; a checkpoint has the workflows' own


@dataclass(frozen=True)
class WordEdit:
    target_text: str
    blend_words: str = ""


@dataclass(frozen=True)
class Picture:
    """`prompts` are drawn with Plug-and-Play, `words` with Prompt-to-Prompt from `source_text`; `shown`, words of it, are looked for, and what
    is there is drawn anew as `inpainted` says.

    `structure` and `by_words` are the settings of these two; empty, the workflows' own hold.
    """

    name: str
    file: Path
    prompts: tuple[str, ...]
    source_text: str = ""
    words: tuple[WordEdit, ...] = ()
    shown: str = ""
    inpainted: str = ""
    structure: dict[str, float | str] = field(default_factory=dict)
    by_words: dict[str, float | str] = field(default_factory=dict)


class Edits:
    """By the toy's UNet, or by the checkpoint of that name, at that size."""

    structure = "Plug-and-Play on a photo"

    def __init__(self, shipped: Shipped, checkpoint: str | None = None, size: int = TOY_SIZE) -> None:
        self.shipped = shipped
        self.checkpoint = checkpoint
        self.size = size

    def workflow(self, name: str, picture: str, settings: dict[str, float | str] | None = None) -> Workflow:
        workflow = self.shipped.workflow(name)
        workflow.set("LoadImage", image=picture)
        workflow.set("ImageScale", width=self.size, height=self.size)
        self.load(workflow)
        numbers = dict(settings or {})
        if "cfg" in numbers:
            workflow.guide(numbers.pop("cfg"))
        workflow.set_all(**numbers)
        return workflow

    def load(self, workflow: Workflow) -> None:
        if self.checkpoint is None:
            workflow.use_toy_model()
            workflow.set_all(steps=STEPS)
        else:
            workflow.set("CheckpointLoaderSimple", ckpt_name=self.checkpoint)

    def rows(self, picture: Picture) -> dict[str, Row]:
        file = self.shipped.client.upload_image(picture.file)
        rows = {picture.name: self.redrawn(picture, file)}
        if picture.words:
            found = self.inpaint(picture, file) if picture.shown else []
            edited = [self.edit_by_words(picture, file, words) for words in picture.words]
            rows[f"{picture.name} by words"] = found + edited
        return rows

    def redrawn(self, picture: Picture, file: str) -> Row:
        workflow = self.workflow("Invert and reconstruct", file)
        run = self.shipped.run(workflow, f"{picture.name}: invert, reconstruct")
        compare = workflow.find("PAL_CompareImages", "Reconstruction against the picture")
        psnr = re.search(r"PSNR [\d.inf]+ dB", run.results(compare)[0])[0]
        print(f"{picture.name}: reconstruction {psnr}")
        again = self.shipped.image(run, workflow.find("SaveImage"))
        pairs = [self.edit(picture, file, prompt) for prompt in picture.prompts]
        row = [
            (pairs[0][0], picture.source_text or picture.name),
            (again, f"{picture.name}: inverted and drawn again\n{psnr}"),
        ]
        labels = [f"Plug-and-Play:\n{prompt}" for prompt in picture.prompts]
        return row + [(edited, label) for (_, edited), label in zip(pairs, labels, strict=True)]

    def edit(self, picture: Picture, file: str, prompt: str) -> tuple[Image.Image, Image.Image]:
        """The picture as the model gets it, and the edited one."""
        workflow = self.workflow(self.structure, file, picture.structure)
        workflow.set("CLIPTextEncode", "What it becomes", text=prompt)
        if self.checkpoint is None:
            workflow.set("CLIPTextEncode", "What it looks like now", text="")
        run = self.shipped.run(workflow, f"{picture.name}: {prompt}")
        before, after = workflow.find("PreviewImage", "Before"), workflow.find("SaveImage")
        return self.shipped.image(run, before), self.shipped.image(run, after)

    def edit_by_words(self, picture: Picture, file: str, words: WordEdit) -> tuple[Image.Image, str]:
        workflow = self.workflow("Swap a word in a photo", file, picture.by_words)
        texts = {"source_text": picture.source_text, "target_text": words.target_text}
        workflow.set("PAL_EncodePromptEdit", **texts, blend_words=words.blend_words)
        run = self.shipped.run(workflow, f"{picture.name}, words: {words.target_text}")
        may = f"only \u201c{words.blend_words}\u201d may change" if words.blend_words else "all may change"
        label = f"Prompt-to-Prompt:\n{words.target_text}\n({may})"
        return self.shipped.image(run, workflow.find("SaveImage")), label

    def inpaint(self, picture: Picture, file: str) -> Row:
        workflow = self.workflow("Mask by a word, then inpaint", file)
        workflow.set("CLIPTextEncode", "What it shows", text=picture.source_text)
        workflow.set("PAL_AttentionMask", text=picture.source_text, words=picture.shown)
        workflow.set("CLIPTextEncode", "What it becomes", text=picture.inpainted)
        workflow.set("KSampler", cfg=TOY_CFG)
        run = self.shipped.run(workflow, f"{picture.name}: find {picture.shown}, inpaint")
        where = self.shipped.image(run, workflow.find("PreviewImage", "Where the words are"))
        after = self.shipped.image(run, workflow.find("SaveImage"))
        return [
            (where, f"where the model finds \u201c{picture.shown}\u201d"),
            (after, f"inpainted there:\n{picture.inpainted}"),
        ]


class TransformerEdits(Edits):
    """By the toy's small Stable Diffusion 3.5."""

    structure = "Plug-and-Play on a photo, SD3.5"

    def load(self, workflow: Workflow) -> None:
        workflow.use_toy_transformer()
        workflow.set_all(steps=STEPS, scheduler="simple")
