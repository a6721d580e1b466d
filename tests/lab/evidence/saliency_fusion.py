"""docs/saliency_fusion.md: two models in one picture, by saliency and by everything simpler than that."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import comfy_extras.nodes_custom_sampler as core
import torch
from lab.evidence.bars import Bars
from lab.evidence.sheet import Sheet
from lab.evidence.world import World
from lab.toy.judge import Reading, judge
from lab.toy.pack.general import load_tuned
from lab.toy.scenes import NOVEL_TEXTURES, OUTDOORS, SIZE, TEXTURES, Scene, caption, render, sample_scenes
from palimpsest.nodes.saliency_fusion.nodes import SaliencyFusionGuider, SaliencyMap
from palimpsest.nodes.saliency_fusion.sockets import SHARPNESS
from torch import Tensor
from tqdm import tqdm

PROMPTS = 100
BATCH = 20
STEPS = 30
CFG = 3.0
SEED = 500
SHOWN = 6
STEPS_SHOWN = (5, 12, 18, 24)
AIM = 0.15
WEIGHTS = (0.3, 0.4, 0.5, 0.6, 0.7)
SOFT = {"mode": "soft", "temperature": 0.5}
PUBLISHED = {"saliency": {"saliency": "published", "k_general": 1.0, "k_expert": 1.0}}
DEFAULTS = {
    "saliency": {
        "saliency": "sharpness",
        **{f"sharpness_{model}": SHARPNESS[model] for model in ("general", "expert")},
    },
    "cfg_expert": CFG,
    "blur": "box",
    "expert_uncond": "own",
    "mode": {"mode": "hard"},
    "start_percent": 0.0,
    "end_percent": 1.0,
}


@dataclass(frozen=True)
class Way:
    """One way to make a picture of two models. share: of the expert everywhere, instead of by saliency."""

    label: str
    settings: dict
    share: float | None = None
    given: bool = False  # the object's true mask decides


WAYS = {
    "general": Way("the general model alone", {}, share=0.0),
    "expert": Way("the expert alone", {}, share=1.0),
    "average": Way("plain average of both predictions", {}, share=0.5),
    **{f"sum {w}": Way(f"weighted sum, {w} of the expert", {}, share=w) for w in WEIGHTS if w != 0.5},
    "published": Way("by saliency, published constants", PUBLISHED),
    "sharpness": Way("**by saliency**, the defaults", {}),
    "given": Way("*by the object's true mask, which is known for drawn scenes only*", {}, given=True),
}
CHOSEN = "sharpness"
TUNING = (
    "The default sharpness, 1 for the general model and 3 for the expert, was found on 20 prompts of the training split. So was the expert's "
    "prompt, which leaves out the background."
)


class Fusion:
    def __init__(self) -> None:
        self.general, self.expert = World.load(), World(*load_tuned("expert"))
        self.sigmas = self.general.sigmas(STEPS)

    def guider(self, scenes: list[Scene], way: Way):
        texts = [caption(scene) for scene in scenes]
        own = [caption(scene, background=False) for scene in scenes]  # as the expert's captions were
        settings = {**DEFAULTS, **way.settings}
        if way.share is not None:
            settings |= {"mode": SOFT, "mask_use": "decide", "mask": torch.full((1, SIZE, SIZE), way.share)}
        if way.given:
            settings |= {"mask_use": "decide", "mask": render(scenes)[1]}
        return SaliencyFusionGuider.execute(
            model=self.general.model,
            positive=self.general.prompts(texts),
            negative=self.general.prompts([""]),
            cfg=CFG,
            model_expert=self.expert.model,
            positive_expert=self.expert.prompts(own),
            negative_expert=self.expert.prompts([""]),
            **settings,
        )[0]

    def draw(self, scenes: list[Scene], way: Way, seed: int) -> Tensor:
        """Pictures [B, 3, SIZE, SIZE] of those prompts, BATCH at a time, each batch from a seed of its own."""
        return torch.cat([self.batch(rows, way, noise) for rows, noise in batches(scenes, seed)])

    def batch(self, scenes: list[Scene], way: Way, noise: core.Noise_RandomNoise) -> Tensor:
        empty = {"samples": torch.zeros(len(scenes), 16, SIZE // 8, SIZE // 8)}
        euler = core.KSamplerSelect.execute("euler")[0]
        result = core.SamplerCustomAdvanced.execute(noise, self.guider(scenes, way), euler, self.sigmas, empty)[0]
        return self.general.decode(result["samples"])

    def masks(self, scenes: list[Scene], way: Way, pictures: Tensor, noise) -> list[Tensor]:
        """The expert's area at STEPS_SHOWN, on those pictures under that noise."""
        latent = {"samples": self.general.encode(pictures)}
        return [
            SaliencyMap.execute(
                self.guider(scenes, way), step, 1, latent_image=latent, sigmas=self.sigmas, noise=noise
            )[0]
            for step in STEPS_SHOWN
        ]


def batches(scenes: list[Scene], seed: int) -> Iterator[tuple[list[Scene], core.Noise_RandomNoise]]:
    for start in range(0, len(scenes), BATCH):
        yield scenes[start : start + BATCH], core.Noise_RandomNoise(seed + start)


