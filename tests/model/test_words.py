"""Any text that core encodes: its words, phrases and columns, by ComfyUI's own tokenizers and encoders."""

import re
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from palimpsest.nodes.prompt_to_prompt.nodes import EncodePromptEdit
from palimpsest.nodes.prompt_to_prompt.prompt_edit import MODES, prompt_edit
from palimpsest.nodes.text.tokens import tokenize
from safetensors.torch import save_file
from support.fixtures import tiny_clip
from support.fixtures.prompts import LONG, SENTENCES, TAGS

pytestmark = pytest.mark.model

CLIP = tiny_clip.sd1()
read = partial(tokenize, CLIP)

TAG_LISTS = st.lists(st.sampled_from(TAGS), min_size=1, max_size=30).map(", ".join)
PROMPTS = TAG_LISTS | st.sampled_from(SENTENCES) | st.lists(st.sampled_from(SENTENCES), max_size=6).map(" ".join)
ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from("()\\:., \n\tab1"), max_size=60)
PROPERTY = settings(deadline=None, max_examples=60)


def columns_of_core(text, clip=CLIP, name="l"):
    """Token by token, with neither words nor vectors of another width."""
    chunks = clip.tokenize(text, return_word_ids=True)[name]
    flat = [entry for chunk in chunks for entry in chunk]
    return {column: token for column, (token, _, word) in enumerate(flat) if word}


def spelled(prompt):
    """ASCII words as their tokens spell them."""
    return ["".join(token.removesuffix("</w>") for token in prompt.of(word)) for word in prompt.words]


@PROPERTY
@given(PROMPTS | ANY_TEXT)
def test_columns_are_core_s_and_each_belongs_to_one_word_R1(text):
    prompt, core = read(text), columns_of_core(text)
    assert prompt.content == tuple(core)
    assert prompt.of(prompt.content) == tuple(CLIP.tokenizer.untokenize([(t, 1.0)])[0][1] for t in core.values())
    assert len(prompt.ids) == sum(map(len, CLIP.tokenize(text)["l"]))


@PROPERTY
@given(
    st.lists(st.sampled_from([tag for tag in TAGS if "(" not in tag and tag.isascii()]), min_size=1, max_size=20).map(
        " ".join
    )
)
def test_words_stand_between_spaces_R1(text):
    assert spelled(read(text)) == list(read(text).spelled_words) == text.lower().split()


@PROPERTY
@given(st.text("()ab1 !\\,", max_size=40).filter(lambda text: not re.search(r"\\[()]", text)))
def test_escaped_brackets_are_brackets_R1(text):
    escaped = re.sub(r"([()])", r"\\\1", text)
    assert spelled(read(escaped)) == list(read(escaped).spelled_words) == text.split()


@PROPERTY
@given(st.lists(st.sampled_from(TAGS), min_size=1, max_size=30), st.data())
def test_every_phrase_that_stands_in_the_prompt_is_found_R1(tags, data):
    phrase = data.draw(st.sampled_from(tags))
    prompt, wanted = read(", ".join(tags)), read(phrase)
    columns = prompt.find(wanted)
    assert columns
    assert len(columns) % len(wanted.content) == 0 or not "".join(wanted.spelled_words).isalnum()


@PROPERTY
@given(st.sampled_from(SENTENCES), st.data())
def test_runs_of_words_of_a_sentence_are_found_R1(sentence, data):
    words = [word for word in sentence.split() if not re.search(r"[()\\\[\]]", word)]
    first = data.draw(st.integers(0, len(words) - 1)) if words else 0
    if words:
        assert read(sentence).find(read(words[first]))


@PROPERTY
@given(PROMPTS, st.sampled_from(MODES))
def test_an_identity_edit_is_the_identity_E7(text, mode):
    if read(text).words:
        edit = prompt_edit(read, text, text, mode, "", "")
        assert torch.equal(edit.alignment.mapper, torch.eye(len(edit.source.ids)))
        assert torch.equal(edit.alignment.aligned, torch.ones(len(edit.source.ids)))


@pytest.mark.parametrize(
    ("prompt", "phrase", "tokens"),
    [
        (r"1girl, pokemon \(creature\), blue hair", r"pokemon \(creature\)", ["pokemon", "(", "creature", "),"]),
        (r"1girl, (pokemon \(creature\):1.2), blue hair", r"\(creature\)", ["(", "creature", ")"]),
        ('a sign "open", red wall', '"open"', ['"', "open", '",']),
        ('a sign "open", red wall', "open", ["open"]),
        ("(wow!:1.2), a cat", "wow!", ["wow", "!"]),
        ("a cat :( on a mat", ":(", [":", "("]),
        ("a (fluf:1.2)fy cat", "fluffy", ["flu", "f", "fy"]),
        ("red-haired cats", "red", ["red"]),
        ("a cat, 1girl", "girl", ["girl"]),
    ],
)
def test_a_phrase_owns_the_tokens_it_shares_with_punctuation_R1(prompt, phrase, tokens):
    found = read(prompt).find(read(phrase))
    assert [token.removesuffix("</w>") for token in read(prompt).of(found)] == tokens


@pytest.mark.parametrize(
    ("prompt", "phrase"),
    [("two cats", "cat"), ("year 2024", "20"), ("red cat", "redcat"), ("a big red cat", "big cat"), ("кошка", "кот")],
)
def test_parts_of_words_and_numbers_are_no_phrases(prompt, phrase):
    assert read(prompt).find(read(phrase)) == ()


