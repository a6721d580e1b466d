"""docs/prompt_to_prompt.md: one word of a caption changed; what is done and what stays, beside plain sampling and Plug-and-Play."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import cycle, islice
from pathlib import Path

import torch
import torch.nn.functional as F
from evidence.bars import Bars
from evidence.sheet import Sheet
from evidence.world import World
from palimpsest.nodes.diffusion.trajectory import Conditioning, Trajectory
from palimpsest.nodes.inversion.noise import TrajectoryNoise
from palimpsest.nodes.null_text.nodes import NullTextOptimize
from palimpsest.nodes.prompt_to_prompt.nodes import EncodePromptEdit
from palimpsest.nodes.prompt_to_prompt.prompt_edit import PromptEdit
from torch import Tensor
from toy.judge import Reading, judge
from toy.scenes import Scene, caption, edited, render, sample_scenes
from tqdm import tqdm

SCENES, STEPS = 100, 50
SWEPT, SWEEP_STEPS = 24, 20  # scenes and steps of the sweep, on scenes of their own
OPTIMISED, OPTIMISED_STEPS = 24, 20  # of the table of negatives
BATCH = 25
CFG, PUBLISHED_CFG = 3.0, 7.5
ATTRIBUTES = ("colour", "shape", "background")
MARGIN = 2  # pixels around the object's outline that are not counted
DONE_BAR, KEPT_BAR = 0.85, 28.0
SHOWN = 9


@dataclass(frozen=True)
class Edit:
    source: Scene
    target: Scene
    attribute: str

    @property
    def words(self) -> str:
        return f"{getattr(self.source, self.attribute)} to {getattr(self.target, self.attribute)}"


def no_words(edit: Edit) -> str:
    return ""


def object_words(edit: Edit) -> str:
    """What an artist names who wants the object alone to change; nothing where the background is to change."""
    if edit.attribute == "background":
        return ""
    return ", ".join(f"{scene.colour} {scene.shape}" for scene in (edit.source, edit.target))


def changed_words(edit: Edit) -> str:
    if edit.attribute == "background":
        return ", ".join(f"{scene.background} background" for scene in (edit.source, edit.target))
    return object_words(edit)


@dataclass(frozen=True)
class Windows:
    """Settings of PAL_PromptToPrompt."""

    cross_end: float = 0.8
    self_end: float = 0.4
    blend_words: Callable[[Edit], str] = no_words
    blend_threshold: float = 0.3

    def __str__(self) -> str:
        blend = {no_words: "off", object_words: "object", changed_words: "object or background"}[self.blend_words]
        return f"{self.cross_end} | {self.self_end} | {blend} | {'' if blend == 'off' else self.blend_threshold}"


DEFAULTS = Windows()
CHOSEN = Windows(0.4, 0.4, object_words)
SWEEP = (
    Windows(0.0, 0.0),
    DEFAULTS,
    Windows(0.8, 0.4, object_words),
    Windows(0.4, 0.4, object_words),
    Windows(0.4, 0.4, changed_words),
    Windows(0.2, 0.2, object_words),
    Windows(0.2, 0.2, object_words, 0.5),
)
NEGATIVES = ("empty text", "negative_prompt", "fast", "null_text")


@dataclass(frozen=True)
class Group:
    """Edits whose captions have their words in the same columns: one PromptEdit is right for them all."""

    world: World
    rows: list[int]
    edits: list[Edit]
    latent: Tensor
    source: Conditioning
    target: Conditioning
    trajectory: Trajectory
    noise: TrajectoryNoise

    def prompt_edit(self, blend_words: Callable[[Edit], str]) -> PromptEdit:
        edit = self.edits[0]
        texts = caption(edit.source), caption(edit.target)
        return EncodePromptEdit.execute(self.world.clip, *texts, "auto", "", blend_words(edit))[2]

    def steered(self, windows: Windows) -> World:
        ends = windows.cross_end, windows.self_end
        edit = self.prompt_edit(windows.blend_words)
        return self.world.prompt_to_prompt(
            self.trajectory, self.source, edit, *ends, blend_threshold=windows.blend_threshold
        )

    def negative(self, method: str, cfg: float) -> Conditioning:
        empty = self.world.prompts([""])
        if method == "empty text":
            return empty
        effort = (10, 1e-2, 1e-5)  # the node's defaults
        options = (self.trajectory, cfg, *effort, method, "code")
        return NullTextOptimize.execute(self.world.model, self.source, empty, *options)[0]

    def sample(self, world: World, cfg: float, negative: Conditioning | None = None) -> Tensor:
        sigmas = self.trajectory.sigmas
        return self.world.decode(world.sample(self.noise, self.target, cfg, sigmas, self.latent, negative))


@dataclass(frozen=True)
class Edits:
    """Edits, their sources opened in the model, and what results are held against."""

    edits: list[Edit]
    groups: list[Group]
    unedited: Tensor  # [N, 3, H, W], the autoencoder's pictures of the sources

    @classmethod
    def open(cls, world: World, edits: list[Edit], steps: int) -> Edits:
        images, _ = render([edit.source for edit in edits])
        layouts: dict[tuple, list[int]] = defaultdict(list)
        for i, edit in enumerate(edits):
            texts = caption(edit.source), caption(edit.target)
            found = EncodePromptEdit.execute(world.clip, *texts, "auto", "", changed_words(edit))[2]
            layouts[found.source.words, found.target.words, found.source_blend, found.target_blend].append(i)
        batches = [rows[k : k + BATCH] for rows in layouts.values() for k in range(0, len(rows), BATCH)]
        groups = []
        for rows in tqdm(batches, desc="inversions"):
            chosen, latent = [edits[i] for i in rows], world.encode(images[rows])
            source = world.prompts([caption(edit.source) for edit in chosen])
            target = world.prompts([caption(edit.target) for edit in chosen])
            opened = world.invert(latent, source, world.sigmas(steps))
            groups.append(Group(world, rows, chosen, latent, source, target, *opened))
        return cls(edits, groups, world.decode(world.encode(images)))

    def each(self, draw: Callable[[Group], Tensor]) -> Score:
        images = torch.empty_like(self.unedited)
        for group in self.groups:
            images[group.rows] = draw(group)
        return self.score(images)

    def score(self, images: Tensor) -> Score:
        source, target = (render([getattr(edit, end) for edit in self.edits])[1] for end in ("source", "target"))
        behind = torch.tensor([edit.attribute == "background" for edit in self.edits])
        inside, outside = 1.0 - grown(1.0 - source, MARGIN), 1.0 - grown(torch.maximum(source, target), MARGIN)
        return Score(
            self.edits,
            images,
            judge(images)[0],
            masked_psnr(images, self.unedited, outside)[~behind],
            masked_psnr(images, self.unedited, 1.0 - torch.maximum(source, target))[~behind],
            masked_psnr(images, self.unedited, inside)[behind],
        )


def grown(masks: Tensor, pixels: int) -> Tensor:
    return F.max_pool2d(masks[:, None], 2 * pixels + 1, 1, pixels)[:, 0]


def masked_psnr(a: Tensor, b: Tensor, weights: Tensor) -> Tensor:
    """PSNR in dB of each picture [B, 3, H, W] where weights [B, H, W] count."""
    error = ((a - b).square().mean(1) * weights).sum((1, 2)) / weights.sum((1, 2))
    return -10 * error.clamp_min(1e-12).log10()


@dataclass(frozen=True)
class Score:
    edits: list[Edit]
    images: Tensor
    readings: list[Reading]
    outside: Tensor  # dB, edits of the object: what is kept of the background
    to_outline: Tensor  # the same without a margin
    inside: Tensor  # dB, edits of the background: what is kept of the object

    def done(self, attribute: str | None = None) -> float:
        """Share in which the judge finds the word that the prompt asks for."""
        pairs = [(e, r) for e, r in zip(self.edits, self.readings, strict=True) if attribute in (None, e.attribute)]
        return sum(getattr(r, e.attribute) == getattr(e.target, e.attribute) for e, r in pairs) / len(pairs)

    def as_prompted(self) -> float:
        names = ("shape", "colour", "texture", "position", "background")
        pairs = zip(self.edits, self.readings, strict=True)
        return sum(all(getattr(r, n) == getattr(e.target, n) for n in names) for e, r in pairs) / len(self.edits)

    def row(self, label: str) -> str:
        shares = [self.done(), *(self.done(attribute) for attribute in ATTRIBUTES), self.as_prompted()]
        kept = [self.outside.mean(), self.outside.median(), self.to_outline.mean(), self.inside.mean()]
        cells = [f"{100 * share:.0f} %" for share in shares] + [f"{float(value):.1f}" for value in kept]
        return f"| {label} | {' | '.join(cells)} |"


HEADER = "edit done | colour | shape | background | all five | background kept, mean | median | to the outline | object kept |"


def held_out_edits(count: int, seed: int) -> list[Edit]:
    rng = random.Random(seed)
    scenes = sample_scenes(count, seed, split="held_out")
    return [Edit(s, edited(s, a, rng), a) for s, a in zip(scenes, islice(cycle(ATTRIBUTES), count), strict=True)]


def compare(world: World) -> dict[str, Score]:
    edits = Edits.open(world, held_out_edits(SCENES, 600), STEPS)
    ways: dict[str, Callable[[Group], World]] = {
        "chosen": lambda group: group.steered(CHOSEN),
        "no blend": lambda group: group.steered(replace(CHOSEN, blend_words=no_words)),
        "defaults": lambda group: group.steered(DEFAULTS),
        "plain": lambda group: world,
        "plug and play": lambda group: world.plug_and_play(group.trajectory, 0.8, 0.5),
    }
    scores = {
        name: edits.each(lambda group, way=way: group.sample(way(group), CFG))
        for name, way in tqdm(ways.items(), desc="methods")
    }
    targets, _ = render([edit.target for edit in edits.edits])
    return scores | {
        "target": edits.score(world.decode(world.encode(targets))),
        "unedited": edits.score(edits.unedited),
    }


def sweep(world: World) -> dict[Windows, Score]:
    edits = Edits.open(world, held_out_edits(SWEPT, 601), SWEEP_STEPS)
    return {
        windows: edits.each(lambda group, windows=windows: group.sample(group.steered(windows), CFG))
        for windows in tqdm(SWEEP, desc="windows")
    }


def negatives(world: World) -> dict[tuple[float, str], Score]:
    edits = Edits.open(world, held_out_edits(SCENES, 600)[:OPTIMISED], OPTIMISED_STEPS)
    return {
        (cfg, method): edits.each(
            lambda group, cfg=cfg, method=method: group.sample(group.steered(CHOSEN), cfg, group.negative(method, cfg))
        )
        for cfg in tqdm((CFG, PUBLISHED_CFG), desc="guidance")
        for method in NEGATIVES
    }


@torch.inference_mode()
def write(docs: Path) -> list[str]:
    """Write the page and its contact sheet; returns the bars that were missed."""
    world = World.load()
    return publish(docs, compare(world), sweep(world), negatives(world))


def publish(
    docs: Path, scores: dict[str, Score], swept: dict[Windows, Score], optimised: dict[tuple[float, str], Score]
) -> list[str]:
    bars = Bars("prompt_to_prompt")
    chosen = scores["chosen"]
    kept = float(chosen.outside.mean())
    bars.add(
        "edit judged done",
        f"at least {100 * DONE_BAR:.0f} %",
        f"{100 * chosen.done():.0f} %",
        chosen.done() >= DONE_BAR,
    )
    bars.add(
        "background outside the object kept, mean of the pictures' PSNR",
        f"at least {KEPT_BAR:.0f} dB",
        f"{kept:.1f} dB",
        kept >= KEPT_BAR,
    )
    lines = page(scores, swept, optimised, bars)
    (docs / "prompt_to_prompt.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))
    contact_sheet(scores).save(docs / "prompt_to_prompt.png")
    return bars.missed


def page(
    scores: dict[str, Score], swept: dict[Windows, Score], optimised: dict[tuple[float, str], Score], bars: Bars
) -> list[str]:
    chosen = scores["chosen"]
    kinds = ", ".join(f"{kind} {sum(e.attribute == kind for e in chosen.edits)}" for kind in ATTRIBUTES)
    ends = f"cross_end {CHOSEN.cross_end}, self_end {CHOSEN.self_end}"
    names = {
        "chosen": f"**Prompt-to-Prompt, {ends}, local blend on the object's words**",
        "no blend": f"Prompt-to-Prompt, {ends}, no local blend",
        "defaults": f"Prompt-to-Prompt, the node's defaults ({DEFAULTS.cross_end}, {DEFAULTS.self_end}), no local blend",
        "plain": "plain prompt change from the inverted noise",
        "plug and play": "Plug-and-Play (0.8/0.5)",
        "target": "*true renders of the edited scenes, through the autoencoder*",
    }
    rule = "|---" * 10 + "|"
    return [
        "# Prompt-to-Prompt, measured",
        "",
        "These are figures of the toy model, not of Stable Diffusion. `make evidence` writes this page "
        "(this part alone: `python3 tests/host/provision.py tests/evidence prompt_to_prompt`).",
        "",
        f"{len(chosen.edits)} held-out scenes, 128x128, one word of the caption changed ({kinds}). Source: inverted with its own "
        f"caption by `fixed_point`, 5 iterations. All methods: {STEPS} steps of `ddim_uniform`, stock `euler`, guidance {CFG} (the "
        "toy model draws best at 2 to 3, see [its own page](toy.md)), the empty text as negative.",
        "",
        "Edit done: the judge finds the word that the prompt asks for. All five: shape, colour, texture, position and background "
        "as in the prompt. Kept: PSNR in dB against the unedited source as the autoencoder gives it back. Background kept: edits of "
        "colour and shape, outside the true mask of the object before and after the edit; object kept: edits of the background, "
        f"inside the object's mask. {MARGIN} pixels along the outline are left out of both, because a latent pixel covers 8 and the "
        "autoencoder blurs the object's colour over its outline; the column to the outline leaves out none.",
        "",
        *bars.table(),
        f"| method | {HEADER}",
        rule,
        *(scores[name].row(label) for name, label in names.items()),
        "",
        f"The row in italics is the most that a perfect edit could keep. The judge takes {100 * scores['unedited'].done():.0f} % of "
        "the unedited sources for edited.",
        "",
        "![Sources and results of each method](prompt_to_prompt.png)",
        "",
        "## What the windows do",
        "",
        f"{SWEPT} other held-out scenes, {SWEEP_STEPS} steps, guidance {CFG}. The setting of the first table was chosen here. Blend: "
        "the words named for the local blend; for an edit of the background `object` names none.",
        "",
        f"| cross_end | self_end | blend | threshold | {HEADER}",
        "|---" * 13 + "|",
        *(score.row(str(windows)) for windows, score in swept.items()),
        "",
        "## The negative",
        "",
        f"The first {OPTIMISED} of the 100 scenes, {OPTIMISED_STEPS} steps, the setting of the first table; negative: the empty text, or "
        "what `PAL_NullTextOptimize` makes of it by each of its methods, with its defaults, for this guidance.",
        "",
        f"| guidance and negative | {HEADER}",
        rule,
        *(
            score.row(f"{cfg}, {'' if method == 'empty text' else '`'}{method}{'' if method == 'empty text' else '`'}")
            for (cfg, method), score in optimised.items()
        ),
    ]


def contact_sheet(scores: dict[str, Score]) -> Sheet:
    """The first edits as they come."""
    names = {
        "chosen": "P2P, chosen",
        "no blend": "no blend",
        "defaults": "defaults",
        "plain": "plain",
        "plug and play": "PnP",
    }
    edits: Sequence[Edit] = scores["chosen"].edits
    sheet = Sheet(
        f"One word changed: Prompt-to-Prompt and what it is compared with, {STEPS} steps, guidance {CFG}. Toy model.",
        ["source", *names.values()],
    )
    for i, edit in enumerate(edits[:SHOWN]):
        cells = [(scores["unedited"].images[i], f"{edit.attribute}: {edit.words}")]
        sheet.add(cells + [(scores[name].images[i], "") for name in names])
    return sheet
