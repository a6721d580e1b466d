"""unclip.md and its sheet: the toy's miniature DALL-E 2, measured."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from lab.evidence.bars import Bars
from lab.evidence.edits import held_out_edits
from lab.evidence.intervals import difference, mean, share
from lab.evidence.pages import JUDGED, claims, opening, save_page, table
from lab.evidence.sheet import Sheet
from lab.evidence.sheets import Cell, cell, rows_of_cells
from lab.evidence.unclip_models import ALIKE, PRIOR_CFG, UnCLIP, read_small, small
from lab.evidence.unclip_pictures import (
    CHANGES,
    MORPH,
    Again,
    Morphs,
    Moved,
    Opened,
    again,
    by_words,
    chosen_guidances,
    is_same,
    morphs,
)
from lab.evidence.unclip_texts import (
    GUIDANCES,
    MOST,
    PRIOR,
    SAMPLES,
    WAYS,
    Centres,
    Drawn,
    Prompt,
    Score,
    drawn,
    guidances,
    in_bits,
    with_interval,
)
from lab.world.foreign import plain, polygons
from lab.world.judge import judge
from lab.world.render import render
from lab.world.scenes import sample_scenes
from lab.world.train.decoder import EMBEDDING_DROPOUT, TEXT_DROPOUT

PART = "unclip"
SCENES = 30
TUNING_SEED, JUDGED_SEED, READ_SEED = 6001, 6002, 6003
TUNED = 0.3  # as many captions to choose constants with as this share of those that are judged
TUNING_SAMPLES = 4
SHOWN = 8  # pictures of a row of the sheet
UPSAMPLED = 40  # pictures; one takes about five seconds
MOST_CENTRED = 5  # scenes for the centres, for each caption that is judged


@torch.inference_mode()
def write(docs: Path, weights: Path, count: int) -> list[str]:
    """Writes the page and its sheet, of `count` captions and as many pictures; returns the bars that were missed."""
    world = UnCLIP.load(weights)
    few = max(2, round(TUNED * count))
    centres = Centres.of(world, 20 * -(-MOST_CENTRED * count // 20))
    tuning = Prompt.some(few, TUNING_SEED)
    tuned = {
        way: {cfg: drawn(world, centres, tuning, way, cfg, TUNING_SAMPLES).score for cfg in GUIDANCES} for way in WAYS
    }
    chosen = guidances(tuned)
    prompts = Prompt.some(count, JUDGED_SEED)
    told = {way: drawn(world, centres, prompts, way, cfg, SAMPLES) for way, cfg in chosen.items()}
    variation_cfg, diff_cfg = chosen_guidances(world, few, TUNING_SEED)
    edits = held_out_edits(count, JUDGED_SEED, CHANGES)
    opened = Opened.of(world, [edit.source for edit in edits])
    seen, between, moved = (
        again(world, opened, variation_cfg),
        morphs(world, edits),
        by_words(world, edits, opened, diff_cfg),
    )
    bars = judge_bars(told, seen)
    lines = [
        *opening("unCLIP", PART),
        JUDGED,
        "",
        *how(world, centres, count, few),
        *verdict(bars, between, moved),
        *bars.table(),
        *of_texts(tuned, told, chosen, count),
        at_full_size(world, prompts, told[PRIOR]),
        "",
        *of_pictures(seen, between, moved, diff_cfg),
        "![Pictures of one caption, variations, morphs, edits by words, with the judge's word](unclip.webp)",
    ]
    save_page(docs, PART, lines)
    contact_sheet(world, prompts, told, opened, seen, between, moved).save(docs / f"{PART}.webp")
    return bars.missed


def how(world: UnCLIP, centres: Centres, count: int, few: int) -> list[str]:
    scenes = sample_scenes(2 * count, READ_SEED, split="held_out")
    pictures = torch.cat([small(render(scenes[i : i + 20]).pictures) for i in range(0, len(scenes), 20)])
    right = sum(is_same(reading, scene) for reading, scene in zip(read_small(pictures), scenes, strict=True))
    foreign = small(torch.cat([make(count, READ_SEED) for make in (plain, polygons)]))
    refused = sum(not reading.is_known for reading in read_small(foreign))
    return [
        "A CLIP pair, a prior, a decoder of 32 x 32 pixels and two upsamplers, in the published layouts. The decoder's pictures are read enlarged by "
        f"interpolation; a thing counts as known if the likeness of its edges is {ALIKE:g}, more than of pictures of full size, because these edges are "
        f"soft. So read, {share(right, len(scenes))} of {len(scenes)} held-out renders, made as small as the decoder's pictures, are wholly right, and "
        f"{share(refused, len(foreign))} of {len(foreign)} plain pictures and pictures of polygons are refused.",
        "",
        f"Every guidance was chosen on {few} other captions and pictures. Prior and decoder: {world.steps} steps; guidance of the prior: {PRIOR_CFG:g}. The "
        f"centres of the embeddings of texts and of pictures lie {centres.gap:.2f} apart, where both have length 1.",
        "",
    ]


def at_full_size(world: UnCLIP, prompts: Sequence[Prompt], made: Drawn) -> str:
    """One picture of each of the first captions, through both upsamplers, by the judge's own bar."""
    some = list(prompts)[:UPSAMPLED]
    readings = judge(world.upsample(made.pictures[: len(some) * SAMPLES : SAMPLES], "upsampling"))
    right = sum(prompt.seen(reading) is not None for prompt, reading in zip(some, readings, strict=True))
    known = sum(reading.is_known for reading in readings)
    return (
        f"Of the prior's pictures, one of each of {len(some)} captions was brought to 128 x 128 by both upsamplers. By the judge's own bar it is known in "
        f"{share(known, len(some))}, and all that is said is right in {share(right, len(some))}."
    )


