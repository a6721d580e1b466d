"""Thumbnails of the workflows in which two models draw one picture: what each draws alone, or the subjects; and the picture of both."""

from __future__ import annotations

from lab.demo.shipped import TOY_CFG, TOY_SIZE, Workflow
from lab.thumbnails.compose import Thumbnail
from lab.thumbnails.toy import Toy, reference
from PIL import Image

SAVED = ("SaveImage", None)
STEPS = 25
GUIDER, SECOND = "PAL_SaliencyFusionGuider", "PAL_FusionExpert"
OF_AN_EXPERT = {"model": "model_expert", "positive": "positive_expert", "negative": "negative_expert"}


def two_checkpoints(toy: Toy, name: str) -> Thumbnail:
    return fused(toy, name, "a black house", "in the snow, flat drawing", seed=1)


def checkpoint_and_lora(toy: Toy, name: str) -> Thumbnail:
    return fused(toy, name, "a brown mushroom", "in a meadow, flat drawing", seed=6)


def fused(toy: Toy, name: str, thing: str, around: str, seed: int) -> Thumbnail:
    """What each model draws of the prompt, and both. The expert's prompt does not speak of the place: it knows one alone."""
    medium = around.rpartition(", ")[2]

    def drawn(**who: str | None) -> Image.Image:
        workflow = toy.workflow(name)
        write_prompts(workflow, {"General model": f"{thing} {around}", "Expert": f"{thing}, {medium}"})
        workflow.set("RandomNoise", noise_seed=seed)
        if who:
            alone(workflow, **who)
        else:
            workflow.set("PAL_SaliencyMap", every_step=True)
        return toy.pictures(workflow, name, SAVED)[0][0]

    return Thumbnail([drawn(expert=None), drawn(expert=GUIDER)], [drawn()])


def two_loras(toy: Toy, name: str) -> Thumbnail:
    """What each expert draws, and all three. Each expert has a mask, its half of the picture."""

    def drawn(**who: str | None) -> Image.Image:
        workflow = toy.workflow(name)
        prompts = {
            "General model": "a mushroom to the left of a house in the snow, flat drawing",
            "Expert 1": "a brown mushroom to the left of a red house, flat drawing",
            "Expert 2": "a red mushroom to the left of a black house, flat drawing",
        }
        write_prompts(workflow, prompts)
        workflow.set("RandomNoise", noise_seed=7)
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
    subjects = [reference("duck", "brown")]
    return with_subjects(toy, name, subjects, "a duck <|image|> on a beach, flat drawing", seed=1)


def two_subjects(toy: Toy, name: str) -> Thumbnail:
    subjects = [reference("house", "black"), reference("mushroom", "brown")]
    text = "a house <|image|> to the left of a mushroom <|image|> in a meadow, flat drawing"
    return with_subjects(toy, name, subjects, text, seed=1)


def delayed_subject(toy: Toy, name: str) -> Thumbnail:
    subjects = [reference("balloon", "black")]
    return with_subjects(toy, name, subjects, "a balloon <|image|> in a room, flat drawing", seed=2)


def with_subjects(toy: Toy, name: str, subjects: list[Image.Image], text: str, seed: int) -> Thumbnail:
    workflow = toy.workflow(name, *subjects)
    workflow.set("PAL_SubjectConditioning", text=text)
    workflow.guide(TOY_CFG)
    workflow.set_all(steps=STEPS, noise_seed=seed, scene_end=0.3, fusion_end=0.6)
    return Thumbnail(subjects, *toy.pictures(workflow, name, SAVED))


RECIPES = {
    "Two checkpoints, one picture": two_checkpoints,
    "A checkpoint and its LoRA, one picture": checkpoint_and_lora,
    "Two LoRAs, each in its place": two_loras,
    "A subject in a scene": subject_in_a_scene,
    "Two subjects in one picture": two_subjects,
    "Delayed subject, one model": delayed_subject,
}
