"""docs/subject_fusion.md: a subject from a reference picture in a scene from words, by two models and by one."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import comfy_extras.nodes_custom_sampler as core
import torch
from lab.evidence.bars import Bars
from lab.evidence.saliency_fusion import BATCH, SEED, STEPS, batches
from lab.evidence.sheet import Sheet
from lab.evidence.world import World
from lab.toy.judge import judge
from lab.toy.pack.general import WEIGHTS, load_tuned
from lab.toy.references import reference_pictures
from lab.toy.scenes import OUTDOORS, POSITIONS, SIZE, Scene, caption, sample_scenes
from palimpsest.nodes.diffusion.conditioning import Conditioning
from palimpsest.nodes.saliency_fusion.nodes import SaliencyMap, SubjectFusion
from palimpsest.nodes.saliency_fusion.sockets import SHARPNESS
from palimpsest.nodes.subject.conditioning import subject_conditioning
from palimpsest.nodes.subject.encoder import subject_encoder
from palimpsest.nodes.subject.reference_pictures import Reference
from safetensors.torch import load_file
from torch import Tensor
from tqdm import tqdm

from nodes import ConditioningCombine, ConditioningSetTimestepRange

PROMPTS = 100
CFG = 3.0
SHOWN = 6
MASK_STEP = 14  # between the borders of both ways that are shown
DELAYS = (0.2, 0.5, 0.7)
SALIENCY = {
    "sharpness": {
        "saliency": "sharpness",
        **{f"sharpness_{model}": SHARPNESS[model] for model in ("scene", "subject")},
    },
    "published": {"saliency": "published", "k_scene": 1.0, "k_subject": 1.0},
}


@dataclass(frozen=True)
class Way:
    """delay: the subject model alone, plain text first. stages: scene_end and fusion_end of both models."""

    label: str
    delay: float | None = None
    stages: tuple[float, float] | None = None
    saliency: str = "sharpness"
    cfg: float = CFG


WAYS = {
    "scene": Way("the scene model alone, without the reference"),
    "subject": Way("the subject model alone", delay=0.0),
    **{
        f"delay {delay}": Way(f"the subject model alone, delayed conditioning until {delay}", delay=delay)
        for delay in DELAYS
    },
    "both": Way("**both models**, scene_end 0.3, fusion_end 0.6 (the defaults)", stages=(0.3, 0.6)),
    "published": Way("both models, the same stages, the published constants", stages=(0.3, 0.6), saliency="published"),
    "later": Way("both models, scene_end 0.7, fusion_end 0.9", stages=(0.7, 0.9)),
}
CHOSEN, PUBLISHED = "both", "published"
MASKS = (
    "With the published constants, the masks of the fusion stage seldom cover the subject: on the toy model, the guidance of the scene model is "
    "stronger at the object, so that the subject model gets the area around it. The subject still appears, because the last stage is the subject "
    "model's alone."
)


@dataclass(frozen=True)
class Prompts:
    plain: Conditioning
    subjects: Conditioning


class Subjects:
    def __init__(self) -> None:
        self.scene, self.subject = World.load(), World(*load_tuned("subject"))
        weights = load_file(WEIGHTS / "subject.safetensors")
        own = ("image_encoder.", "postfuse_module.")
        self.encoder = subject_encoder(
            {name: value for name, value in weights.items() if name.startswith(own)}, torch.float32
        )
        self.sigmas = self.scene.sigmas(STEPS)

    def encode(self, scenes: list[Scene], references: Tensor) -> Prompts:
        """references: [B, 3, H, W] in 0..1, one for each prompt."""
        pairs = [
            subject_conditioning(self.subject.clip, self.encoder, marked(scene), [Reference(picture.movedim(0, -1))])
            for scene, picture in zip(scenes, references, strict=True)
        ]
        subjects, plain = ([[torch.cat([pair[i][0][0] for pair in pairs]), {}]] for i in (0, 1))
        return Prompts(plain, subjects)

    def guider(self, prompts: Prompts, way: Way):
        empty = self.scene.prompts([""])
        if way.stages is not None:
            return SubjectFusion.execute(
                self.scene.model,
                self.subject.model,
                prompts.plain,
                prompts.subjects,
                empty,
                way.cfg,
                *way.stages,
                SALIENCY[way.saliency],
            )[0]
        if way.delay is None:
            return core.CFGGuider.execute(self.scene.model, prompts.plain, empty, way.cfg)[0]
        return core.CFGGuider.execute(self.subject.model, delayed(prompts, way.delay), empty, way.cfg)[0]

    def draw(self, scenes: list[Scene], references: Tensor, way: Way) -> Tensor:
        images = []
        for rows, noise in batches(scenes, SEED):
            prompts = self.encode(rows, references[len(images) * BATCH :][: len(rows)])
            empty = {"samples": torch.zeros(len(rows), 16, SIZE // 8, SIZE // 8)}
            euler = core.KSamplerSelect.execute("euler")[0]
            result = core.SamplerCustomAdvanced.execute(noise, self.guider(prompts, way), euler, self.sigmas, empty)[0]
            images.append(self.scene.decode(result["samples"]))
        return torch.cat(images)

    def places(self, scenes: list[Scene], references: Tensor, way: Way, pictures: Tensor) -> Tensor:
        """[B, H, W]: where the subject model decides at MASK_STEP, on those pictures."""
        rows, noise = next(batches(scenes, SEED))
        guider = self.guider(self.encode(rows, references), way)
        latent = {"samples": self.scene.encode(pictures)}
        return SaliencyMap.execute(guider, MASK_STEP, 1, latent_image=latent, sigmas=self.sigmas, noise=noise)[0]


def marked(scene: Scene) -> str:
    return f"a {scene.shape} <|image|> {POSITIONS[scene.position][1]}, {scene.background} background"


def delayed(prompts: Prompts, delay: float) -> Conditioning:
    """FastComposer's delayed conditioning as core nodes wire it."""
    if not delay:
        return prompts.subjects
    between = ConditioningSetTimestepRange().set_range
    first, then = between(prompts.plain, 0.0, delay)[0], between(prompts.subjects, delay, 1.0)[0]
    return ConditioningCombine().combine(first, then)[0]


