"""Words of two prompts that an edit reweights, blends or keeps."""

import pytest
from palimpsest.nodes.prompt_to_prompt.prompt_edit import parse_reweight, parse_windows, phrases, prompt_edit
from support.fixtures.plain_words import tokenize

pytestmark = pytest.mark.unit


def edit(source="a red cat", target="a red dog", mode="auto", **words):
    return prompt_edit(tokenize, source, target, mode, **{"reweight": "", "blend_words": "", **words})


def test_reweight_picks_every_token_of_words_of_the_target():
    result = edit("a cat", "a fluffy cat, a cat on grass", reweight="fluffy: 2, cat: -1.5\non grass: 0")
    weights = dict(zip(result.target.ids, result.equalizer.tolist(), strict=True))
    assert weights["fluf"] == weights["fy</w>"] == 2.0
    assert weights["on</w>"] == weights["gras"] == weights["s</w>"] == 0.0
    assert result.equalizer.tolist().count(-1.5) == 2  # both cats
    assert weights["a</w>"] == weights["begin"] == weights["pad"] == 1.0


def test_blend_words_are_looked_up_in_both_prompts():
    result = edit("a red cat on grass", "a red dog on grass", blend_words="cat, dog; red")
    assert result.source_blend == (2, 3) and result.target_blend == (2, 3)
    assert edit(blend_words="cat").target_blend == ()
    assert edit(blend_words="cat").blends and not edit().blends


def test_words_to_keep_and_windows_of_words_are_found_like_the_others_P4():
    result = edit(
        "a red cat on grass", "a fluffy cat on sand", keep_words="grass; on", word_windows="fluffy: 0.2-0.8, cat: 0.4"
    )
    assert result.source_kept == (4, 5, 6) and result.target_kept == (5,)
    assert result.windows == (((2, 3), 0.2, 0.8), ((4,), 0.0, 0.4))
    assert edit().windows == edit().source_kept == edit().target_kept == ()
    assert parse_windows("a : b: 0 - 1;\nold car:.5,") == [("a : b", 0.0, 1.0), ("old car", 0.0, 0.5)]


def test_a_phrase_is_found_as_a_whole():
    prompt = tokenize("red car and a red cat")
    assert prompt.find(tokenize("red cat")) == (5, 6)
    assert prompt.find(tokenize("red")) == (1, 5)
    assert prompt.find(tokenize("cat red")) == ()


def test_parses_weights_and_phrases():
    assert parse_reweight(" fluffy : 2 ,red:-1;\n very old car: .5,") == [
        ("fluffy", 2.0),
        ("red", -1.0),
        ("very old car", 0.5),
    ]
    assert parse_reweight("") == [] and phrases(" , ;\n") == []


def test_punctuation_of_chinese_and_japanese_parts_phrases_too():
    assert phrases("红色的猫，狗、鸟；鱼") == ["红色的猫", "狗", "鸟", "鱼"]
    assert parse_reweight("猫：2，狗:-1") == [("猫", 2.0), ("狗", -1.0)]
    assert parse_windows("猫：0.2-0.8、狗： 0.4") == [("猫", 0.2, 0.8), ("狗", 0.0, 0.4)]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"source": " "}, "^source_text: expected a prompt with at least one word, got ' '"),
        ({"target": ""}, "^target_text: expected a prompt with at least one word"),
        (
            {"target": "a dog", "mode": "replace"},
            "^mode: expected as many words .* got 3 in source_text and 2 .* Use refine",
        ),
        (
            {"reweight": "fluffy: 2"},
            "^reweight: expected words as they stand in target_text, got 'fluffy', which is not in",
        ),
        ({"reweight": "cat: 2"}, "^reweight: .* got 'cat'"),  # a word of the source only
        ({"reweight": "dog"}, "^reweight: expected words of target_text with a number each, .* got 'dog'"),
        ({"reweight": "dog: much"}, "^reweight: .* got 'dog: much'"),
        ({"reweight": "dog: nan"}, "^reweight: .* got 'dog: nan'"),
        ({"reweight": ": 2"}, "^reweight: .* got ': 2'"),
        *(
            (
                {"word_windows": text},
                "^word_windows: expected words of target_text with shares of the steps between 0 and 1",
            )
            for text in ("dog", "dog: 0.5-0.2", "dog: 0.2-2", "dog: 1.2.3", ": 0.5", "dog: -0.5-1")
        ),
        ({"word_windows": "cat: 0.5"}, "^word_windows: expected words as they stand in target_text, got 'cat'"),
        ({"keep_words": "bird"}, "^keep_words: expected words as they stand in source_text or target_text, got 'bird'"),
        (
            {"blend_words": "bird"},
            "^blend_words: expected words as they stand in source_text or target_text, got 'bird'",
        ),
        (
            {"blend_words": "a red cat that sits on the grass"},
            "^blend_words: .* It has 9 tokens, and no prompt more than 3. Write it as it stands there, or remove it. Separate several words",
        ),
    ],
)
def test_refuses_naming_socket_and_word(options, says):
    with pytest.raises(ValueError, match=says):
        edit(**options)
