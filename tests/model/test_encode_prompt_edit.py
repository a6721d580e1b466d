"""Prompts as ComfyUI's own tokenisers cut them."""

from functools import partial

import pytest
import torch
from palimpsest.nodes.prompt_to_prompt.nodes import EncodePromptEdit
from palimpsest.nodes.prompt_to_prompt.prompt_edit import prompt_edit
from palimpsest.nodes.text.tokens import tokenize
from safetensors.torch import save_file
from support.fixtures import tiny_clip

from nodes import CLIPTextEncode

pytestmark = pytest.mark.model


def test_columns_are_the_tokens_of_each_word(clip):
    prompt = tokenize(clip, "A fluffy cat, on hippopotamuses!")
    assert prompt.words == ((1,), (2,), (3, 4), (5,), (6, 7, 8, 9))
    assert (len(prompt.ids), prompt.chunk) == (77, 77)
    assert prompt.find(tokenize(clip, "fluffy cat")) == (2, 3)


def test_weights_are_no_words_and_reach_the_encoder(clip):
    plain, weighted = "a fluffy cat on grass", r"a (fluffy cat:1.3) on ((grass))"
    assert tokenize(clip, weighted).ids == tokenize(clip, plain).ids
    assert tokenize(clip, weighted).words == tokenize(clip, plain).words
    escaped = tokenize(clip, r"a cat \(animal\) here")
    assert len(escaped.words) == 4 and len(escaped.words[2]) == 3
    target, edit = EncodePromptEdit.execute(clip, plain, weighted, "auto", "", "").args
    source = edit.encoded_source
    assert torch.equal(edit.alignment.mapper, torch.eye(77))
    for ours, text in ((source, plain), (target, weighted)):
        assert torch.equal(ours[0][0], CLIPTextEncode().encode(clip, text)[0][0][0])
    assert not torch.equal(source[0][0], target[0][0])


def test_sdxl_s_two_encoders_share_one_layout(clip):
    both = tiny_clip.two_encoders()
    text = "a red cat, " + "word " * 90
    ours, single = tokenize(both, text), tokenize(clip, text)
    assert ours.words == single.words and ours.chunk == single.chunk == 77
    assert ours.of(ours.content) == single.of(single.content)
    assert len(ours.ids) == len(single.ids) == 154


def test_words_behind_the_first_chunk_are_found_and_encoded(clip):
    source = "a cat " + "and grass " * 40 + "under a red sky"
    target = "a fluffy cat " + "and grass " * 40 + "under a blue sky"
    other, edit = EncodePromptEdit.execute(clip, source, target, "refine", "blue: 2", "red sky, blue sky").args
    assert edit.encoded_source[0][0].shape[1] == other[0][0].shape[1] == len(edit.source.ids) == 154
    assert min(edit.source_blend) > 77 and len(edit.source_blend) == len(edit.target_blend) == 2
    [blue] = (edit.equalizer == 2).nonzero().flatten().tolist()
    assert edit.alignment.aligned[blue] == 0
    moved = [int(edit.alignment.mapper[:, j].argmax()) for j in edit.target.words[-1]]
    assert moved == list(edit.source.words[-1])


def test_textual_inversions_align_by_their_vectors(tmp_path):
    generator = torch.Generator().manual_seed(0)
    for name in ("first", "second"):
        save_file(
            {"emb_params": torch.randn(2, tiny_clip.WIDTH, generator=generator)}, tmp_path / f"{name}.safetensors"
        )
    clip = tiny_clip.sd1(embedding_directory=str(tmp_path))
    edit = prompt_edit(
        partial(tokenize, clip), "a cat of embedding:first here", "a red cat of embedding:first here", "auto", "", ""
    )
    [own], [old] = ([w for w in p.words if len(w) == 2] for p in (edit.target, edit.source))
    assert [int(edit.alignment.mapper[:, j].argmax()) for j in own] == list(old)
    other = prompt_edit(partial(tokenize, clip), "a embedding:first", "a embedding:second", "refine", "", "")
    assert not other.alignment.aligned[list(other.target.words[1])].any()