def test_a_script_without_spaces_has_phrases_anywhere_R1():
    prompt = read("一只猫在草地上, a cat")
    assert prompt.find(read("猫")) and prompt.find(read("草地"))
    assert set(prompt.find(read("猫"))) <= set(prompt.words[0])


@pytest.mark.parametrize("text", [LONG, "cat " * 300, "hippopotamuses\n" * 80], ids=["tags", "repeated", "lines"])
def test_three_hundred_words_R1(text):
    prompt = read(text)
    assert len(prompt.ids) % 77 == 0 and prompt.content == tuple(columns_of_core(text))
    encoded = CLIP.encode_from_tokens_scheduled(CLIP.tokenize(text))[0][0]
    assert encoded.shape[1] == len(prompt.ids)


def test_tags_can_be_reweighted_and_blended_as_they_stand_R1():
    text = r'1girl, (pokemon \(creature\):1.2), :\(, "open", (wow!:1.1)'
    _, edit = EncodePromptEdit.execute(
        CLIP, text, text, "auto", r"pokemon \(creature\): 2, :\(: 3", '"open", wow!'
    ).args
    weighted = [(edit.target.ids[i], w) for i, w in enumerate(edit.equalizer.tolist()) if w != 1.0]
    assert [w for _, w in weighted] == [2.0] * 4 + [3.0] * 2
    assert len(edit.source_blend) == len(edit.target_blend) == 5


# Textual inversions.


@pytest.fixture(scope="module")
def embeddings(tmp_path_factory):
    folder = tmp_path_factory.mktemp("embeddings")
    draw = partial(torch.randn, generator=torch.Generator().manual_seed(0))
    save_file({"emb_params": draw(4, tiny_clip.WIDTH)}, folder / "fits.safetensors")
    save_file({"emb_params": draw(4, 48)}, folder / "other.safetensors")
    save_file({"clip_l": draw(2, tiny_clip.WIDTH), "clip_g": draw(2, 2 * tiny_clip.WIDTH)}, folder / "both.safetensors")
    return str(folder)


def first_difference(clip, text, word, other):
    """The column that core's encoder has the word in: a causal encoder differs from there on."""
    a, b = (clip.encode_from_tokens_scheduled(clip.tokenize(t))[0][0] for t in (text, text.replace(word, other)))
    return int(((a - b).abs().amax(-1)[0] > 1e-6).nonzero()[0])


@pytest.mark.parametrize(
    "text",
    [
        "a photo in embedding:fits style of a red cat on a mat",
        "a photo in embedding:other style of a red cat on a mat",
        "embedding:other embedding:fits, (embedding:other:1.2) a red cat on a mat",
        "embedding:missing, a red cat on a mat",
        "many words " * 40 + "embedding:other, a red cat on a mat",
        "a red cat embedding:other on a mat",
    ],
)
def test_a_word_has_the_column_that_the_encoder_gives_it_R3(embeddings, text):
    clip = tiny_clip.sd1(embedding_directory=embeddings)
    prompt = tokenize(clip, text)
    assert prompt.find(tokenize(clip, "cat")) == (first_difference(clip, text, "cat", "dog"),)
    assert prompt.find(tokenize(clip, "mat")) == (first_difference(clip, text, "mat", "hat"),)


def test_a_textual_inversion_is_a_word_of_its_vectors(embeddings):
    clip = tiny_clip.sd1(embedding_directory=embeddings)
    prompt = tokenize(clip, "a cat, (embedding:fits:1.2), here")
    assert prompt.find(tokenize(clip, "embedding:fits")) == (4, 5, 6, 7)
    assert prompt.words[2] == (4, 5, 6, 7, 8) and prompt.spelled_words[2] == "embedding:fits,"
    left_out = tokenize(clip, "a cat, embedding:other")
    assert left_out.words == ((1,), (2, 3)) and left_out.spelled_words == ("a", "cat,") and len(left_out.ids) == 77


def test_an_edit_around_a_textual_inversion_of_another_width_R3(embeddings):
    clip = tiny_clip.sd1(embedding_directory=embeddings)
    texts = ("embedding:other a red cat", "embedding:other a red dog")
    edit = prompt_edit(partial(tokenize, clip), *texts, "auto", "dog: 2", "cat, dog")
    assert edit.source_blend == edit.target_blend == (3,)
    assert edit.equalizer.nonzero().shape[0] == 77 and float(edit.equalizer[3]) == 2.0
    assert torch.equal(edit.alignment.mapper, torch.eye(77))


@pytest.mark.parametrize(
    "text", ["a red cat on a mat, embedding:fits", "embedding:both a red cat", "embedding:other a red cat"]
)
def test_two_encoders_that_agree_about_the_words_R3(embeddings, text):
    clip = tiny_clip.two_encoders(embedding_directory=embeddings)
    prompt = tokenize(clip, text)
    assert prompt.find(tokenize(clip, "cat")) == (first_difference(clip, text, "cat", "dog"),)
    if "fits" in text:
        assert len(prompt.words[-1]) == 4  # G leaves it out, L reads it


def test_two_encoders_of_which_one_leaves_a_vector_out_before_other_words_are_refused_R3(embeddings):
    clip = tiny_clip.two_encoders(embedding_directory=embeddings)
    with pytest.raises(
        ValueError, match=r"^clip: expected text whose words have the same position in both text encoders"
    ):
        tokenize(clip, "embedding:fits a red cat")
