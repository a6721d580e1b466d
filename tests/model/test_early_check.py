"""What is said of an edit's words before anything runs: all that is missing, and nothing that a run would find."""

from itertools import product

import comfy.sd1_clip
import pytest
from palimpsest.nodes.prompt_to_prompt.early_check import may_stand_in, refusal
from palimpsest.nodes.prompt_to_prompt.nodes import EncodePromptEdit
from palimpsest.nodes.text.tokens import tokenize
from support.fixtures.tiny_clip import tokenizer_only

pytestmark = pytest.mark.model

TEXTS = [
    "A red  cat,\non the (old mat:1.2), ((very)) big",
    "a cat \\(animal\\) on 2 mats; its fur: caf\u00e9-brown",
    "cafe\u0301 na\u00efve \u7ea2\u8272\u7684\u732b\uff0c a \uff23\uff21\uff34 x2 don't stop_sign \u0939\u093f\u0928\u094d\u0926\u0940",
    "half(way:1.3)house cat.dog/bird 3d-model v1.5 \U0001f431 :) \ufb01sh",
]
MISSING = ["dog", "cats", "mat s", "re", "(dog:1.3)", "blue cat", "at", "3", "\u72d7"]


def phrases_of(text: str) -> set[str]:
    """Words of the text with their neighbours, as they stand there and as one may write them."""
    words = text.split()
    found = {" ".join(words[i:j]) for i in range(len(words)) for j in range(i + 1, min(i + 3, len(words)) + 1)}
    found |= {word.strip("(),.:;\\\n0123456789") for word in words} - {""}
    return {change(phrase) for phrase in found for change in (str, str.upper, lambda own: f"({own}:1.2)")}


def test_what_a_run_would_find_is_never_refused():
    clip = tokenizer_only(comfy.sd1_clip.SD1Tokenizer)
    found = 0
    for text in TEXTS:
        prompt = tokenize(clip, text)
        for phrase in sorted(phrases_of(text)):
            if prompt.find(tokenize(clip, phrase)):
                found += 1
                assert may_stand_in(phrase, text), phrase
    assert found > 150


def test_what_only_some_encoders_would_find_is_not_refused():
    assert may_stand_in("(red:1.2) cat", "a (red:1.2) cat")  # weights as plain text
    assert may_stand_in("red cat", "a (red:1.2) cat")
    assert may_stand_in("cat's", "a cat\u2019s hat") and may_stand_in("fish", "a \ufb01sh")
    assert may_stand_in("embedding:other", "a embedding:one") and may_stand_in(":)", "a cat")


@pytest.mark.parametrize(("phrase", "text"), [*product(MISSING, TEXTS[:1]), ("caf", TEXTS[1]), ("wayhouse", TEXTS[3])])
def test_what_no_encoder_would_find_is_known_before(phrase: str, text: str):
    assert not may_stand_in(phrase, text)


def test_the_node_names_the_list_and_the_word():
    texts = {"source_text": "a red cat", "target_text": "a red dog"}
    assert (
        refusal(**texts, blend_words="cat, dog", reweight="dog: 2", keep_words="red", word_windows="red: 0.5") is None
    )
    for socket, written in (
        ("reweight", "cat: 2"),
        ("word_windows", "cat: 1"),
        ("blend_words", "red, cow"),
        ("keep_words", "cow"),
    ):
        said = EncodePromptEdit.validate_inputs(**texts, **{socket: written})
        assert (
            said.startswith(f"{socket}: expected words as they stand in")
            and f"got '{written.split(',')[-1].split(':')[0].strip()}'" in said
        )
    assert refusal(**texts, reweight="dog").startswith("reweight: expected words of target_text with a number each")


def test_what_other_nodes_give_is_left_to_the_run():
    assert (
        EncodePromptEdit.validate_inputs(source_text="a cat", target_text=None, blend_words="dog", reweight="dog: 2")
        is True
    )
    assert (
        EncodePromptEdit.validate_inputs(source_text="a cat", target_text="a cat", blend_words=None, reweight="")
        is True
    )
