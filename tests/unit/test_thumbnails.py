"""The pictures that ComfyUI's template browser shows of the shipped workflows: `make thumbnails`."""

import hashlib

import pytest
from lab.thumbnails.__main__ import FOLDER, HELP, RECIPES
from lab.thumbnails.compose import GAP, SIDE, Thumbnail
from lab.thumbnails.help_pictures import PICTURES
from PIL import Image
from workflows.shipped import WORKFLOWS

pytestmark = pytest.mark.unit

NAMES = sorted(workflow.name for workflow in WORKFLOWS)
SIZE = (2 * SIDE + GAP, SIDE)
COLOURS = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0)]


@pytest.mark.parametrize("name", NAMES)
def test_a_workflow_s_thumbnail_is_two_squares_and_light(name: str):
    file = FOLDER / f"{name}.jpg"
    assert file.stat().st_size < 40_000
    with Image.open(file) as image:
        assert (image.format, image.size) == ("JPEG", SIZE)
        halves = [image.crop((x, 0, x + SIDE, SIDE)) for x in (0, SIDE + GAP)]
    assert all(low + 64 < high for half in halves for low, high in [half.convert("L").getextrema()])


def test_there_is_one_for_each_workflow_and_no_other():
    files = list(FOLDER.glob("*.jpg"))
    assert sorted(file.stem for file in files) == NAMES == sorted(RECIPES)
    assert len({hashlib.sha256(file.read_bytes()).digest() for file in files}) == len(files)


def test_the_pictures_of_nodes_for_the_help_pages_are_of_workflows_with_a_thumbnail():
    assert PICTURES.keys() <= RECIPES.keys()
    assert all((HELP / f"{picture.name}.webp").exists() for pictures in PICTURES.values() for picture in pictures)


@pytest.mark.parametrize(
    ("count", "corners"), [(1, [0, 0, 0, 0]), (2, [0, 1, 0, 1]), (3, [0, 1, 2, None]), (4, [0, 1, 2, 3])]
)
def test_one_to_four_pictures_fill_a_square(count: int, corners: list[int | None]):
    pictures = [Image.new("RGB", (32, 32), colour) for colour in COLOURS[:count]]
    drawn = Thumbnail(pictures, [Image.new("RGB", (8, 8))]).drawn()
    assert drawn.size == SIZE
    quarters = [drawn.getpixel((x, y)) for y in (80, 170) for x in (60, 190)]
    assert [COLOURS.index(pixel) if pixel in COLOURS else None for pixel in quarters] == corners
    assert drawn.getpixel((SIDE + GAP + 60, 60)) == (0, 0, 0)
