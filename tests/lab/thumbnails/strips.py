"""The strips of README and the help pages: a workflow's pictures side by side, those of several runs if one shows too little."""

from __future__ import annotations

from collections.abc import Callable

from lab.thumbnails.compose import resized
from lab.thumbnails.edits import CAR, CASTLE, SAVED, WINDMILL, by_words, mask_by_word
from lab.thumbnails.fusion import two_checkpoints
from lab.thumbnails.toy import Toy, drawn
from lab.thumbnails.unclip import morph
from lab.world.captions import caption
from PIL import Image

SIDE, GAP = 160, 8  # pixels
GROUND = "#f8f8f0"
QUALITY = 85
SHOWS = caption(CASTLE).text


def inversion(toy: Toy, name: str) -> list[Image.Image]:
    """Two pictures, each with its reconstruction."""
    pictures = []
    for scene in (WINDMILL, CAR):
        [again] = toy.pictures(toy.workflow(name, drawn(scene)), name, SAVED)
        pictures += [drawn(scene), *again]
    return pictures


def structure(toy: Toy, name: str) -> list[Image.Image]:
    """A picture, and its layout with three prompts."""

    def edited(text: str) -> Image.Image:
        workflow = toy.workflow(name, drawn(CASTLE))
        workflow.set("CLIPTextEncode", "What it becomes", text=text)
        workflow.set("CLIPTextEncode", "What it looks like now", text="")
        workflow.set("CFGGuider", cfg=7.5)
        return toy.pictures(workflow, name, SAVED)[0][0]

    snow = SHOWS.replace("in a meadow", "in the snow")
    prompts = ("a castle to the left of a butterfly at night, neon sign", snow, snow.replace("flat drawing", "mosaic"))
    return [drawn(CASTLE), *(edited(text) for text in prompts)]


def words(toy: Toy, name: str) -> list[Image.Image]:
    """A picture, a thing swapped in it, a colour, and the place."""

    def edited(old: str, new: str, blend: str = "") -> Image.Image:
        workflow = toy.workflow(name, drawn(CASTLE))
        texts = {"source_text": SHOWS, "target_text": SHOWS.replace(old, new)}
        workflow.set("PAL_EncodePromptEdit", **texts, blend_words=blend)
        by_words(workflow)
        return toy.pictures(workflow, name, SAVED)[0][0]

    return [
        drawn(CASTLE),
        edited("blue butterfly", "blue flower", "blue butterfly, blue flower"),
        edited("orange castle", "pink castle", "orange castle, pink castle"),
        edited("in a meadow", "at night"),
    ]


def mask(toy: Toy, name: str) -> list[Image.Image]:
    """A picture, and where its words are."""
    return mask_by_word(toy, name).before


def two_models(toy: Toy, name: str) -> list[Image.Image]:
    """What each model draws of the prompt, both together, and the expert's area."""
    both = two_checkpoints(toy, name)
    [area] = toy.pictures(toy.last[name], name, ("MaskPreview", None))
    return [*both.before, *both.after, area[len(area) // 2]]


def frames(toy: Toy, name: str) -> list[Image.Image]:
    thumbnail = morph(toy, name)
    first, second = thumbnail.before, thumbnail.after
    return [*first[:2], *second[:2], *first[2:], *second[2:]]


STRIPS: dict[str, tuple[str, Callable[[Toy, str], list[Image.Image]]]] = {
    "Invert and reconstruct": ("inversion", inversion),
    "Plug-and-Play on a photo": ("plug_and_play", structure),
    "Swap a word in a photo": ("prompt_to_prompt", words),
    "Mask by a word, then inpaint": ("attention_mask", mask),
    "Two checkpoints, one picture": ("saliency_fusion", two_models),
    "Morph between two pictures": ("morph", frames),
}


def joined(pictures: list[Image.Image]) -> Image.Image:
    strip = Image.new("RGB", (len(pictures) * (SIDE + GAP) - GAP, SIDE), GROUND)
    for i, picture in enumerate(pictures):
        strip.paste(resized(picture.convert("RGB"), SIDE), (i * (SIDE + GAP), 0))
    return strip