def judge_bars(told: dict[str, Drawn], seen: Sequence[Again]) -> Bars:
    bars = Bars(PART)
    prior = told[PRIOR].score
    for way in list(WAYS)[:-1]:
        ahead, low, high = prior.ahead(told[way].score)
        gain = difference(prior.fidelity, told[way].score.fidelity)
        bars.add(
            f"bits that the prior adds to what a caption leaves unsaid, over {way}",
            "interval above 0",
            f"{with_interval(ahead, low, high, '+')}, fidelity {gain}",
            low > 0,
        )
    inverted, random, _ = seen
    gain = inverted.psnr - random.psnr
    bars.add("gain of the inverted x_T over a random one", "more than 0 dB", mean(gain, 1, "+"), float(gain.mean()) > 0)
    return bars


def verdict(bars: Bars, between: Morphs, moved: Sequence[Moved]) -> list[str]:
    *prior, gain = (met for *_, met in bars.rows)
    both = [a and b for a, b in zip(moved[-1].done, moved[-1].kept, strict=True)]
    return claims(
        {
            f"at equal fidelity a prior adds bits over {way}": met
            for way, met in zip(list(WAYS)[:-1], prior, strict=True)
        }
        | {
            "a picture's own x_T gives it back": gain,
            "most morphs change what differs once": 2 * sum(between.once) > len(between.once),
            f"at theta {moved[-1].theta:g} most edits by words are done and keep the rest": 2 * sum(both) > len(both),
        }
    )


def of_texts(
    tuned: dict[str, dict[float, Score]], told: dict[str, Drawn], chosen: dict[str, float], count: int
) -> list[str]:
    names = ["fidelity", "**bits in all**", *MOST]
    rows = [
        [way, f"{chosen[way]:g}", mean(100 * made.score.fidelity, 0), *made.score.text()] for way, made in told.items()
    ]
    most = ["the most there can be", "", "", f"{sum(MOST.values()):.2f}", *(f"{bits:.2f}" for bits in MOST.values())]
    sweep = [
        [way, *(f"{100 * score.mean:.0f} %, {in_bits(score.bits().sum())}" for score in scores.values())]
        for way, scores in tuned.items()
    ]
    return [
        "## What a prior is worth",
        "",
        "The comparison of the paper (section 5.1). The decoder gets the caption in every row; the rows differ in the image embedding. The text's embedding "
        "is scaled to the mean length of those of pictures; moved: shifted by the difference of the centres before. Each caption names both things, one "
        f"colour, and the style or the background. {count} captions, {SAMPLES} pictures each. Fidelity: percent of the pictures in which all that is said is "
        "right. Bits: collision entropy of what is not said, in the pictures in which all that is said is right. Intervals are of captions drawn anew.",
        "",
        *table(["image embedding", "guidance", *names], [*rows, most]),
        f"By the caption alone, without an embedding, the decoder drew in {100 * EMBEDDING_DROPOUT * (1 - TEXT_DROPOUT):.0f} % of its training, as published.",
        "",
        "The guidance of the prior's row is the one with the highest fidelity, those of the others have the fidelity nearest to it, on the tuning captions. "
        "Fidelity and bits there, by guidance:",
        "",
        *table(["image embedding", *(f"{cfg:g}" for cfg in GUIDANCES)], sweep),
    ]


