"""Thumbnails of the workflows for transformers. The toy's small Stable Diffusion 3.5 takes the place of each family."""

from __future__ import annotations

from lab.thumbnails.compose import Thumbnail
from lab.thumbnails.edits import BEFORE, SAVED, inpainted
from lab.thumbnails.toy import Toy, drawn, scene, standing
from lab.world.captions import caption
from lab.world.scenes import Scene

CFG = 5.0  # in place of Flux's guidance too, which the toy's transformer does not read
HOUSE = scene(standing("red house", 42, 104), standing("yellow duck", 94, 116, 24), place="meadow")
TREE = scene(standing("green tree", 64, 112, 36), place="meadow")
MUSHROOM = scene(standing("red mushroom", 42, 112, 29), standing("yellow duck", 94, 116, 22), place="meadow")


def swap(toy: Toy, name: str, picture: Scene, old: str, new: str) -> Thumbnail:
    shows = caption(picture).text
    workflow = toy.workflow(name, drawn(picture))
    workflow.set(
        "PAL_EncodePromptEdit", source_text=shows, target_text=shows.replace(old, new), blend_words=f"{old}, {new}"
    )
    workflow.guide(CFG)
    return Thumbnail([drawn(picture)], *toy.pictures(workflow, name, SAVED))


def swap_with_flux(toy: Toy, name: str) -> Thumbnail:
    return swap(toy, name, HOUSE, "red house", "blue house")


def swap_with_qwen(toy: Toy, name: str) -> Thumbnail:
    return swap(toy, name, TREE, "green tree", "pink tree")


def swap_with_z(toy: Toy, name: str) -> Thumbnail:
    return swap(toy, name, MUSHROOM, "red mushroom", "purple mushroom")


def plug_and_play(toy: Toy, name: str) -> Thumbnail:
    workflow = toy.workflow(name, drawn(HOUSE))
    workflow.set("CLIPTextEncode", "What it becomes", text=caption(HOUSE).text.replace("flat drawing", "mosaic"))
    workflow.set("CLIPTextEncode", "What it looks like now", text="")
    workflow.guide(CFG)
    return Thumbnail(*toy.pictures(workflow, name, BEFORE, SAVED))


def mask_by_word(toy: Toy, name: str) -> Thumbnail:
    return inpainted(toy, name, HOUSE, "yellow duck", "red mushroom")


RECIPES = {
    "Swap a word in a photo, Flux": swap_with_flux,
    "Swap a word in a photo, Qwen-Image": swap_with_qwen,
    "Swap a word in a photo, Z-Image": swap_with_z,
    "Plug-and-Play on a photo, SD3.5": plug_and_play,
    "Mask by a word, then inpaint, Flux": mask_by_word,
}
