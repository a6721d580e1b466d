from dataclasses import replace
from statistics import median

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lab.world import foreign
from lab.world.captions import ATTRIBUTES, MEDIA, PLACES, caption
from lab.world.judge import judge, mask_iou
from lab.world.kinds import COLOURS, KINDS, NATURAL
from lab.world.measure import compare, is_right
from lab.world.render import render
from lab.world.scenes import SIZE, Scene, Thing, held_out, sample_scenes
from lab.world.stream import batch
from lab.world.studio import recoloured
from lab.world.styles import STYLES

pytestmark = pytest.mark.unit

CAT = Thing("cat", "orange", 36.0, 84.0, 25.0)
HOUSE = Thing("house", "blue", 90.0, 86.0, 28.0)
SCENE = Scene((CAT, HOUSE), "meadow", "flat")


def test_a_batch_is_determined_by_its_seed_and_number_alone() -> None:
    first, again, other = (batch(3, number, 6) for number in (5, 5, 6))
    assert torch.equal(first.pictures, again.pictures) and first.captions == again.captions
    assert not torch.equal(first.pictures, other.pictures)
    assert first.pictures.shape == (6, SIZE, SIZE, 3) and first.pictures.dtype == torch.uint8


def test_a_picture_depends_neither_on_its_batch_nor_on_threads() -> None:
    scenes = sample_scenes(8, 0)
    together = render(scenes).pictures
    threads = torch.get_num_threads()
    torch.set_num_threads(3 - min(threads, 2))
    try:
        assert torch.equal(render(scenes[5:6]).pictures[0], together[5])
    finally:
        torch.set_num_threads(threads)


def test_training_never_draws_what_is_held_out_and_misses_no_kind_colour_or_style() -> None:
    scenes = sample_scenes(3000, 1)
    assert not any(held_out(scene) for scene in scenes)
    assert all(held_out(scene) for scene in sample_scenes(100, 1, split="held_out"))
    coloured = {(thing.kind, thing.colour) for scene in scenes for thing in scene.things}
    styled = {(thing.kind, scene.style) for scene in scenes for thing in scene.things}
    assert len(coloured) == len(KINDS) * (len(COLOURS) - 1)  # of each kind, one colour is kept
    assert len(styled) == len(KINDS) * len(STYLES) - (len(KINDS) + 1) // 2  # and of every second one, a style


@pytest.mark.parametrize("style", STYLES)
def test_masks_are_where_the_picture_differs_from_the_same_without_the_thing(style: str) -> None:
    scene = replace(SCENE, style=style)
    both, cat = render([scene]), render([replace(scene, things=(CAT,))])
    changed = (both.pictures - cat.pictures).abs().sum(1)[0]
    shadow_or_glow = 10  # pixels beside and below that the house's shadow and light may reach
    grown = torch.nn.functional.max_pool2d(both.whole[:, 1], 2 * shadow_or_glow + 1, 1, shadow_or_glow)[0]
    assert changed[: int(HOUSE.ground) - 22][grown[: int(HOUSE.ground) - 22] == 0].max() < 0.25
    assert (changed[both.visible[0, 1] == 1] > 0.03).float().mean() > 0.7


def test_a_nearer_thing_hides_the_other_in_the_visible_masks_alone() -> None:
    near = replace(HOUSE, x=60.0)
    drawn = render([replace(SCENE, things=(CAT, near)), replace(SCENE, things=(CAT,))])
    assert torch.equal(drawn.whole[0, 0], drawn.whole[1, 0])
    assert torch.allclose(drawn.visible[0, 0], drawn.whole[0, 0] * (1 - drawn.whole[0, 1]))
    assert torch.equal(drawn.visible[0, 1], drawn.whole[0, 1])
    assert drawn.whole[1, 1].max() == 0


def test_things_stay_in_the_picture_and_hide_little_of_each_other() -> None:
    drawn = render(sample_scenes(100, 2))
    assert drawn.pictures.min() >= 0 and drawn.pictures.max() <= 1
    border = torch.ones(SIZE, SIZE, dtype=torch.bool)
    border[1:-1, 1:-1] = False
    assert (drawn.whole[:, :, border].sum(-1) > 0.5).float().mean() < 0.02
    shares = drawn.visible.sum((2, 3)) / drawn.whole.sum((2, 3))
    assert shares.min() > 0.7 and shares.mean() > 0.97


