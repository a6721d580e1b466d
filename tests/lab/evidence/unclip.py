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
    for name, label in (("text", "the text alone"), ("as image", "the text's embedding in place of a picture's")):
        ahead = 100 * (prior - texts.rows[name].both)
        bars.add(
            f"(a) lead of the prior's embedding over {label}", "more than 0 points", f"{ahead:.1f} points", ahead > 0
        )
    gain = float(seen.psnr["inverted"].mean() - seen.psnr["random"].mean())
    bars.add("(b) gain of the inverted x_T over a random one", "more than 0 dB", f"{gain:.1f} dB", gain > 0)
    share("(d) morphs in which the attribute changes once", SWITCHED, middle.everywhere)
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
        "# unCLIP: measured results",
        "",
        "All figures were measured on the CPU with a miniature DALL-E 2, trained on drawn scenes. They are not "
        "figures of Karlo: full-size models can behave differently. `make evidence PART=unclip` measures them again "
        "and writes this page.",
        "",
        "The miniature has a CLIP pair, a prior, a decoder and two upsamplers in the published layouts, trained by "
        f"`make toy`. The nodes load and run them like the public ones. The decoder makes pictures of {SMALL} x {SMALL} "
        f"pixels, the upsamplers of {MEDIUM} x {MEDIUM} and {2 * MEDIUM} x {2 * MEDIUM}. Each table has {SCENES} "
        "held-out scenes unless it says otherwise. What a picture shows is read by a program, "
        f"tests/lab/toy/judge.py; pictures of {SMALL} x {SMALL} are enlarged by interpolation for it. The training "
        "of the second upsampler began with other random weights than `make toy` draws.",
        "",
        *bars.table(),
        "## (a) Pictures from a text",
        "",
        "The comparison of the paper (section 5.1). The decoder gets the caption in every row; the rows differ in "
        "the image embedding. The embedding of a text is scaled to the mean length of the embeddings of pictures. "
        f"Prior: {STEPS} steps, guidance {PRIOR_CFG:g}. Decoder: unCLIP Sampler, {STEPS} steps, guidance {CFG:g}. "
        "The noise is the same in every row.",
        "",
        *table([texts.rows[name] for name in ("text", "as image", "prior", "large")]),
        "The last training of the decoder used noisy embeddings. Such a decoder draws from the text's embedding as "
        "well as from the prior's, so that this table does not show what a prior adds.",
        "",
        "## (b) Reconstruction of a picture",
        "",
        f"From the embedding and the x_T of the picture, without a text: {STEPS} steps of `euler` on `karras`, "
        "guidance 1. x_T is found by DDIM Invert (`fixed_point`, 3 iterations). Mean PSNR against the picture:",
        "",
        "| x_T | PSNR |",
        "|---|---|",
        f"| inverted | {psnr['inverted']:.1f} dB |",
        f"| random | {psnr['random']:.1f} dB |",
        "",
        "## (c) Variations",
        "",
        "From the same embedding and x_T, with new noise at every step. The embedding was trained to hold what "
        "captions say, and captions do not say exactly where the object lies and how large it is. Distances are in "
        f"pixels of a picture of {2 * MEDIUM} x {2 * MEDIUM}.",
        "",
        *table(
            [seen.rows[name] for name in varied],
            {
                "centre moved": [f"{seen.moved[name][0]:.2f}" for name in varied],
                "radius changed": [f"{seen.moved[name][1]:.2f}" for name in varied],
                "PSNR": [f"{psnr[name]:.1f} dB" for name in varied],
            },
        ),
        "## (d) Morphs between two pictures",
        "",
        f"{len(middle.pairs)} pairs of pictures that differ in one attribute. Embedding and x_T are interpolated "
        f"together on the sphere, at the thetas {MORPH}, with guidance 1. A pair counts if the judge reads the attribute "
        "of the first picture up to some theta, that of the second from there on, and no other value at any theta. "
        "The table has the fraction of these pairs, for all and by attribute.",
        "",
        f"| {' | '.join(['all', *middle.switched])} |",
        "|---" * (1 + len(middle.switched)) + "|",
        "| " + " | ".join(f"{100 * value:.1f} %" for value in (middle.everywhere, *middle.switched.values())) + " |",
        "",
        "## (e) Editing by words",
        "",
        "unCLIP Embedding Text Diff moves the embedding of the picture from its caption towards the caption with "
        f"one attribute changed. The picture is then sampled from its own x_T without a text, at guidance {DIFF_CFG:g}. "
        "Rest kept: all four other attributes are read as before.",
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
        f"As in (a). Of n embeddings, the one nearest to the text is kept. With {SCENES} scenes, a difference of one "
        "or two points may be chance.",
        "",
        *table([texts.rows[name] for name in ("one", "prior", "many")]),
        f"The guidance was chosen on scenes of the training split, before the last training of the decoder: {CFG:g} "
        f"for pictures from a text, {VARIATION_CFG:g} for variations, {DIFF_CFG:g} for editing by words.",
        "",
        "![Pictures from a text, variations, morphs, and pictures edited by words](unclip.webp)",
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
