from dataclasses import replace

import pytest
import torch
from lab.toy.judge import judge, mask_iou
from lab.toy.scenes import (
    BACKGROUNDS,
    COLOURS,
    NOVEL_TEXTURES,
    OUTDOORS,
    POSITIONS,
    SHAPES,
    SIZE,
    TEXTURES,
    Scene,
    allowed_pairs,
    background_images,
    caption,
    edited,
    held_out,
    render,
    sample_scenes,
)

pytestmark = pytest.mark.unit

SCENE = Scene("star", "red", "striped", "left", "sunset")
ATTRIBUTES = ("shape", "colour", "texture", "position", "background")


def triples(split: str) -> set[tuple[str, str, str]]:
    return {(s.shape, s.colour, s.position) for s in sample_scenes(4000, 0, split=split)}


def test_the_same_seed_draws_the_same_pictures() -> None:
    first, again, other = (render(sample_scenes(8, seed, split="train"))[0] for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_picture_does_not_depend_on_its_batch() -> None:
    scenes = sample_scenes(16, 0, split="train")
    together = render(scenes)
    alone = render(scenes[5:6])
    assert all(torch.equal(a[5], b[0]) for a, b in zip(together, alone, strict=True))


def test_splits_share_no_triple_and_cover_all() -> None:
    train, kept = triples("train"), triples("held_out")
    assert not train & kept
    assert len(train | kept) == len(SHAPES) * len(COLOURS) * len(POSITIONS)
    assert 0.1 < len(kept) / len(train | kept) < 0.3


def test_every_value_is_drawn_in_both_splits() -> None:
    for split in ("train", "held_out"):
        scenes = sample_scenes(1000, 1, split=split)
        for attribute, values in zip(ATTRIBUTES, (SHAPES, COLOURS, TEXTURES, POSITIONS, BACKGROUNDS), strict=True):
            assert {getattr(scene, attribute) for scene in scenes} == set(values)
        assert all(held_out(scene) == (split == "held_out") for scene in scenes)


def test_images_are_in_range_and_masks_say_where_the_background_is_untouched() -> None:
    scenes = sample_scenes(64, 2, split="train")
    images, masks = render(scenes)
    assert images.shape == (64, 3, SIZE, SIZE) and masks.shape == (64, SIZE, SIZE)
    assert images.min() >= 0 and images.max() <= 1
    untouched = (images == background_images([s.background for s in scenes])).all(1)
    assert torch.equal(untouched | (masks > 0), torch.ones_like(untouched))
    assert untouched[masks == 0].all()


@pytest.mark.parametrize("shape", SHAPES)
def test_outlines_are_antialiased(shape: str) -> None:
    """A subpixel shift moves the mask's area smoothly: the area stays, the edge pixels change."""
    masks = render([replace(SCENE, shape=shape, dx=dx) for dx in (0.0, 0.25, 0.5, 0.75)])[1]
    areas = masks.sum((1, 2))
    assert (areas / areas[0] - 1).abs().max() < 0.005
    assert (masks[0] - masks[1]).abs().max() < 0.75
    edge = (masks > 0) & (masks < 1)
    assert (edge.sum((1, 2)) > 40).all()


def test_shapes_fill_comparable_areas_and_stay_inside() -> None:
    scenes = [replace(SCENE, shape=shape, position="centre") for shape in SHAPES]
    masks = render(scenes)[1]
    assert masks[:, 0].sum() == masks[:, -1].sum() == masks[:, :, 0].sum() == masks[:, :, -1].sum() == 0
    areas = masks.sum((1, 2))
    assert areas.max() / areas.min() < 3


def test_captions_name_every_attribute() -> None:
    assert caption(SCENE) == "a striped red star on the left, sunset background"
    assert caption(SCENE, position=False, background=False) == "a striped red star"


@pytest.mark.parametrize("attribute", ["shape", "colour", "texture", "background"])
def test_an_edit_changes_one_attribute_alone(attribute: str) -> None:
    import random

    for scene in sample_scenes(50, 5, split="held_out"):
        changed = edited(scene, attribute, random.Random(0))
        assert getattr(changed, attribute) != getattr(scene, attribute)
        assert replace(changed, **{attribute: getattr(scene, attribute)}) == scene
        assert (changed.colour, changed.background) in allowed_pairs()


def test_the_judge_reads_rendered_scenes() -> None:
    scenes = sample_scenes(16, 6, split="held_out")
    images, masks = render(scenes)
    readings, fitted = judge(images)
    for attribute in ATTRIBUTES:
        right = sum(getattr(r, attribute) == getattr(s, attribute) for r, s in zip(readings, scenes, strict=True))
        assert right >= 15, attribute
    assert mask_iou(fitted, masks).min() > 0.96
    assert max(reading.error for reading in readings) < 0.04


@pytest.mark.long
def test_the_judge_tells_novel_textures_from_known_ones() -> None:
    novel = sample_scenes(64, 7, split="held_out", textures=NOVEL_TEXTURES, backgrounds=OUTDOORS)
    known = sample_scenes(64, 7, split="held_out")
    for scenes in (novel, known):
        images, masks = render(scenes)
        readings, fitted = judge(images, TEXTURES + NOVEL_TEXTURES)
        for attribute in ATTRIBUTES:
            right = sum(getattr(r, attribute) == getattr(s, attribute) for r, s in zip(readings, scenes, strict=True))
            assert right >= 63, attribute
        assert mask_iou(fitted, masks).mean() > 0.98


@pytest.mark.long
def test_the_judge_does_not_take_a_halo_for_the_object() -> None:
    images, masks = render(sample_scenes(32, 8, split="held_out"))
    blurred = torch.nn.functional.avg_pool2d(images, 5, 1, padding=2, count_include_pad=False)
    assert mask_iou(judge(blurred)[1], masks).mean() > 0.96


def test_the_judge_says_so_where_there_is_no_such_scene() -> None:
    noise = torch.rand(4, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    assert min(reading.error for reading in judge(noise)[0]) > 0.2