def test_captions_say_what_is_true_and_nothing_else() -> None:
    assert caption(SCENE).text == "an orange cat to the left of a blue house in a meadow, flat drawing"
    assert caption(SCENE, [], order=1).text == "a house and a cat"
    assert caption(SCENE, ["style", "second colour"], wording=1).text == "a flat drawing of a cat next to a blue house"
    assert caption(SCENE, ["background"], wording=2).text == "in a meadow, a cat and a house"
    assert caption(replace(SCENE, things=(CAT,))).said == {"first colour", "background", "style"}


def test_captions_record_what_they_leave_unsaid() -> None:
    drawn = batch(0, 0, 60)
    for made, scene in zip(drawn.captions, drawn.scenes, strict=True):
        told = {
            *(
                name
                for name, thing in zip(ATTRIBUTES[:2], scene.things, strict=False)
                if f"{thing.colour} {thing.kind}" in made.text
            )
        }
        told |= {"background"} if PLACES[scene.background] in made.text else set()
        told |= {"style"} if MEDIA[scene.style] in made.text else set()
        told |= {"side"} if "to the left of" in made.text or "to the right of" in made.text else set()
        assert told == made.said
        assert not any(
            colour in made.text.split() for colour in COLOURS if colour not in {t.colour for t in scene.things}
        )


def test_the_judge_reads_held_out_renders() -> None:
    scenes = sample_scenes(40, 7, split="held_out")
    drawn = render(scenes)
    readings = judge(drawn.pictures)
    assert sum(is_right(reading, scene) for reading, scene in zip(readings, scenes, strict=True)) >= 38
    compared = compare(scenes, drawn.visible, readings)
    assert sum(c.iou for c in compared) / len(compared) > 0.93


def test_the_judge_reads_tiles_after_jpeg_and_things_that_touch_or_have_a_colour_of_the_ground() -> None:
    scenes = sample_scenes(94, 777, split="held_out")
    tiled, crowded = [scenes[i] for i in (9, 81, 93)], [scenes[i] for i in (14, 50)]
    pictures = torch.cat([foreign.jpeg(render(tiled).pictures, 60), render(crowded).pictures])
    for scene, reading in zip([*tiled, *crowded], judge(pictures), strict=True):
        assert is_right(reading, scene), scene


def test_the_judge_reads_outlines_that_are_a_little_off() -> None:
    scenes = sample_scenes(12, 9, split="held_out")
    pictures = render(scenes).pictures
    off = 2.5 * torch.randn(12, 2, 9, 9, generator=torch.Generator().manual_seed(0)) / (SIZE / 2)
    off = F.interpolate(off, (SIZE, SIZE), mode="bicubic").movedim(1, -1)
    here = F.affine_grid(torch.eye(2, 3).expand(12, -1, -1), [12, 1, SIZE, SIZE], align_corners=False)
    readings = judge(F.grid_sample(pictures, here + off, align_corners=False, padding_mode="border"))
    assert median(seen.explained for reading in readings for seen in reading.seen) < 0.88
    assert sum(is_right(reading, scene) for reading, scene in zip(readings, scenes, strict=True)) >= 10


def test_the_judge_sees_one_thing_where_there_is_one() -> None:
    scenes = sample_scenes(6, 4, things=1)
    readings = judge(render(scenes).pictures)
    assert [len(reading.things) + reading.unknown for reading in readings] == [1] * len(scenes)
    assert all(is_right(reading, scene) for reading, scene in zip(readings, scenes, strict=True))


def test_the_judge_refuses_what_the_world_does_not_have() -> None:
    for make in (foreign.noise, foreign.plain, foreign.shapes, foreign.polygons, foreign.letters):
        assert not any(reading.is_known for reading in judge(make(3, 1))), make.__name__


def test_the_judge_reads_natural_colours_where_there_may_be_any() -> None:
    chance = np.random.default_rng(4)
    scenes = [recoloured(scene, chance) for scene in sample_scenes(24, 5)]
    drawn = render(scenes).pictures
    readings = judge(drawn, natural=True)
    assert {thing.colour for scene in scenes for thing in scene.things} > {*NATURAL}
    assert sum(is_right(reading, scene) for reading, scene in zip(readings, scenes, strict=True)) >= 22
    assert all(seen.thing.colour in COLOURS for reading in judge(drawn[:4]) for seen in reading.seen)


def test_masks_of_nothing_share_nothing() -> None:
    assert mask_iou(torch.zeros(4, 4), torch.zeros(4, 4)) == 0