def shares(pictures: Tensor, scenes: list[Scene]) -> dict[str, float]:
    """Subject: texture, shape and colour as asked for. Scene: position and background."""
    readings: list[Reading] = judge(pictures, TEXTURES + NOVEL_TEXTURES)[0]
    rows = []
    for reading, scene in zip(readings, scenes, strict=True):
        same = {
            name: getattr(reading, name) == getattr(scene, name)
            for name in ("shape", "colour", "texture", "position", "background")
        }
        rows.append(
            {
                **same,
                "subject": same["texture"] and same["shape"] and same["colour"],
                "scene": same["position"] and same["background"],
            }
        )
    table = {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}
    table["both"] = sum(row["subject"] and row["scene"] for row in rows) / len(rows)
    return table


def prompts(count: int, seed: int, split: str = "held_out") -> list[Scene]:
    """Scenes of which each model knows a part: the expert the textures, the general model the backgrounds."""
    return sample_scenes(count, seed, split=split, textures=NOVEL_TEXTURES, backgrounds=OUTDOORS)


@torch.inference_mode()
def write(docs: Path) -> list[str]:
    """Write the page and its pictures; returns the bars that were missed."""
    fusion, scenes = Fusion(), prompts(PROMPTS, 1001)
    pictures = {name: fusion.draw(scenes, way, SEED) for name, way in tqdm(WAYS.items(), desc="ways to fuse")}
    tables = {name: shares(drawn, scenes) for name, drawn in pictures.items()}
    bars = judge_bars(tables)
    (docs / "saliency_fusion.md").write_text("\n".join(page(bars, tables)) + "\n")
    print("\n".join(page(bars, tables)))
    contact_sheet(fusion, scenes, pictures).save(docs / "saliency_fusion.webp")
    return bars.missed


def judge_bars(tables: dict[str, dict[str, float]]) -> Bars:
    bars = Bars("saliency_fusion")
    simpler = {name: table["both"] for name, table in tables.items() if WAYS[name].share is not None}
    best = max(simpler, key=simpler.__getitem__)
    ahead = tables[CHOSEN]["both"] - simpler[best]
    bars.add(
        f"subject and scene both right: lead of saliency ({WAYS[CHOSEN].label}) over the best row without a mask ({WAYS[best].label})",
        "more than 0 points",
        f"{100 * ahead:.0f} points",
        ahead > 0,
    )
    bars.add(
        "the same, compared with our aim", f"at least {100 * AIM:.0f} points", f"{100 * ahead:.0f} points", ahead >= AIM
    )
    return bars


def page(bars: Bars, tables: dict[str, dict[str, float]]) -> list[str]:
    return [
        "# Saliency Fusion: measured results",
        "",
        "All figures were measured on the CPU with the [toy models](toy.md), small models trained on drawn scenes. "
        "They are not figures of Stable Diffusion: full-size models can behave differently. `make evidence "
        "PART=saliency_fusion` measures them again and writes this page.",
        "",
        f"{PROMPTS} held-out prompts of which each model knows only a part, such as \u201c{caption(prompts(1, 1001)[0])}\u201d. "
        "The expert's prompt leaves out the background. The general model knows sunsets, meadows and nights, but "
        f"not the words {', '.join(NOVEL_TEXTURES[:-1])} and {NOVEL_TEXTURES[-1]}. The expert was trained from the "
        "general model, on such textures in front of white, gray and black, with captions that do not mention the "
        f"background. All rows: {STEPS} steps of `euler` on `ddim_uniform`, guidance {CFG} for both models, the same "
        "noise.",
        "",
        "Subject: fraction of the pictures with texture, shape and colour as in the prompt. Scene: with position "
        "and background as in the prompt. A program, the judge, reads them from the pictures. It knows all seven "
        "textures.",
        "",
        *bars.table(),
        "| | subject | scene | **both** | shape | colour | texture | position |",
        "|---|---|---|---|---|---|---|---|",
        *(
            f"| {WAYS[name].label} | "
            + " | ".join(
                f"{100 * table[key]:.0f} %"
                for key in ("subject", "scene", "both", "shape", "colour", "texture", "position")
            )
            + " |"
            for name, table in tables.items()
        ),
        "",
        TUNING,
        "",
        "![Results of the general model, the expert, the average and the fusion by saliency, and the expert's area "
        "over the steps](saliency_fusion.webp)",
    ]


def contact_sheet(fusion: Fusion, scenes: list[Scene], pictures: dict[str, Tensor]) -> Sheet:
    shown = ["general", "expert", "average", CHOSEN]
    headings = [
        "general model",
        "expert",
        "plain average",
        "by saliency",
        *(f"mask, step {step}" for step in STEPS_SHOWN),
    ]
    sheet = Sheet("Two models, one picture. White: the expert's area. Toy models.", headings)
    rows, noise = next(batches(scenes, SEED))
    masks = fusion.masks(rows, WAYS[CHOSEN], pictures[CHOSEN][:BATCH], noise)
    for i in range(SHOWN):
        row = [(pictures[name][i], caption(scenes[i]) if name == "general" else "") for name in shown]
        sheet.add([*row, *((mask[i].expand(3, -1, -1), "") for mask in masks)])
    return sheet
