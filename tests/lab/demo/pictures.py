"""What the demo edits on the toy: a drawn scene that its models were not trained on, and a photograph of what they have never seen."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from lab.demo.edits import Picture, WordEdit
from lab.demo.shipped import BLOCKS, CROSS_END, SELF_END, WORDS_CFG
from lab.evidence.sheet import as_image
from lab.world.captions import caption
from lab.world.photos import central_square
from lab.world.render import render
from lab.world.scenes import Scene, Thing, held_out
from torch import Tensor

BEACH = Scene(
    things=(
        Thing("cat", "yellow", x=106.0, y=71.6, radius=25.0, turn=-9.5, mirrored=True),
        Thing("boat", "blue", x=50.5, y=88.0, radius=30.5, turn=-9.0),
    ),
    background="beach",
    style="flat",
    pan=3,
    tilt=13,
    lit_from_left=True,
)
CUP = "a red cupcake"
BY_WORDS = {"cfg": WORDS_CFG, "cross_end": CROSS_END, "self_end": SELF_END}


def scene(folder: Path) -> Picture:
    assert held_out(BEACH)
    shows = caption(BEACH).text
    return Picture(
        "scene",
        saved(render([BEACH]).pictures, folder / "scene.png"),
        prompts=(
            shows.replace("flat drawing", "neon sign"),
            shows.replace("flat drawing", "mosaic"),
            shows.replace("yellow", "red").replace("blue", "green").replace("on a beach", "at night"),
        ),
        source_text=shows,
        words=(
            WordEdit(shows.replace("yellow", "red"), "yellow cat, red cat"),
            WordEdit(shows.replace("yellow", "purple"), "yellow cat, purple cat"),
            WordEdit(shows.replace("on a beach", "at night")),
        ),
        shown="yellow cat",
        inpainted=shows.replace("yellow cat", "purple cactus"),
        structure={"cfg": 5.0, "feature_end": 0.8, "attention_end": 0.5, "blocks": BLOCKS},
        by_words=BY_WORDS,
    )


def photograph(folder: Path) -> Picture:
    """Foreign to the toy: all of the structure is injected, with little guidance."""
    return Picture(
        "photograph",
        saved(central_square("coffee.png"), folder / "photograph.png"),
        prompts=(f"{CUP} in the city, neon sign", f"{CUP} in a room, mosaic", f"{CUP} in the snow, pencil drawing"),
        structure={"cfg": 3.5, "feature_end": 1.0, "attention_end": 1.0, "blocks": BLOCKS},
    )


def for_the_transformer(scene: Picture) -> Picture:
    """Restyled alone, with a transformer's short windows."""
    shows = scene.source_text
    return replace(
        scene,
        name="transformer",
        prompts=(
            shows.replace("flat drawing", "mosaic"),
            shows.replace("flat drawing", "pencil drawing"),
            shows.replace("on a beach", "at night"),
        ),
        words=(),
        structure={"cfg": 5.0, "feature_end": 0.2, "attention_end": 0.4},
    )


def saved(picture: Tensor, file: Path) -> Path:
    as_image(picture[0]).save(file)
    return file
