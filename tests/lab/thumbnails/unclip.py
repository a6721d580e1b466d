"""Thumbnails of the workflows around unCLIP: pictures of a text, and pictures that become others."""

from __future__ import annotations

from lab.demo.unclip import CFG, PRIOR_CFG, STEPS
from lab.thumbnails.compose import Thumbnail
from lab.thumbnails.toy import Toy, drawn, scene, standing
from lab.world.captions import caption

SAVED = ("SaveImage", None)
SEEDS = (1, 2)
BALLOON = scene(standing("red balloon", 64, 116, 36), place="meadow")
TREE = scene(standing("yellow tree", 64, 116, 36), place="night")
MUSHROOM = scene(standing("red mushroom", 64, 114, 38), place="meadow")
GREEN_TREE = scene(standing("green tree", 64, 114, 38), place="meadow")


def text_to_sd21_unclip(toy: Toy, name: str) -> Thumbnail:
    pictures = []
    for seed in SEEDS:
        workflow = toy.workflow(name)
        workflow.set("PrimitiveStringMultiline", value="a red castle in the snow, flat drawing")
        workflow.set("PAL_SamplePrior", steps=STEPS, cfg=PRIOR_CFG, seed=seed)
        workflow.set("KSampler", steps=STEPS, cfg=CFG, seed=seed, scheduler="karras")
        pictures += toy.pictures(workflow, name, SAVED)[0]
    return Thumbnail(pictures[:1], pictures[1:])


def text_to_karlo(toy: Toy, name: str) -> Thumbnail:
    """32 pixels, and the same picture through both upsamplers."""
    workflow = toy.workflow(name, muted=False)
    workflow.set("PAL_LoadUpsampler", "unCLIP Load Upsampler 2", model_name=toy.second_upsampler)
    workflow.set("PrimitiveStringMultiline", value="a red car on a beach, flat drawing")
    workflow.set("PAL_SamplePrior", steps=STEPS, cfg=PRIOR_CFG)
    workflow.set("CFGGuider", cfg=CFG)
    return Thumbnail(*toy.pictures(workflow, name, ("PreviewImage", "64 x 64"), ("SaveImage", "1024 x 1024")))


def variations(toy: Toy, name: str) -> Thumbnail:
    workflow = toy.workflow(name, drawn(MUSHROOM))
    workflow.set("BasicScheduler", "Schedule for both", steps=STEPS)
    return Thumbnail([drawn(MUSHROOM)], *toy.pictures(workflow, name, SAVED))


def morph(toy: Toy, name: str) -> Thumbnail:
    """Eight frames, in two rows."""
    workflow = toy.workflow(name, drawn(BALLOON), drawn(TREE))
    workflow.set("PrimitiveInt", "Frames", value=8)
    workflow.set("BasicScheduler", "Schedule for both", steps=STEPS)
    [frames] = toy.pictures(workflow, name, ("PAL_PreviewMorph", "Its frames"))
    return Thumbnail([frames[i] for i in (0, 1, 4, 5)], [frames[i] for i in (2, 3, 6, 7)])


def text_diff(toy: Toy, name: str) -> Thumbnail:
    shows = caption(GREEN_TREE).text
    moved = {
        "text": shows.replace("in a meadow", "in the snow"),
        "base_text": shows,
        "thetas": "0, 0.06, 0.12, 0.18, 0.25",
    }
    workflow = toy.workflow(name, drawn(GREEN_TREE))
    workflow.set("PAL_EmbeddingTextDiff", **moved)
    workflow.set("BasicScheduler", "Schedule for both", steps=STEPS)
    [pictures] = toy.pictures(workflow, name, SAVED)
    return Thumbnail([drawn(GREEN_TREE)], pictures[-1:])


RECIPES = {
    "Text to picture by a prior, SD2.1 unCLIP": text_to_sd21_unclip,
    "Text to picture with Karlo": text_to_karlo,
    "Variations of a picture": variations,
    "Morph between two pictures": morph,
    "Move a picture by words": text_diff,
}
