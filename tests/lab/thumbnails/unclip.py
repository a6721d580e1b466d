"""Thumbnails of the workflows around unCLIP: pictures of a text, and pictures that become others."""

from __future__ import annotations

from dataclasses import replace

from lab.demo.unclip import CFG, PRIOR_CFG, STEPS
from lab.thumbnails.compose import Thumbnail
from lab.thumbnails.toy import Toy, drawn
from lab.toy.scenes import Scene, caption

SAVED = ("SaveImage", None)
# Of others some noise stays: core's CLIP Text Encode gives the decoder another text embedding than it was trained with.
CLEAN_SEEDS = (2, 6)


def text_to_sd21_unclip(toy: Toy, name: str) -> Thumbnail:
    pictures = []
    for seed in CLEAN_SEEDS:
        workflow = toy.workflow(name)
        workflow.set("PrimitiveStringMultiline", value=caption(Scene("heart", "purple", "striped", "centre", "white")))
        workflow.set("PAL_SamplePrior", steps=STEPS, cfg=PRIOR_CFG, seed=seed)
        workflow.set("KSampler", steps=STEPS, cfg=CFG, seed=seed, scheduler="karras")
        pictures += toy.pictures(workflow, name, SAVED)[0]
    return Thumbnail(pictures[:1], pictures[1:])


def text_to_karlo(toy: Toy, name: str) -> Thumbnail:
    """32 pixels, and the same picture through both upsamplers."""
    workflow = toy.workflow(name, muted=False)
    workflow.set("PAL_LoadUpsampler", "unCLIP Load Upsampler 2", model_name=toy.second_upsampler)
    workflow.set("PrimitiveStringMultiline", value=caption(Scene("star", "pink", "dotted", "top", "night")))
    workflow.set("PAL_SamplePrior", steps=STEPS, cfg=PRIOR_CFG)
    workflow.set("CFGGuider", cfg=CFG)
    return Thumbnail(*toy.pictures(workflow, name, ("PreviewImage", "64 x 64"), ("SaveImage", "1024 x 1024")))


def variations(toy: Toy, name: str) -> Thumbnail:
    picture = drawn(Scene("heart", "green", "checkered", "bottom", "white"))
    workflow = toy.workflow(name, picture)
    workflow.set("BasicScheduler", "Schedule for both", steps=STEPS)
    return Thumbnail([picture], *toy.pictures(workflow, name, SAVED))


def morph(toy: Toy, name: str) -> Thumbnail:
    """Eight frames, in two rows."""
    ends = Scene("circle", "orange", "plain", "left", "night"), Scene("star", "pink", "plain", "top", "night")
    workflow = toy.workflow(name, *map(drawn, ends))
    workflow.set("PrimitiveInt", "Frames", value=8)
    workflow.set("BasicScheduler", "Schedule for both", steps=STEPS)
    [frames] = toy.pictures(workflow, name, ("PAL_PreviewMorph", "Its frames"))
    return Thumbnail([frames[i] for i in (0, 1, 4, 5)], [frames[i] for i in (2, 3, 6, 7)])


def text_diff(toy: Toy, name: str) -> Thumbnail:
    scene = Scene("triangle", "cyan", "striped", "right", "sunset")
    workflow = toy.workflow(name, drawn(scene))
    moved = {"text": caption(replace(scene, background="night")), "base_text": caption(scene)}
    workflow.set("PAL_EmbeddingTextDiff", **moved)
    workflow.set("BasicScheduler", "Schedule for both", steps=STEPS)
    [pictures] = toy.pictures(workflow, name, SAVED)
    return Thumbnail([drawn(scene)], pictures[-1:])


RECIPES = {
    "Text to picture by a prior, SD2.1 unCLIP": text_to_sd21_unclip,
    "Text to picture with Karlo": text_to_karlo,
    "Variations of a picture": variations,
    "Morph between two pictures": morph,
    "Move a picture by words": text_diff,
}
