"""Thumbnails of the workflows that invert and edit a picture: the picture, and what became of it."""

from __future__ import annotations

from lab.demo.shipped import CROSS_END, SELF_END, TOY_CFG, WORDS_CFG, Workflow
from lab.thumbnails.compose import Thumbnail
from lab.thumbnails.toy import Toy, drawn, scene, standing
from lab.world.captions import caption
from lab.world.scenes import Scene

SAVED, BEFORE = ("SaveImage", None), ("PreviewImage", "Before")
STEPS = 25
CASTLE = scene(standing("orange castle", 42, 106, 30), standing("blue butterfly", 98, 110, 22, 14), place="meadow")
CAT = scene(standing("red cat", 40, 112), standing("yellow boat", 92, 100, 22), place="beach")
CAR = scene(standing("red car", 44, 116), standing("green tree", 98, 104, 26), place="city")
MUSHROOM = scene(standing("orange cat", 40, 114, 28), standing("purple mushroom", 94, 110, 25), place="meadow")
WINDMILL = scene(standing("yellow windmill", 42, 106, 30), standing("red boat", 96, 112, 22), place="night")
PENCIL = scene(standing("pink flower", 42, 106, 30), standing("red house", 96, 112, 25), place="beach", style="pencil")
ELEPHANT = scene(standing("green elephant", 64, 115, 32), place="beach")


def invert_and_reconstruct(toy: Toy, name: str) -> Thumbnail:
    """The picture and its noise; the reconstruction."""
    workflow = toy.workflow(name, drawn(WINDMILL))
    workflow.set("PAL_PreviewTrajectory", frames=8)
    strip, after = toy.pictures(workflow, name, ("PAL_PreviewTrajectory", None), SAVED)
    noise = strip[0].crop((0, 0, strip[0].height, strip[0].height))
    return Thumbnail([drawn(WINDMILL), noise], after)


def retrace_exactly(toy: Toy, name: str) -> Thumbnail:
    return Thumbnail([drawn(CAR)], *toy.pictures(toy.workflow(name, drawn(CAR)), name, SAVED))


def plug_and_play_on_a_photo(toy: Toy, name: str) -> Thumbnail:
    workflow = toy.workflow(name, drawn(CASTLE))
    workflow.set("CLIPTextEncode", "What it becomes", text="a castle to the left of a butterfly at night, neon sign")
    workflow.set("CLIPTextEncode", "What it looks like now", text="")
    workflow.set("CFGGuider", cfg=7.5)
    return Thumbnail(*toy.pictures(workflow, name, BEFORE, SAVED))


def edit_a_generated_picture(toy: Toy, name: str) -> Thumbnail:
    shows = "a red house in a meadow, flat drawing"
    workflow = toy.workflow(name)
    workflow.set("CLIPTextEncode", "First prompt", text=shows)
    workflow.set("CLIPTextEncode", "New prompt", text=shows.replace("in a meadow", "in the snow"))
    workflow.guide(TOY_CFG)
    return Thumbnail(*toy.pictures(workflow, name, BEFORE, SAVED))


def swap_a_word(toy: Toy, name: str) -> Thumbnail:
    shows = caption(CAT).text
    workflow = toy.workflow(name, drawn(CAT))
    swapped = {"target_text": shows.replace("red", "blue"), "blend_words": "red cat, blue cat"}
    workflow.set("PAL_EncodePromptEdit", source_text=shows, **swapped)
    by_words(workflow)
    return Thumbnail([drawn(CAT)], *toy.pictures(workflow, name, SAVED))


def add_words(toy: Toy, name: str) -> Thumbnail:
    shows = "a castle to the left of a blue butterfly in a meadow, flat drawing"
    workflow = toy.workflow(name, drawn(CASTLE))
    workflow.set("PrimitiveStringMultiline", value=shows)
    words = {"target_text": shows.replace("castle", "pink castle"), "blend_words": "castle"}
    workflow.set("PAL_EncodePromptEdit", **words)
    by_words(workflow)
    return Thumbnail(*toy.pictures(workflow, name, BEFORE, SAVED))


def reweight_a_word(toy: Toy, name: str) -> Thumbnail:
    workflow = toy.workflow(name, drawn(PENCIL))
    shows = caption(PENCIL).text
    workflow.set("PrimitiveStringMultiline", value=shows)
    workflow.set("PAL_EncodePromptEdit", target_text=shows, reweight="pencil: -2")
    by_words(workflow)
    workflow.set_all(cross_end=1.0)
    return Thumbnail(*toy.pictures(workflow, name, BEFORE, SAVED))


def by_words(workflow: Workflow) -> None:
    workflow.guide(WORDS_CFG)
    workflow.set_all(cross_end=CROSS_END, self_end=SELF_END, steps=STEPS)


def mask_by_word(toy: Toy, name: str) -> Thumbnail:
    return inpainted(toy, name, MUSHROOM, "orange cat", "blue rabbit")


def inpainted(toy: Toy, name: str, picture: Scene, old: str, new: str) -> Thumbnail:
    """The picture and where its words are; the picture inpainted there."""
    shows = caption(picture).text
    workflow = toy.workflow(name, drawn(picture))
    workflow.set("CLIPTextEncode", "What it shows", text=shows)
    workflow.set("PAL_AttentionMask", text=shows, words=old)
    workflow.set("CLIPTextEncode", "What it becomes", text=shows.replace(old, new))
    workflow.guide(TOY_CFG)
    before, where, after = toy.pictures(workflow, name, BEFORE, ("PreviewImage", "Where the words are"), SAVED)
    return Thumbnail([*before, *where], after)


def edit_with_two_prompts(toy: Toy, name: str) -> Thumbnail:
    shows = caption(ELEPHANT).text
    workflow = toy.workflow(name, drawn(ELEPHANT))
    workflow.set("CLIPTextEncode", "What it shows", text=shows)
    workflow.set("CLIPTextEncode", "What it becomes", text=shows.replace("on a beach", "in the snow"))
    workflow.set("PAL_FlowEditGuider", cfg=5.0, cfg_source=1.5, **{"method.strength": 0.8})
    workflow.set("BasicScheduler", steps=STEPS)
    return Thumbnail([drawn(ELEPHANT)], *toy.pictures(workflow, name, SAVED))


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
