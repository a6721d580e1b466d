"""docs/judge.md: how often the judge is right about renders it has not been set on, and what it lets through."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch
from lab.evidence.bars import Bars
from lab.evidence.sheet import Sheet
from lab.world import foreign
from lab.world.captions import phrase
from lab.world.judge import ALIKE, PICTURE, THING, VISIBLE, Reading, judge, mask_iou
from lab.world.kinds import KINDS
from lab.world.render import Rendering, render
from lab.world.scenes import Scene, Thing, sample_scenes
from lab.world.styles import STYLES
from scipy.stats import binomtest
from torch import Tensor

BATCH = 20
SEED = 4242
FOREIGN: dict[str, Callable[[int, int], Tensor]] = {
    "noise": foreign.noise,
    "one grey or colour": foreign.plain,
    "circles, stars and hearts before stripes": foreign.shapes,
    "polygons and stars before the world's backgrounds": foreign.polygons,
    "letters before the world's backgrounds": foreign.letters,
}
BAR, REJECTED = 98, 99  # percent
MOST = 50  # milliseconds of processor time a picture


@dataclass(frozen=True)
class Compared:
    """A thing of a scene and what the judge sees there."""

    scene: Scene
    thing: Thing
    kind: bool
    colour: bool
    iou: float


def write(docs: Path, count: int, through_autoencoder: Callable[[Tensor], Tensor]) -> list[str]:
    """Of `count` scenes, and half as many foreign pictures of each sort; returns the goals that were missed."""
    scenes = sample_scenes(count, SEED, split="held_out")
    started = time.process_time()
    drawn = [render(scenes[i : i + BATCH]) for i in range(0, count, BATCH)]
    rate = count / (time.process_time() - started)
    rendering = Rendering(
        *(torch.cat([getattr(part, name) for part in drawn]) for name in ("pictures", "whole", "visible"))
    )
    pictures = {
        "as rendered": rendering.pictures,
        f"blurred and noisy, {foreign.DECIBELS:.0f} dB": foreign.blurred_and_noisy(rendering.pictures, SEED),
        "JPEG of quality 60": foreign.jpeg(rendering.pictures, 60),
        "through the toy's autoencoder": through_autoencoder(rendering.pictures),
    }
    judge(rendering.pictures[:BATCH])  # draws what it compares with, once
    timed = {name: [_timed(part) for part in shown.split(BATCH)] for name, shown in pictures.items()}
    readings = {name: [reading for found, _ in parts for reading in found] for name, parts in timed.items()}
    spent = {name: median(each for _, each in parts) for name, parts in timed.items()}
    bars = Bars("judge")
    lines = [
        "# The judge of the toy world: measured results",
        "",
        "The toy world is [drawn by a renderer](world.webp), its models are [trained on the renders](toy.md), and a judge reads what they draw. `make world` "
        "measures the figures again and writes this page.",
        "The judge fits the renderer to a picture: it finds the background, tries every kind of thing at many sizes and angles, and answers with what "
        "explains the picture best. Models draw outlines that are a little off, which a comparison pixel by pixel punishes more than another shape: so "
        "what is drawn and what is seen are compared by where their edges run. If they run too differently, the judge answers that the picture shows "
        "nothing of this world.",
        "",
        f"{count} held-out scenes of two things, 128x128; no threshold was set on them. Percent with 95 % intervals (Wilson). IoU: of the visible part "
        "of a thing, as the judge fits it and as it was drawn. Whole: style, background, both kinds and both colours are right, and the judge sees "
        "nothing else.",
        "",
        "| pictures | kinds | colours | style | background | whole | IoU, mean | IoU, worst 5 % |",
        "|---|---|---|---|---|---|---|---|",
    ]
    compared = {name: compare(scenes, rendering.visible, found) for name, found in readings.items()}
    for name, found in readings.items():
        things = compared[name]
        right = {
            "kinds": [c.kind for c in things],
            "colours": [c.colour for c in things],
            "styles": [r.style == s.style for r, s in zip(found, scenes, strict=True)],
            "background": [r.background == s.background for r, s in zip(found, scenes, strict=True)],
            "whole": [is_right(r, s) for r, s in zip(found, scenes, strict=True)],
        }
        iou = torch.tensor([c.iou for c in things])
        cells = [percent(sum(values), len(values)) for values in right.values()]
        lines.append(f"| {name} | {' | '.join(cells)} | {iou.mean():.3f} | {iou.quantile(0.05):.3f} |")
        for part in ("kinds", "colours", "styles"):
            share = 100 * sum(right[part]) / len(right[part])
            bars.add(f"{part}, {name}", f"at least {BAR} %", f"{share:.1f} %", share >= BAR)
    plain = next(iter(spent.values()))
    bars.add("processor time a picture, as rendered", f"at most {MOST} ms", f"{plain:.0f} ms", plain <= MOST)
    lines += [
        "",
        "## Pictures of something else",
        "",
        f"{count // 2 // BATCH * BATCH} pictures of each sort.",
        "",
        "| pictures | refused | no thing is seen |",
        "|---|---|---|",
    ]
    wrong: list[tuple[Tensor, str]] = []
    for name, make in FOREIGN.items():
        parts = [make(BATCH, SEED + k) for k in range(count // 2 // BATCH)]
        found = [reading for part in parts for reading in judge(part)]
        wrong += [(p, f"{name}: {words(r)}") for p, r in zip(torch.cat(parts), found, strict=True) if r.is_known]
        refused, empty = sum(not r.is_known for r in found), sum(not r.things for r in found)
        lines.append(f"| {name} | {percent(refused, len(found))} | {percent(empty, len(found))} |")
        bars.add(
            f"{name}: refused",
            f"at least {REJECTED} %",
            f"{100 * refused / len(found):.1f} %",
            refused >= REJECTED / 100 * len(found),
        )
    lines += [
        "",
        f"Refused: the judge explains less than {100 * PICTURE:.0f} % of the picture; or it sees no thing; or of a thing the edges run less than "
        f"{ALIKE:g} alike (the cosine of their strengths by direction and place), less than {100 * THING:.0f} % of its area is explained, or "
        f"the other thing hides more than {100 * (1 - VISIBLE):.0f} % of it. These limits were set on other renders, on other foreign pictures and on "
        "samples of the general model.",
        "",
        f"The judge takes {', '.join(f'{each:.0f} ms ({name})' for name, each in spent.items())} of processor time a picture, median of batches of {BATCH}; "
        f"the renderer draws {rate:.0f} scenes a second.",
        "",
        *bars.table(),
        "![What the judge answers for renders](judge.webp)",
        "",
        "## By kind and style",
        "",
        "Blurred and noisy renders: how many kinds the judge reads correctly.",
        "",
        f"| kind | things | {' | '.join(STYLES)} |",
        f"|---|---|{'---|' * len(STYLES)}",
    ]
    noisy = list(compared.values())[1]
    for kind in KINDS:
        own = [c for c in noisy if c.thing.kind == kind]
        by_style = [[c.kind for c in own if c.scene.style == style] for style in STYLES]
        lines.append(f"| {kind} | {len(own)} | {' | '.join(f'{sum(v)} of {len(v)}' for v in by_style)} |")
    (docs / "judge.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))
    _sheet(scenes, list(pictures.values())[1], list(readings.values())[1], wrong).save(docs / "judge.webp")
    return bars.missed


def _timed(pictures: Tensor) -> tuple[list[Reading], float]:
    """What the judge sees, and its milliseconds of processor time a picture."""
    started = time.process_time()
    found = judge(pictures)
    return found, 1000 * (time.process_time() - started) / len(pictures)


def compare(scenes: Sequence[Scene], visible: Tensor, readings: Sequence[Reading]) -> list[Compared]:
    """Each thing with what is seen at its place: the mask that it shares most with."""
    found = []
    for row, (scene, reading) in enumerate(zip(scenes, readings, strict=True)):
        for depth, thing in enumerate(scene.things):
            shared = [float(mask_iou(seen.mask, visible[row, depth])) for seen in reading.things]
            best = max(range(len(shared)), key=shared.__getitem__, default=None)
            if best is None or shared[best] < 0.1:
                found.append(Compared(scene, thing, False, False, 0.0))
            else:
                seen = reading.things[best].thing
                found.append(Compared(scene, thing, seen.kind == thing.kind, seen.colour == thing.colour, shared[best]))
    return found


def is_right(reading: Reading, scene: Scene) -> bool:
    seen = sorted((s.thing.kind, s.thing.colour) for s in reading.things)
    wanted = sorted((thing.kind, thing.colour) for thing in scene.things)
    return (reading.style, reading.background, reading.unknown, seen) == (scene.style, scene.background, 0, wanted)


def percent(right: int, count: int) -> str:
    interval = binomtest(right, count).proportion_ci(method="wilson")
    return f"{100 * right / count:.1f} ({100 * interval.low:.1f} to {100 * interval.high:.1f})"


def words(reading: Reading) -> str:
    if reading.style is None:
        return "none of the world's"
    things = [f"{s.thing.colour} {s.thing.kind}" for s in reading.things]
    things += ["unknown"] * reading.unknown
    return f"{', '.join(things) or 'nothing'}; {reading.background}, {reading.style}"


def _sheet(
    scenes: Sequence[Scene], pictures: Tensor, readings: Sequence[Reading], wrong: list[tuple[Tensor, str]]
) -> Sheet:
    sheet = Sheet(
        "What the judge says of blurred and noisy renders: the first, then those it is wrong about, then foreign pictures it lets through"
    )
    missed = [i for i, (r, s) in enumerate(zip(readings, scenes, strict=True)) if not is_right(r, s)]

    def cell(i: int) -> tuple[Tensor, str]:
        truth = ", ".join(phrase(scenes[i], k) for k in range(len(scenes[i].things)))
        return pictures[i], words(readings[i]) + (f" (is: {truth})" if i in missed else "")

    for some in ([cell(i) for i in range(8)], [cell(i) for i in missed[:8]], wrong[:8]):
        if some:
            sheet.add(some)
    return sheet