def shares(pictures: Tensor, scenes: list[Scene]) -> dict[str, float]:
    """Identity: shape, colour and texture of the reference. Scene: position and background of the prompt."""
    rows = []
    for reading, scene in zip(judge(pictures)[0], scenes, strict=True):
        same = {
            name: getattr(reading, name) == getattr(scene, name)
            for name in ("shape", "colour", "texture", "position", "background")
        }
        identity = same["shape"] and same["colour"] and same["texture"]
        rows.append({**same, "identity": identity, "scene": same["position"] and same["background"]})
    table = {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}
    table["both"] = sum(row["identity"] and row["scene"] for row in rows) / len(rows)
    return table


def subjects_in_scenes(count: int, seed: int, split: str = "held_out") -> tuple[list[Scene], Tensor]:
    scenes = sample_scenes(count, seed, split=split, backgrounds=OUTDOORS)
    return scenes, reference_pictures(scenes, random.Random(seed))


@torch.inference_mode()
def write(docs: Path) -> list[str]:
    """Write the page and its pictures; returns the bars that were missed."""
    world, (scenes, references) = Subjects(), subjects_in_scenes(PROMPTS, 1002)
    pictures = {
        name: world.draw(scenes, references, way) for name, way in tqdm(WAYS.items(), desc="ways to put a subject in")
    }
    tables = {name: shares(drawn, scenes) for name, drawn in pictures.items()}
    bars = judge_bars(tables)
    lines = page(bars, tables, scenes[0])
    (docs / "subject_fusion.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))
    contact_sheet(world, scenes, references, pictures, tables).save(docs / "subject_fusion.webp")
    return bars.missed


def best_delay(tables: dict[str, dict[str, float]]) -> str:
    return max((f"delay {delay}" for delay in DELAYS), key=lambda name: tables[name]["both"])


def judge_bars(tables: dict[str, dict[str, float]]) -> Bars:
    bars = Bars("subject_fusion")
    for name in ("subject", best_delay(tables)):
        ahead = tables[CHOSEN]["both"] - tables[name]["both"]
        bars.add(
            f"identity and scene both right: lead of both models over {WAYS[name].label}",
            "more than 0 points",
            f"{100 * ahead:.0f} points",
            ahead > 0,
        )
    return bars


def page(bars: Bars, tables: dict[str, dict[str, float]], example: Scene) -> list[str]:
    return [
        "# Subject Fusion: measured results",
        "",
        "All figures were measured on the CPU with the [toy models](toy.md), small models trained on drawn scenes. "
        "They are not figures of Stable Diffusion: full-size models can behave differently. `make evidence "
        "PART=subject_fusion` measures them again and writes this page.",
        "",
        f"{PROMPTS} held-out scenes. The prompt names the shape, its position and the background, such as \u201c{marked(example)}\u201d. "
        f"A reference picture shows the colour and the texture; for this prompt it shows {caption(example, position=False, background=False)}. "
        "The scene model is the general toy model. The subject model was trained from it with FastComposer's "
        "architecture. Like the models of the papers, which were trained on portraits, it has lost scenes: half of "
        f"the captions in its training named a background drawn at random, the others none. All rows: {STEPS} steps "
        f"of `euler` on `ddim_uniform`, guidance {CFG}, the same noise.",
        "",
        "Identity: fraction of the pictures with shape, colour and texture of the reference. Scene: with position and "
        "background of the prompt. A program, the judge, reads them from the pictures.",
        "",
        *bars.table(),
        "| | identity | scene | **both** | shape | colour | texture | position | background |",
        "|---|---|---|---|---|---|---|---|---|",
        *(
            f"| {WAYS[name].label} | "
            + " | ".join(
                f"{100 * table[key]:.0f} %"
                for key in ("identity", "scene", "both", "shape", "colour", "texture", "position", "background")
            )
            + " |"
            for name, table in tables.items()
        ),
        "",
        MASKS,
        "",
        "![Reference pictures and the results of the scene model, the subject model and both](subject_fusion.webp)",
    ]


def contact_sheet(
    world: Subjects,
    scenes: list[Scene],
    references: Tensor,
    pictures: dict[str, Tensor],
    tables: dict[str, dict[str, float]],
) -> Sheet:
    alone = ["scene", "subject", best_delay(tables)]
    headings = ["reference", "scene model", "subject model", "delayed"]
    headings += ["both models", f"mask, step {MASK_STEP}", "published constants", f"mask, step {MASK_STEP}"]
    sheet = Sheet("A subject from a picture in a scene from words. White: the subject's area. Toy models.", headings)
    masks = {
        name: world.places(scenes[:BATCH], references[:BATCH], WAYS[name], pictures[name][:BATCH])
        for name in (CHOSEN, PUBLISHED)
    }
    for i in range(SHOWN):
        row = [(references[i], marked(scenes[i])), *((pictures[name][i], "") for name in alone)]
        for name, mask in masks.items():
            row += [(pictures[name][i], ""), (mask[i].expand(3, -1, -1), "")]
        sheet.add(row)
    return sheet
