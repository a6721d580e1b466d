"""docs/unclip.md: the miniature DALL-E 2, measured."""

from __future__ import annotations

from pathlib import Path

import torch
from lab.evidence.bars import Bars
from lab.evidence.sheet import Sheet
from lab.evidence.unclip_tables import (
    CHANGED,
    DIFF_CFG,
    MORPH,
    THETA,
    THETAS,
    VARIATION_CFG,
    Again,
    Between,
    Moved,
    Opened,
    Row,
    Texts,
    again,
    between,
    by_words,
    from_texts,
)
from lab.evidence.unclip_world import CFG, PRIOR_CFG, STEPS, UnCLIP
from lab.toy.scenes import caption, sample_scenes
from lab.toy.unclip_scenes import ATTRIBUTES, MEDIUM, SMALL

SCENES = 200
PAIRS = 15  # for each attribute
RIGHT, SWITCHED, MOVED = 0.8, 0.8, 0.7
SHOWN, VARIATIONS = 4, 5
MORPHS = 4


@torch.inference_mode()
def write(docs: Path) -> list[str]:
    """Write the page and its pictures; returns the bars that were missed."""
    world = UnCLIP.load()
    texts = from_texts(world, sample_scenes(SCENES, 1003, split="held_out"))
    opened = Opened.of(world, sample_scenes(SCENES, 1004, split="held_out"))
    seen = again(world, opened)
    middle = between(world, sample_scenes(PAIRS * len(CHANGED), 1005, split="held_out"))
    moved = by_words(world, opened)
    bars = judge_bars(texts, seen, middle, moved)
    lines = page(bars, texts, seen, middle, moved)
    (docs / "unclip.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))
    contact_sheet(world, texts, opened, seen, middle, moved).save(docs / "unclip.webp")
    return bars.missed


def judge_bars(texts: Texts, seen: Again, middle: Between, moved: Moved) -> Bars:
    bars = Bars("unclip")
    prior = texts.rows["prior"].both

    def share(name: str, wanted: float, measured: float) -> None:
        bars.add(name, f"at least {wanted:.0%}", f"{measured:.1%}", measured >= wanted)

    share("(a) shape and colour right with the prior's embedding", RIGHT, prior)
    for name, label in (("text", "the text alone"), ("as image", "the text's embedding as if it were a picture's")):
        ahead = 100 * (prior - texts.rows[name].both)
        bars.add(f"(a) the prior's embedding before {label}", "more than 0 points", f"{ahead:.1f} points", ahead > 0)
    gain = float(seen.psnr["inverted"].mean() - seen.psnr["random"].mean())
    bars.add("(b) the inverted x_T before a random one", "more than 0 dB", f"{gain:.1f} dB", gain > 0)
    share("(d) morphs in which the attribute switches once", SWITCHED, middle.everywhere)
    share(f"(e) by words, theta {THETA}: the named attribute is changed", MOVED, moved.changed[THETA])
    return bars


def table(rows: list[Row], more: dict[str, list[str]] | None = None) -> list[str]:
    """more: further columns by their heading."""
    more = more or {}
    headings = ["", "**shape and colour**", "all five", *ATTRIBUTES, *more]
    lines = ["| " + " | ".join(headings) + " |", "|---" * len(headings) + "|"]
    for i, row in enumerate(rows):
        shares = [f"{100 * value:.1f} %" for value in (row.both, row.everything, *row.same.values())]
        lines.append("| " + " | ".join([row.label, *shares, *(column[i] for column in more.values())]) + " |")
    return [*lines, ""]


def page(bars: Bars, texts: Texts, seen: Again, middle: Between, moved: Moved) -> list[str]:
    varied = ["inverted", "varied"]
    psnr = {name: values.mean().item() for name, values in seen.psnr.items()}
    return [
        "# unCLIP, measured",
        "",
        "These are figures of a miniature DALL-E 2 trained on drawn scenes, not of Karlo. `make evidence` writes this page (this part alone: "
        "`make evidence PART=unclip`).",
        "",
        "A CLIP pair, a prior, a decoder and two upsamplers in the published layouts, trained by `make toy`; the nodes load and run them as "
        f"they would the public ones. The second upsampler's first weights were not the draw that `make toy` makes. "
        f"The decoder paints {SMALL} x {SMALL} pixels, the upsamplers {MEDIUM} x {MEDIUM} and {2 * MEDIUM} x "
        f"{2 * MEDIUM}. {SCENES} held-out scenes for each table unless it says otherwise; what a picture shows is read by tests/lab/toy/judge.py, "
        f"after plain enlargement where it is {SMALL} x {SMALL}.",
        "",
        *bars.table(),
        "## (a) From a text",
        "",
        "The paper's comparison (section 5.1): the caption goes to the decoder in every row, and what is said of the image embedding differs. "
        f"The text's embedding is given the mean length of pictures' embeddings. Prior: {STEPS} steps, guidance {PRIOR_CFG:g}. "
        f"Decoder: unCLIP Sampler, {STEPS} steps, guidance {CFG:g}. The same noise in every row.",
        "",
        *table([texts.rows[name] for name in ("text", "as image", "prior", "large")]),
        "The decoder's last training was with noisy embeddings. Such a decoder paints from the text's embedding as well as from the prior's.",
        "",
        "## (b) A picture again",
        "",
        f"From the picture's embedding and x_T, with no text, {STEPS} steps of `euler` on `karras`, guidance 1. x_T is found by DDIM Invert "
        "(`fixed_point`, 3 iterations). Mean PSNR against the picture:",
        "",
        "| x_T | PSNR |",
        "|---|---|",
        f"| inverted | {psnr['inverted']:.1f} dB |",
        f"| random | {psnr['random']:.1f} dB |",
        "",
        "## (c) Variations",
        "",
        "From the same embedding and x_T with new noise on the way. The embedding was trained to hold what captions say; where exactly the "
        f"object lies and how large it is they do not say. Distances are in pixels of {2 * MEDIUM}.",
        "",
        *table(
            [seen.rows[name] for name in varied],
            {
                "centre moved": [f"{seen.moved[name][0]:.2f}" for name in varied],
                "radius changed": [f"{seen.moved[name][1]:.2f}" for name in varied],
                "PSNR": [f"{psnr[name]:.1f} dB" for name in varied],
            },
        ),
        "## (d) Between two pictures",
        "",
        f"{len(middle.pairs)} pairs of pictures that differ in one attribute; embedding and x_T go along the sphere together, at the thetas "
        f"{MORPH}, guidance 1. Counted are pairs where the judge reads the first picture's attribute up to some theta and the second's from "
        "there on, and nothing else at any.",
        "",
        f"| {' | '.join(['all', *middle.switched])} |",
        "|---" * (1 + len(middle.switched)) + "|",
        "| " + " | ".join(f"{100 * value:.1f} %" for value in (middle.everywhere, *middle.switched.values())) + " |",
        "",
        "## (e) By words",
        "",
        "The picture's embedding is moved from what its caption says towards the caption with one attribute changed (unCLIP Embedding Text Diff), "
        f"and painted from the picture's own x_T without a text, guidance {DIFF_CFG:g}. `kept`: all four other attributes read as before.",
        "",
        "| theta | named attribute changed | rest kept | both |",
        "|---|---|---|---|",
        *(
            f"| {theta} | {100 * moved.changed[theta]:.1f} % | {100 * moved.kept[theta]:.1f} % | {100 * moved.both[theta]:.1f} % |"
            for theta in THETAS
        ),
        "",
        f"Changed at theta {THETA}, by attribute: "
        + ", ".join(f"{name} {100 * value:.0f} %" for name, value in moved.by_attribute.items())
        + ".",
        "",
        "## (f) Best of n",
        "",
        "As in (a); of n embeddings the one nearest to the text is kept.",
        "",
        *table([texts.rows[name] for name in ("one", "prior", "many")]),
        f"Guidances were chosen on scenes of the training split, before the decoder's last training: {CFG:g} from a text, "
        f"{VARIATION_CFG:g} for variations, {DIFF_CFG:g} by words.",
        "",
        "![From a text, variations, morphs, and pictures moved by words](unclip.webp)",
    ]


def contact_sheet(world: UnCLIP, texts: Texts, opened: Opened, seen: Again, middle: Between, moved: Moved) -> Sheet:
    sheet = Sheet("Text, prior, decoder, two upsamplers. A miniature DALL-E 2.")
    columns = 2 * SHOWN + 1
    sheet.add(
        [
            (picture, caption(scene))
            for picture, scene in zip(texts.pictures["large"][:columns], texts.scenes, strict=False)
        ]
    )
    for i in range(SHOWN // 2):
        told = world.tell([""] * (columns - 2), opened.embeds[i].expand(columns - 2, -1))
        start = opened.start[i].expand(columns - 2, -1, -1, -1)
        varied = world.paint_from(start, told, VARIATION_CFG, 1.0)
        large = world.upsample(torch.cat([opened.small[i : i + 1], seen.pictures["inverted"][i : i + 1], varied]))
        labels = [f"{caption(opened.scenes[i])}", "again, eta 0", *["variation"] * (columns - 2)]
        sheet.add(list(zip(large, labels, strict=True)))
    for frames, pair in list(zip(middle.pictures, middle.pairs, strict=True))[:MORPHS]:
        labels = [caption(pair[0]), *[""] * (len(frames) - 2), caption(pair[1])]
        sheet.add(list(zip(world.upsample(frames), labels, strict=True)))
    large = [world.upsample(part[:2]) for part in (opened.small, *moved.pictures.values())]
    row = []
    for i in range(2):
        row += [
            (large[0][i], caption(opened.scenes[i])),
            *((part[i], f"theta {t}") for part, t in zip(large[1:], THETAS, strict=True)),
        ]
    sheet.add(row)
    return sheet
