"""What the browser is told of a prompt's words: the data that js/word_map.mjs and js/edit_words.mjs draw."""

import base64

import numpy as np
import pytest
import torch
from palimpsest.nodes.prompt_to_prompt.nodes import AttentionMask, EncodePromptEdit
from support.fixtures import tiny_clip
from support.fixtures.sampling import random_trajectory
from support.fixtures.tiny_models import conditioning, sd15
from support.fixtures.unet_probe import UNetProbe

pytestmark = pytest.mark.model

TEXT = "a red cat on the grass"


@pytest.fixture(scope="module")
def clip():
    return tiny_clip.sd1()


def groups(clip, source, target, mode="auto", reweight="", blend=""):
    shown = EncodePromptEdit.execute(clip, source, target, mode, reweight, blend).ui["palimpsest_edit"][0]
    return [
        (group["kind"], " ".join(group["source"]), " ".join(group["target"]), group["weight"])
        for group in shown["groups"]
    ]


def test_an_exchanged_word_stands_below_the_one_whose_place_it_takes(clip):
    assert groups(clip, TEXT, "a red dog on the grass", reweight="red: 2.5") == [
        ("kept", "a", "a", 1.0),
        ("kept", "red", "red", 2.5),
        ("exchanged", "cat", "dog", 1.0),
        ("kept", "on", "on", 1.0),
        ("kept", "the", "the", 1.0),
        ("kept", "grass", "grass", 1.0),
    ]


def test_words_that_are_added_or_left_out_stand_alone_in_reading_order(clip):
    added = groups(clip, "a cat on the grass", "a fluffy cat on the grass")
    assert [group[:3] for group in added[:3]] == [("kept", "a", "a"), ("added", "", "fluffy"), ("kept", "cat", "cat")]
    gone = groups(clip, "a fluffy cat on the grass", "a cat on the grass")
    assert [group[:3] for group in gone[:3]] == [("kept", "a", "a"), ("gone", "fluffy", ""), ("kept", "cat", "cat")]


def test_a_word_of_several_tokens_is_one_word(clip):
    exchanged = groups(clip, "a cat on the grass", "a hippopotamuses on the grass", "replace")
    assert [group[:3] for group in exchanged if group[0] == "exchanged"] == [("exchanged", "cat", "hippopotamuses")]


def test_every_word_s_map_comes_from_the_pass_that_makes_the_mask(clip):
    model = sd15()
    trajectory = random_trajectory(model, conditioning(model, 1), 2)
    with UNetProbe(model) as probe:
        out = AttentionMask.execute(model, clip, trajectory, TEXT, "cat", 0.0, 1.0, 0.6)
    assert len(probe.calls) == 2
    [shown] = out.ui["palimpsest_words"]
    assert [entry["word"] for entry in shown["words"]] == TEXT.split()
    assert (shown["picture"], shown["chosen_by"]) == (None, "words")
    maps = {entry["word"]: decoded(entry, shown) for entry in shown["words"]}
    for entry in shown["words"]:
        assert maps[entry["word"]].max() == pytest.approx(entry["peak"])
        assert maps[entry["word"]].mean() == pytest.approx(1.0, abs=0.01)
    # The mask is what the word's own map makes.
    cat = torch.from_numpy(maps["cat"])[None, None].float()
    cat = (cat - cat.min()) / (cat.max() - cat.min())
    large = torch.nn.functional.interpolate(cat, (128, 128), mode="bicubic")[0, 0].clamp(0, 1)
    level = 0.6 * large.max()
    sure = (large - level).abs() > 0.02
    assert torch.equal(out.args[0][0][sure], (large > level).float()[sure])


def decoded(entry: dict, shown: dict) -> np.ndarray:
    shades = np.frombuffer(base64.b64decode(entry["map"]), np.uint8).reshape(shown["height"], shown["width"])
    return shades / 255 * entry["peak"]
