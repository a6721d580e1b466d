"""Alignment of two prompts, beside the published mappers written down again in plain arrays."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from palimpsest.nodes.prompt_to_prompt.alignment import (
    auto_alignment,
    global_alignment,
    refine_alignment,
    replace_alignment,
)
from palimpsest.nodes.text.prompt_tokens import PromptTokens
from support.fixtures.plain_words import CHUNK, ROOM, tokenize

pytestmark = pytest.mark.unit


def published_refine(x: list, y: list) -> tuple[np.ndarray, np.ndarray]:
    """get_mapper of the published seq_aligner: source column of each target column, and whether there is one."""
    score = np.zeros((len(x) + 1, len(y) + 1), int)
    trace = np.zeros_like(score)
    trace[0, 1:], trace[1:, 0] = 1, 2
    for i in range(1, len(x) + 1):
        for j in range(1, len(y) + 1):
            options = [score[i, j - 1], score[i - 1, j], score[i - 1, j - 1] + (1 if x[i - 1] == y[j - 1] else -1)]
            score[i, j] = max(options)
            trace[i, j] = options.index(max(options)) + 1
    i, j = len(x), len(y)
    base = []
    while i or j:
        if trace[i, j] == 3:
            i, j = i - 1, j - 1
            base.append(i)
        elif trace[i, j] == 1:
            j -= 1
            base.append(-1)
        else:
            i -= 1
    mapper = np.arange(CHUNK)
    mapper[: len(y)] = base[::-1]
    return mapper, mapper >= 0


def published_replace(source: PromptTokens, target: PromptTokens, shift_kept: bool) -> np.ndarray:
    """get_replacement_mapper_; `shift_kept` False is its [j, j] after the last replaced word, which should be [i, j]."""
    replaced = [
        k for k, (a, b) in enumerate(zip(source.words, target.words, strict=True)) if source.of(a) != target.of(b)
    ]
    mapper = np.zeros((CHUNK, CHUNK))
    i = j = at = 0
    while i < CHUNK and j < CHUNK:
        if at < len(replaced) and source.words[replaced[at]][0] == i:
            old, new = source.words[replaced[at]], target.words[replaced[at]]
            if len(old) == len(new):
                mapper[list(old), list(new)] = 1
            else:
                mapper[np.ix_(old, new)] = 1 / len(new)
            at, i, j = at + 1, i + len(old), j + len(new)
        else:
            mapper[i if at < len(replaced) or shift_kept else j, j] = 1
            i, j = i + 1, j + 1
    return mapper


WORDS = st.sampled_from(["cat", "tiger", "red", "a", "hippopotamus", "on", "grass", "rhinoceroses"])
PROMPTS = st.lists(WORDS, min_size=1, max_size=12).map(" ".join)


@settings(deadline=None, max_examples=25)
@given(PROMPTS, PROMPTS)
def test_refine_equals_the_published_mapper_on_all_but_its_padding(x, y):
    source, target = tokenize(x), tokenize(y)
    ends = [len(prompt.content) + 2 for prompt in (source, target)]
    mapper, aligned = published_refine(source.ids[: ends[0]], target.ids[: ends[1]])
    ours = refine_alignment(source, target)
    for j in range(CHUNK):
        if j >= ends[1] and mapper[j] < ends[0]:  # padding that the published mapper sends to a word
            assert source.ids[int(ours.mapper[:, j].argmax())] == "pad"
            continue
        assert float(ours.aligned[j]) == aligned[j]
        assert ours.mapper[:, j].nonzero().flatten().tolist() == ([mapper[j]] if aligned[j] else [])


def test_ties_go_left_then_up():
    assert global_alignment("ab", "ba") == [(1, 0)]  # with up first it would be (0, 1)
    assert global_alignment("aa", "a") == [(0, 0)]
    assert global_alignment("a", "aa") == [(0, 0)]
    assert global_alignment("abc", "") == global_alignment("", "abc") == []


@settings(deadline=None, max_examples=25)
@given(st.text("abc", max_size=12), st.text("abc", max_size=12))
def test_alignment_pairs_equal_tokens_in_order_and_as_many_as_can_be(x, y):
    pairs = global_alignment(x, y)
    assert all(x[i] == y[j] for i, j in pairs)
    assert pairs == sorted(pairs) and all(len(set(side)) == len(pairs) for side in zip(*pairs, strict=True))
    longest = np.zeros((len(x) + 1, len(y) + 1), int)
    for i, a in enumerate(x):
        for j, b in enumerate(y):
            longest[i + 1, j + 1] = longest[i, j] + 1 if a == b else max(longest[i, j + 1], longest[i + 1, j])
    assert len(pairs) == longest[-1, -1]


@settings(deadline=None, max_examples=25)
@given(PROMPTS)
def test_identical_prompts_align_to_the_identity(text):
    prompt = tokenize(text)
    maps = torch.rand(2, 5, len(prompt.ids))
    for align in (auto_alignment, refine_alignment, replace_alignment):
        alignment = align(prompt, prompt)
        assert torch.equal(alignment.mapper, torch.eye(len(prompt.ids)))
        assert torch.equal(alignment.aligned, torch.ones(len(prompt.ids)))
        assert torch.equal(maps @ alignment.mapper, maps)


@settings(deadline=None, max_examples=25)
@given(st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=12))
def test_replace_equals_the_published_mapper_without_its_shift(pairs):
    source, target = (tokenize(" ".join(words)) for words in zip(*pairs, strict=True))
    expected = published_replace(source, target, shift_kept=True)
    ours = replace_alignment(source, target).mapper.numpy()
    end = target.content[-1] + 2
    assert np.allclose(ours[:, :end], expected[:, :end])


def test_published_replace_mapper_reads_later_words_from_a_shifted_column_and_ours_does_not():
    source, target = tokenize("a cat on sand"), tokenize("a hippopotamus on sand")
    upstream = published_replace(source, target, shift_kept=False)
    ours = replace_alignment(source, target).mapper
    for word in (2, 3):
        [own], [counterpart] = target.words[word], source.words[word]
        assert upstream[own, own] == 1 and upstream[counterpart, own] == 0
        assert source.ids[own] != target.ids[own]  # what upstream reads is another token
        assert ours[:, own].nonzero().tolist() == [[counterpart]]


@settings(deadline=None, max_examples=25)
@given(st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=12))
def test_replaced_words_share_out_their_attention_and_no_more(pairs):
    source, target = (tokenize(" ".join(words)) for words in zip(*pairs, strict=True))
    mapper = replace_alignment(source, target).mapper
    for old, new in zip(source.words, target.words, strict=True):
        assert torch.allclose(mapper[list(old)].sum(1), torch.ones(len(old)))
        assert float(mapper[list(old)].sum()) == pytest.approx(float(mapper[np.ix_(old, new)].sum()))
        if source.of(old) == target.of(new):
            assert torch.equal(mapper[np.ix_(old, new)], torch.eye(len(old)))


def test_punctuation_keeps_its_own_attention():
    source, target = tokenize("a cat, sits"), tokenize("a hippopotamus, sits")
    mapper = replace_alignment(source, target).mapper
    comma, new_comma = source.words[1][-1], target.words[1][-1]
    assert mapper[:, new_comma].nonzero().tolist() == [[comma]]
    assert torch.equal(mapper[source.words[1][0], list(target.words[1])], torch.tensor([1 / 3, 1 / 3, 1 / 3, 0]))


@pytest.mark.parametrize("align", [replace_alignment, refine_alignment])
def test_words_pushed_into_another_chunk_keep_their_source(align):
    start = " ".join(f"w{i}" for i in range(ROOM - 1))
    source, target = tokenize(f"{start} cat end"), tokenize(f"{start} hippopotamus end")
    assert len(source.ids) == len(target.ids) == 2 * CHUNK
    alignment = align(source, target)
    [old], [new] = source.words[-1], target.words[-1]
    assert (old // CHUNK, new // CHUNK) == (1, 1) and old != new
    assert alignment.mapper[:, new].nonzero().tolist() == [[old]]
    assert all(alignment.mapper[begin, begin] == 1 for begin in (0, CHUNK))


def test_a_chunk_the_source_does_not_have_keeps_its_own_attention():
    source, target = tokenize("a cat"), tokenize("a cat " + " ".join(f"w{i}" for i in range(90)))
    alignment = refine_alignment(source, target)
    assert alignment.mapper.shape == (CHUNK, 2 * CHUNK)
    assert alignment.aligned.nonzero().flatten().tolist() == [0, 1, 2, CHUNK - 1]
    back = refine_alignment(target, source)
    assert back.aligned[:4].tolist() == [1, 1, 1, 1]
    assert not back.aligned[4:].any()  # the first chunk of the long prompt has no padding to follow


def follows(source, target):
    """Each word of the target with the words of the source that its tokens follow."""
    old, new = tokenize(source), tokenize(target)
    alignment = auto_alignment(old, new)
    followed = []
    for word, columns in zip(target.split(), new.words, strict=True):
        rows = alignment.mapper[:, list(columns)].sum(1).nonzero().flatten().tolist()
        words = [a for a, places in zip(source.split(), old.words, strict=True) if set(places) & set(rows)]
        assert bool(words) == bool(alignment.aligned[list(columns)].any())
        followed.append((word, " ".join(words)))
    return followed


@pytest.mark.parametrize(
    ("source", "target", "changed"),
    [
        ("a cat on a mat", "a fluffy cat on mat", {"fluffy": ""}),  # an addition and a removal
        ("a photo of a cat on a mat", "a photo of a fluffy dog on a mat", {"fluffy": "", "dog": ""}),
        ("a red cat", "a blue dog", {"blue": "red", "dog": "cat"}),
        ("a cat and a tree", "a fluffy cat and a hippopotamus", {"fluffy": "", "hippopotamus": "tree"}),
        ("a cat, a dog, grass", "a dog, a cat, grass", None),
        ("a cat, sits", "a cat sits", {}),
        ("a cat sits", "a cat, sits", {"cat,": "cat"}),
        ("a cat on sand", "a cat", {}),
        ("a cat", "a cat on sand, sunny", {"on": "", "sand,": "", "sunny": ""}),
    ],
)
def test_auto_swaps_adds_and_removes_words_in_one_edit_E7(source, target, changed):
    followed = follows(source, target)
    if changed is None:  # exchanged places: words that stand follow themselves, no word follows another
        assert all(old in (word, "") for word, old in followed)
        return
    for word, old in followed:
        assert old.rstrip(",") == changed.get(word, word).rstrip(",")


@settings(deadline=None, max_examples=25)
@given(PROMPTS, PROMPTS)
def test_auto_keeps_equal_words_in_order_and_shares_no_attention_twice_E7(x, y):
    source, target = tokenize(x), tokenize(y)
    mapper = auto_alignment(source, target).mapper
    assert float(mapper.sum(1).max()) <= 1.0 + 1e-6 or source.ids.count("pad") < target.ids.count("pad")
    for word in target.words:
        rows = mapper[:, list(word)].sum(1).nonzero().flatten().tolist()
        assert len([old for old in source.words if set(old) & set(rows)]) <= 1


@settings(deadline=None, max_examples=25)
@given(st.lists(WORDS, min_size=2, max_size=8, unique=True), st.data())
def test_auto_equals_replace_where_one_word_is_exchanged_for_another_E7(words, data):
    place = data.draw(st.integers(0, len(words) - 1))
    source, target = (
        tokenize(" ".join([*words[:place], word, *words[place + 1 :]])) for word in (words[place], "zebra")
    )
    assert torch.equal(auto_alignment(source, target).mapper, replace_alignment(source, target).mapper)
