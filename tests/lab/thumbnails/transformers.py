"""Thumbnails of the workflows for transformers. The toy's small Stable Diffusion 3 takes the place of each family."""

from __future__ import annotations

from dataclasses import replace

from lab.thumbnails.compose import Thumbnail
from lab.thumbnails.toy import Toy, drawn
from lab.toy.scenes import Scene, caption

SAVED, BEFORE = ("SaveImage", None), ("PreviewImage", "Before")
CFG = 4.0  # in place of Flux's guidance too, which the toy's transformer does not read


def swap(toy: Toy, name: str, scene: Scene, old: str, new: str) -> Thumbnail:
    shows = caption(scene)
    workflow = toy.workflow(name, drawn(scene))
    workflow.set(
        "PAL_EncodePromptEdit",
        source_text=shows,
        target_text=shows.replace(old, new),
        blend_words=f"{old} {scene.shape}, {new} {scene.shape}",
    )
    workflow.guide(CFG)
    return Thumbnail([drawn(scene)], *toy.pictures(workflow, name, SAVED))


def swap_with_flux(toy: Toy, name: str) -> Thumbnail:
    return swap(toy, name, Scene("circle", "yellow", "plain", "left", "night"), "yellow", "purple")


def swap_with_qwen(toy: Toy, name: str) -> Thumbnail:
    return swap(toy, name, Scene("square", "red", "plain", "right", "meadow"), "red", "orange")


def swap_with_z(toy: Toy, name: str) -> Thumbnail:
    return swap(toy, name, Scene("heart", "pink", "plain", "top", "sunset"), "pink", "cyan")


def plug_and_play(toy: Toy, name: str) -> Thumbnail:
    scene = Scene("star", "orange", "plain", "left", "meadow")
    workflow = toy.workflow(name, drawn(scene))
    workflow.set("CLIPTextEncode", "What it becomes", text=caption(replace(scene, colour="blue", background="night")))
    workflow.set("CLIPTextEncode", "What it looks like now", text="")
    workflow.guide(CFG)
    return Thumbnail(*toy.pictures(workflow, name, BEFORE, SAVED))


def mask_by_word(toy: Toy, name: str) -> Thumbnail:
    """The picture and where its words are; the picture inpainted there."""
    scene = Scene("cross", "green", "plain", "right", "sunset")
    workflow = toy.workflow(name, drawn(scene))
    workflow.set("CLIPTextEncode", "What it shows", text=caption(scene))
    workflow.set("PAL_AttentionMask", text=caption(scene), words="green cross")
    workflow.set("CLIPTextEncode", "What it becomes", text=caption(replace(scene, shape="circle", colour="red")))
    workflow.guide(CFG)
    before, where, after = toy.pictures(workflow, name, BEFORE, ("PreviewImage", "Where the words are"), SAVED)
    return Thumbnail([*before, *where], after)


RECIPES = {
    "Swap a word in a photo, Flux": swap_with_flux,
    "Swap a word in a photo, Qwen-Image": swap_with_qwen,
    "Swap a word in a photo, Z-Image": swap_with_z,
    "Plug-and-Play on a photo, SD3.5": plug_and_play,
    "Mask by a word, then inpaint, Flux": mask_by_word,
}
