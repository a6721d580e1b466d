"""The demo's rows of two models in one picture: a general model with an expert, and a subject placed in new scenes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from lab.demo.shipped import EMPTY_SIZE, TOY_CFG, Row, Shipped, Workflow
from lab.evidence.sheet import as_image
from lab.world.scenes import Thing
from lab.world.studio import cut_out
from PIL import Image

STEPS = 20
PAPER = 0.85  # how light a subject's backdrop is
MASK_STEPS = (4, 8, 12)
# Neither model knows all of it: the general model nothing black, and the expert no place but a room.
THING = "a black house"
PROMPT, EXPERT_PROMPT = f"{THING} in the snow, flat drawing", f"{THING}, flat drawing"
FUSED_SEED = 1
SUBJECT = Thing("duck", "brown", 0.0, 0.0, 1.0)
SUBJECT_PROMPTS = tuple(
    f"a duck <|image|> {where}, flat drawing" for where in ("in a meadow", "on a beach", "in the snow")
)
SUBJECT_SEED, SCENE_END, FUSION_END = 3, 0.4, 0.6


class Fusion:
    def __init__(self, shipped: Shipped) -> None:
        self.shipped = shipped

    def rows(self, folder: Path) -> dict[str, Row]:
        return {"two models": self.two_models(), "a subject": self.subjects(folder)}

    def two_models(self) -> Row:
        both = fused("TOY_LoadGeneral", "TOY_LoadExpert", self.shipped, 1.0)
        places: Row = []
        for step in MASK_STEPS:
            both.set("PAL_SaliencyMap", step=step)
            run = self.shipped.run(both, f"two models: the expert's places at step {step}")
            places.append((self.shipped.image(run, both.find("MaskPreview")), f"the expert's places, step {step}"))
        picture = self.shipped.image(run, both.find("SaveImage"))
        return [
            (self.alone("TOY_LoadGeneral", "TOY_LoadExpert"), f"{PROMPT}\nthe general model alone"),
            (self.alone("TOY_LoadExpert", "TOY_LoadGeneral"), "the expert alone"),
            (picture, "both: Saliency Fusion Guider"),
            *places,
        ]

    def alone(self, model: str, other: str) -> Image.Image:
        workflow = fused(model, other, self.shipped, 0.0)
        run = self.shipped.run(workflow, f"two models: {model.removeprefix('TOY_Load').lower()} alone")
        return self.shipped.image(run, workflow.find("SaveImage"))

    def subjects(self, folder: Path) -> Row:
        reference, file = portrait(SUBJECT), folder / "subject.png"
        reference.save(file)
        picture = self.shipped.client.upload_image(file)
        placed = [(self.placed(picture, text), f"{said(text)}\nSubject Fusion Guider") for text in SUBJECT_PROMPTS]
        return [(reference, "a picture of a subject"), *placed]

    def placed(self, picture: str, text: str) -> Image.Image:
        workflow = self.shipped.workflow("A subject in a scene")
        workflow.use_toy_model()
        workflow.use_toy_subject_model()
        workflow.set("LoadImage", image=picture)
        workflow.set("PAL_SubjectConditioning", text=text)
        workflow.set("PAL_SubjectFusionGuider", cfg=TOY_CFG, scene_end=SCENE_END, fusion_end=FUSION_END)
        workflow.set_all(width=EMPTY_SIZE, height=EMPTY_SIZE, steps=STEPS, step=STEPS // 2, noise_seed=SUBJECT_SEED)
        run = self.shipped.run(workflow, f"a subject placed: {said(text)}")
        return self.shipped.image(run, workflow.find("SaveImage"))


def fused(general: str, expert: str, shipped: Shipped, share: float) -> Workflow:
    """share: of the steps, from the first, that both models take."""
    prompts = {"TOY_LoadGeneral": PROMPT, "TOY_LoadExpert": EXPERT_PROMPT}
    workflow = shipped.workflow("Two checkpoints, one picture")
    workflow.use_toy_model("General model", general)
    workflow.use_toy_model("Expert: the second model", expert)
    workflow.set("CLIPTextEncode", "General model: prompt", text=prompts[general])
    workflow.set("CLIPTextEncode", "Expert: prompt", text=prompts[expert])
    for title in ("General model: negative prompt", "Expert: negative prompt"):
        workflow.set("CLIPTextEncode", title, text="")
    workflow.set("PAL_SaliencyFusionGuider", cfg=TOY_CFG, cfg_expert=TOY_CFG, end_percent=share)
    workflow.set_all(width=EMPTY_SIZE, height=EMPTY_SIZE, steps=STEPS, step=STEPS // 2, noise_seed=FUSED_SEED)
    return workflow


def portrait(thing: Thing) -> Image.Image:
    [cut] = cut_out([thing], np.random.default_rng(0))
    return as_image(cut[:3] + (1 - cut[3:]) * PAPER)  # its colours are multiplied by the mask


def said(text: str) -> str:
    return text.replace(" <|image|>", "")