def of_pictures(seen: Sequence[Again], between: Morphs, moved: Sequence[Moved], cfg: float) -> list[str]:
    count = len(between.edits)
    rows = [
        [
            made.label,
            mean(made.psnr, 1),
            share(sum(made.same), count),
            mean(made.moved, 1) if len(made.moved) > 1 else "too few",
        ]
        for made in seen
    ]
    by_change = {
        change: [ok for edit, ok in zip(between.edits, between.once, strict=True) if edit.change == change]
        for change in CHANGES
    }
    diffs = [
        [f"{m.theta:g}", *(share(sum(v), count) for v in (m.done, m.kept, [a and b for a, b in zip(m.done, m.kept, strict=True)]))]
        for m in moved
    ]  # fmt: skip
    return [
        "## Reconstruction and variations",
        "",
        f"{count} held-out pictures, from embedding and x_T, without a text. x_T is found by DDIM Invert (`fixed_point`, 3 iterations). Same: things, "
        "colours, style and background are read as in the picture. Moved: how far things are from where they were, in pixels of a "
        "picture of 128, where they are the same.",
        "",
        *table(["", "PSNR, dB", "same", "moved"], rows),
        "## Morphs",
        "",
        f"{count} pairs of pictures that differ in the style, in one colour or in one kind, at the thetas {', '.join(map(str, MORPH))}, guidance 1. Once: the "
        "judge reads the first picture's value up to some theta and the second's from there on, nothing else in between.",
        "",
        *table(["all", *by_change], [[share(sum(v), len(v)) for v in (between.once, *by_change.values()) if v]]),
        "## Edits by words",
        "",
        "unCLIP Embedding Text Diff moves the embedding from the picture's caption towards the caption with one word changed. The picture is drawn from its "
        f"own x_T without a text, at guidance {cfg:g}. Kept: all that the words leave alone is read as before.",
        "",
        *table(["theta", "done", "rest kept", "both"], diffs),
    ]


def contact_sheet(
    world: UnCLIP,
    prompts: Sequence[Prompt],
    told: dict[str, Drawn],
    opened: Opened,
    seen: Sequence[Again],
    between: Morphs,
    moved: Sequence[Moved],
) -> Sheet:
    rows: list[list[Cell]] = []
    for way, made in told.items():
        large = world.upsample(made.pictures[:SHOWN])
        text = f"{prompts[0].text}: {way.strip('*')}"
        rows.append(
            [
                cell(picture, reading, prompts[0].seen(reading) is not None, text if i == 0 else "")
                for i, (picture, reading) in enumerate(zip(large, made.readings, strict=False))
            ]
        )
    columns = min(SHOWN, len(opened.scenes))
    originals = world.upsample(opened.small[:columns])
    rows.append([(picture, "held-out picture") for picture in originals])
    for made in (seen[0], seen[-1]):
        large = world.upsample(made.pictures[:columns])
        rows.append([cell(p, r, same, made.label) for p, r, same in zip(large, made.readings, made.same, strict=False)])
    for pictures, readings, edit in list(zip(between.pictures, between.readings, between.edits, strict=True))[:3]:
        large = world.upsample(pictures)
        rows.append([cell(p, r, None, edit.words) for p, r in zip(large, readings, strict=True)])
    for made in moved:
        large = world.upsample(made.pictures[:columns])
        labels = [f"{edit.words}, theta {made.theta:g}" for edit in between.edits]
        rows.append(
            [cell(p, r, d, label) for p, r, d, label in zip(large, made.readings, made.done, labels, strict=False)]
        )
    return rows_of_cells("A miniature DALL-E 2: + and - say whether what was asked is read", [], rows)
