"""The shipped subgraph blueprints: two of the shipped workflows, each as one box."""

from __future__ import annotations

from dataclasses import replace

from workflows.description import Blueprint, Group, NodeSpec, Workflow
from workflows.families import SD15, Family
from workflows.files_and_colours import BLUE, GOLD, GREEN, RED
from workflows.word_edits import mask_by_word, swap_a_word

CATEGORY = "palimpsest"
TOP_OF_FIRST_COLUMN = {"resize": (0, 0), "encode": (0, 220)}


def swap_a_word_box(family: Family = SD15) -> Blueprint:
    flat, outside = swap_a_word(family), from_outside(family)
    return Blueprint(
        flat.name,
        "Replace or add words of a picture's prompt and keep the rest of the picture: inverts it and edits it with "
        "Prompt-to-Prompt. source_text says what the picture shows, target_text is the same with your words. blend_words: "
        f"words whose area may change (empty: all of the picture). width and height: {sizes(family)}. To keep less of the "
        "source, lower cross_end and self_end.",
        CATEGORY,
        inside=within(
            flat,
            outside,
            outputs=["decode"],
            groups=[
                Group("1  Fit the picture", (-20, -70), (340, 1200), BLUE),
                Group("2  Invert the picture", (360, -70), (360, 1200), GREEN),
                Group("3  Describe the edit", (760, -70), (440, 1200), GOLD),
                Group("4  Sample it again", (1240, -70), (360, 1200), RED),
            ],
        ),
        inputs={
            **entrances(flat, outside, ["decode"]),
            "source_text": [("words", "source_text")],
            "target_text": [("words", "target_text")],
            "blend_words": [("words", "blend_words")],
            "width": [("resize", "width")],
            "height": [("resize", "height")],
            "steps": [("schedule", "steps"), ("sample", "steps")],
            **guidance(family),
            "cross_end": [("edit", "cross_end")],
            "self_end": [("edit", "self_end")],
        },
        outputs={"image": ("decode", "IMAGE")},
    )


def mask_by_word_box(family: Family = SD15) -> Blueprint:
    flat, outside = mask_by_word(family), from_outside(family)
    return Blueprint(
        flat.name,
        "Replace an object in a picture: inverts it, finds words in it by the model's own attention, and inpaints their area. "
        "text says what the picture shows, words are words of it, target_text is what the new picture should show. threshold "
        f"0 is automatic; higher makes the area smaller. width and height: {sizes(family)}.",
        CATEGORY,
        inside=within(
            flat,
            outside,
            outputs=["decode", "grow"],
            groups=[
                Group("1  Fit the picture", (-20, -70), (340, 1240), BLUE),
                Group("2  Invert", (360, -70), (360, 1240), GREEN),
                Group("3  Find the words", (760, -70), (380, 1240), GOLD),
                Group("4  Inpaint", (1180, -70), (360, 1240), RED),
            ],
        ),
        inputs={
            **entrances(flat, outside, ["decode", "grow"]),
            "text": [("source", "text"), ("mask", "text")],
            "words": [("mask", "words")],
            "target_text": [("positive", "text")],
            "width": [("resize", "width")],
            "height": [("resize", "height")],
            "threshold": [("mask", "threshold")],
            "grow": [("grow", "expand")],
            "denoise": [("sample", "denoise")],
            "steps": [("sample", "steps")],
            **guidance(family),
            "seed": [("sample", "seed")],
        },
        outputs={"image": ("decode", "IMAGE"), "mask": ("grow", "MASK")},
    )


Ends = dict[str, tuple[str, str]]


def from_outside(family: Family) -> Ends:
    return {"model": family.model, "clip": family.clip, "vae": family.vae, "image": ("picture", "IMAGE")}


def sizes(family: Family) -> str:
    return f"{family.size}" if family.files else "SD1.5 512, SDXL 1024"


def guidance(family: Family) -> dict[str, list[tuple[str, str]]]:
    return {"guidance": [("guidance", "guidance")]} if family.guidance else {"cfg": [("sample", "cfg")]}


def needed(flat: Workflow, outside: Ends, outputs: list[str]) -> set[str]:
    """Keys of the nodes that the outputs come from, those that feed the box left out."""
    feeding = {key for key, _ in outside.values()}
    found, ahead = set(), set(outputs)
    while ahead:
        found |= ahead
        ahead = {source for source, _, target, _ in flat.links if target in ahead} - found - feeding
    return found


def within(flat: Workflow, outside: Ends, outputs: list[str], groups: list[Group]) -> Workflow:
    """The part of a workflow between the sockets of the box."""
    keys = needed(flat, outside, outputs)

    def placed(node: NodeSpec) -> NodeSpec:
        return replace(node, pos=TOP_OF_FIRST_COLUMN.get(node.key, node.pos))

    return Workflow(
        flat.name,
        nodes=[placed(node) for node in flat.nodes if node.key in keys],
        links=[link for link in flat.links if {link[0], link[2]} <= keys],
        groups=groups,
    )


def entrances(flat: Workflow, outside: Ends, outputs: list[str]) -> dict[str, list[tuple[str, str]]]:
    """Where the model, its parts and the picture enter the nodes of the box."""
    keys = needed(flat, outside, outputs)
    return {
        name: [
            (target, slot) for source, output, target, slot in flat.links if (source, output) == end and target in keys
        ]
        for name, end in outside.items()
    }
