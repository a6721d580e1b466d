"""Thumbnails of the workflows in which two models draw one picture: what each draws alone, or the subjects; and the picture of both."""

from __future__ import annotations

import random

from lab.demo.shipped import TOY_CFG, TOY_SIZE, Workflow
from lab.evidence.sheet import as_image
from lab.thumbnails.compose import Thumbnail
from lab.thumbnails.toy import Toy
from lab.toy.references import reference_pictures
from lab.toy.scenes import Scene
from PIL import Image

SAVED = ("SaveImage", None)
APART = 8  # pixels by which two objects that meet in the middle are moved away from it
STEPS = 30  # as in docs/saliency_fusion.md and docs/subject_fusion.md
GUIDER, SECOND = "PAL_SaliencyFusionGuider", "PAL_FusionExpert"
OF_AN_EXPERT = {"model": "model_expert", "positive": "positive_expert", "negative": "negative_expert"}


def two_checkpoints(toy: Toy, name: str) -> Thumbnail:
    return fused(toy, name, "a ringed red square on the right, meadow background")


def checkpoint_and_lora(toy: Toy, name: str) -> Thumbnail:
    return fused(toy, name, "a vertical yellow circle on the left, night background")


def fused(toy: Toy, name: str, prompt: str) -> Thumbnail:
    """What each model draws of the prompt, and both. The expert's prompt does not speak of the background, as its captions did not."""

    def drawn(**who: str | None) -> Image.Image:
        workflow = toy.workflow(name)
        write_prompts(workflow, {"General model": prompt, "Expert": prompt.partition(",")[0]})
        if who:
            alone(workflow, **who)
        else:
            workflow.set("PAL_SaliencyMap", every_step=True)
        return toy.pictures(workflow, name, SAVED)[0][0]

    return Thumbnail([drawn(expert=None), drawn(expert=GUIDER)], [drawn()])


def two_loras(toy: Toy, name: str) -> Thumbnail:
    """What each expert draws, and all three. Each expert has a mask, its half: the models were trained on pictures of one object."""

    def drawn(**who: str | None) -> Image.Image:
        workflow = toy.workflow(name)
        prompts = {
            "General model": "a red square on the left, meadow background",
            "Expert 1": "a ringed red square on the left",
            "Expert 2": "a split blue circle on the right",
        }
        write_prompts(workflow, prompts)
        workflow.set("LoraLoader", "Expert 2: another LoRA on it", lora_name=toy.loras[1])
        for node, side in ((GUIDER, 0), (SECOND, 1)):
            mask = workflow.add("LoadImageMask", f"mask of {node}", image=toy.upload(half(side)), channel="red")
            workflow.set(node, mask=mask[0])
        if who:
            alone(workflow, **who)
        return toy.pictures(workflow, name, SAVED)[0][0]

    return Thumbnail([drawn(expert=GUIDER), drawn(expert=SECOND)], [drawn()])


def half(side: int) -> Image.Image:
    """White on the left or on the right."""
    mask = Image.new("RGB", (TOY_SIZE, TOY_SIZE))
    mask.paste("white", (side * TOY_SIZE // 2, 0, (1 + side) * TOY_SIZE // 2, TOY_SIZE))
    return mask


def write_prompts(workflow: Workflow, prompts: dict[str, str]) -> None:
    workflow.guide(TOY_CFG)
    workflow.set_all(cfg_expert=TOY_CFG, steps=STEPS)
    for who, text in prompts.items():
        workflow.set("CLIPTextEncode", f"{who}: prompt", text=text)
        workflow.set("CLIPTextEncode", f"{who}: negative prompt", text="")


def alone(workflow: Workflow, expert: str | None) -> None:
    """The expert of that node, or the general model, draws the whole picture."""
    workflow.set_all(end_percent=0.0)
    if expert:
        general, other = (workflow[workflow.find(node).id]["inputs"] for node in (GUIDER, expert))
        for own, others in OF_AN_EXPERT.items():
            general[own], other[others] = other[others], general[own]


def subject_in_a_scene(toy: Toy, name: str) -> Thumbnail:
    subject = reference(Scene("cross", "green", "striped", "centre", "gray"))
    return Thumbnail([subject], [in_a_scene(toy, subject, "a cross <|image|> at the top, sunset background")])


def two_subjects(toy: Toy, name: str) -> Thumbnail:
    """Each half by a run with its own subject: the toy was trained on pictures of one object, and draws no two."""
    subjects = [
        reference(Scene("star", "orange", "checkered", "centre", "gray")),
        reference(Scene("circle", "blue", "striped", "centre", "gray")),
    ]
    left = in_a_scene(toy, subjects[0], "a star <|image|> on the left, meadow background")
    right = in_a_scene(toy, subjects[1], "a circle <|image|> on the right, meadow background")
    middle, height = TOY_SIZE // 2, TOY_SIZE
    joined = Image.new("RGB", left.size)
    joined.paste(left.crop((APART, 0, middle + APART, height)), (0, 0))
    joined.paste(right.crop((middle - APART, 0, TOY_SIZE - APART, height)), (middle, 0))
    return Thumbnail(subjects, [joined])


def in_a_scene(toy: Toy, subject: Image.Image, text: str) -> Image.Image:
    name = "A subject in a scene"
    workflow = toy.workflow(name, subject)
    workflow.set("PAL_SubjectConditioning", text=text)
    workflow.guide(TOY_CFG)
    workflow.set_all(steps=STEPS)
    return toy.pictures(workflow, name, SAVED)[0][0]


def delayed_subject(toy: Toy, name: str) -> Thumbnail:
    subject = reference(Scene("heart", "pink", "dotted", "centre", "gray"))
    workflow = toy.workflow(name, subject)
    workflow.set("PAL_SubjectConditioning", text="a heart <|image|> on the left, night background")
    workflow.guide(TOY_CFG)
    workflow.set_all(steps=STEPS, noise_seed=3)
    return Thumbnail([subject], *toy.pictures(workflow, name, SAVED))


def reference(scene: Scene) -> Image.Image:
    """On white: the seed is one whose picture has no noise around the object."""
    return as_image(reference_pictures([scene], random.Random(3))[0])


RECIPES = {
    "Two checkpoints, one picture": two_checkpoints,
    "A checkpoint and its LoRA, one picture": checkpoint_and_lora,
    "Two LoRAs, each in its place": two_loras,
    "A subject in a scene": subject_in_a_scene,
    "Two subjects in one picture": two_subjects,
    "Delayed subject, one model": delayed_subject,
}
