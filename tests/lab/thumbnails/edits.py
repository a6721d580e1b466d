"""Thumbnails of the workflows that invert and edit a picture: the picture, and what became of it."""

from __future__ import annotations

from dataclasses import replace

from lab.demo.shipped import CROSS_END, SELF_END, TOY_CFG, WORDS_CFG, Workflow
from lab.thumbnails.compose import Thumbnail
from lab.thumbnails.toy import Toy, drawn, photo
from lab.toy.scenes import Scene, caption

SAVED, BEFORE = ("SaveImage", None), ("PreviewImage", "Before")
CAT, COFFEE, ASTRONAUT = "chelsea.png", "coffee.png", "astronaut.png"  # in scikit-image
CFG = 2.0
STAR = Scene("star", "red", "striped", "right", "meadow")


def invert_and_reconstruct(toy: Toy, name: str) -> Thumbnail:
    """The picture and its noise; the reconstruction."""
    workflow = toy.workflow(name, photo(CAT))
    workflow.set("PAL_PreviewTrajectory", frames=8)
    strip, after = toy.pictures(workflow, name, ("PAL_PreviewTrajectory", None), SAVED)
    noise = strip[0].crop((0, 0, strip[0].height, strip[0].height))
    return Thumbnail([photo(CAT), noise], after)


def retrace_exactly(toy: Toy, name: str) -> Thumbnail:
    return Thumbnail([photo(COFFEE)], *toy.pictures(toy.workflow(name, photo(COFFEE)), name, SAVED))


def plug_and_play_on_a_photo(toy: Toy, name: str) -> Thumbnail:
    workflow = toy.workflow(name, photo(CAT))
    workflow.set("CLIPTextEncode", "What it becomes", text="a night photo")
    workflow.set("CLIPTextEncode", "What it looks like now", text="")
    workflow.set("CFGGuider", cfg=CFG)
    return Thumbnail(*toy.pictures(workflow, name, BEFORE, SAVED))


def edit_a_generated_picture(toy: Toy, name: str) -> Thumbnail:
    first = Scene("circle", "yellow", "plain", "left", "night")
    workflow = toy.workflow(name)
    workflow.set("CLIPTextEncode", "First prompt", text=caption(first))
    workflow.set("CLIPTextEncode", "New prompt", text=caption(replace(first, colour="red", background="meadow")))
    workflow.guide(CFG)
    return Thumbnail(*toy.pictures(workflow, name, BEFORE, SAVED))


def swap_a_word(toy: Toy, name: str) -> Thumbnail:
    shows = caption(STAR)
    workflow = toy.workflow(name, drawn(STAR))
    swapped = {"target_text": shows.replace("red", "blue"), "blend_words": "red star, blue star"}
    workflow.set("PAL_EncodePromptEdit", source_text=shows, **swapped)
    by_words(workflow)
    return Thumbnail([drawn(STAR)], *toy.pictures(workflow, name, SAVED))


def add_words(toy: Toy, name: str) -> Thumbnail:
    workflow = toy.workflow(name, photo(ASTRONAUT))
    workflow.set("PrimitiveStringMultiline", value="a photo")
    workflow.set("PAL_EncodePromptEdit", target_text="a sepia photo")
    by_words(workflow)
    return Thumbnail(*toy.pictures(workflow, name, BEFORE, SAVED))


def reweight_a_word(toy: Toy, name: str) -> Thumbnail:
    """A night photo, and more of the night."""
    picture = photo(ASTRONAUT, "night")
    workflow = toy.workflow(name, picture)
    workflow.set("PrimitiveStringMultiline", value="a night photo")
    workflow.set("PAL_EncodePromptEdit", target_text="a night photo", reweight="night: 6")
    workflow.guide(TOY_CFG)
    workflow.set_all(cross_end=1.0, self_end=SELF_END, steps=20)
    return Thumbnail(*toy.pictures(workflow, name, BEFORE, SAVED))


def by_words(workflow: Workflow) -> None:
    workflow.guide(WORDS_CFG)
    workflow.set_all(cross_end=CROSS_END, self_end=SELF_END)


def mask_by_word(toy: Toy, name: str) -> Thumbnail:
    """The picture and where its words are; the picture inpainted there."""
    scene = Scene("cross", "yellow", "checkered", "left", "night")
    shows = caption(scene)
    workflow = toy.workflow(name, drawn(scene))
    workflow.set("CLIPTextEncode", "What it shows", text=shows)
    workflow.set("PAL_AttentionMask", text=shows, words="yellow cross")
    workflow.set(
        "CLIPTextEncode",
        "What it becomes",
        text=caption(replace(scene, shape="square", colour="cyan", texture="plain")),
    )
    workflow.guide(CFG)
    before, where, after = toy.pictures(workflow, name, BEFORE, ("PreviewImage", "Where the words are"), SAVED)
    return Thumbnail([*before, *where], after)


def edit_with_two_prompts(toy: Toy, name: str) -> Thumbnail:
    scene = Scene("square", "green", "plain", "bottom", "sunset")
    workflow = toy.workflow(name, drawn(scene))
    workflow.set("CLIPTextEncode", "What it shows", text=caption(scene))
    workflow.set("CLIPTextEncode", "What it becomes", text=caption(replace(scene, shape="circle", colour="blue")))
    workflow.set("PAL_FlowEditGuider", cfg=CFG, cfg_source=1.5, **{"method.strength": 0.9})
    workflow.set("BasicScheduler", scheduler="ddim_uniform")
    return Thumbnail([drawn(scene)], *toy.pictures(workflow, name, SAVED))


RECIPES = {
    "Invert and reconstruct": invert_and_reconstruct,
    "Retrace a photo exactly": retrace_exactly,
    "Plug-and-Play on a photo": plug_and_play_on_a_photo,
    "Edit a generated picture": edit_a_generated_picture,
    "Swap a word in a photo": swap_a_word,
    "Add words to a photo": add_words,
    "Reweight a word in a photo": reweight_a_word,
    "Mask by a word, then inpaint": mask_by_word,
    "Edit a photo with two prompts": edit_with_two_prompts,
}
