"""Against transformers' CLIPTextModelWithProjection, which the published unCLIP networks were trained with."""

from __future__ import annotations

from pathlib import Path

import comfy.sd1_clip
import pytest
import torch
from palimpsest.nodes.text.text_states import text_states
from support.fixtures import tiny_clip
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer

pytestmark = pytest.mark.model

LONG = " ".join(f"word{i}" for i in range(60))
TEXTS = ["a red cube on a blue table, at night.", "", "cat", LONG]


def tokenizer(pad: str = "<|endoftext|>") -> CLIPTokenizer:
    return CLIPTokenizer.from_pretrained(Path(comfy.sd1_clip.__file__).with_name("sd1_tokenizer"), pad_token=pad)


def twin(encoder: comfy.sd1_clip.SDClipModel, hidden_act: str) -> CLIPTextModelWithProjection:
    weights = {name: value.float() for name, value in encoder.transformer.state_dict().items()}
    width = weights["text_projection.weight"].shape[0]
    config = CLIPTextConfig(
        vocab_size=49408, hidden_size=width, intermediate_size=2 * width, projection_dim=width, num_attention_heads=2,
        num_hidden_layers=encoder.num_layers, hidden_act=hidden_act, bos_token_id=49406, eos_token_id=49407,
    )  # fmt: skip
    made = CLIPTextModelWithProjection(config).eval()
    made.load_state_dict(weights, strict=False)
    return made


def require_equal(ours, model: CLIPTextModelWithProjection, texts: list[str], pad: str) -> None:
    read = tokenizer(pad)(texts, padding="max_length", max_length=77, truncation=True, return_tensors="pt")
    with torch.no_grad():
        theirs = model(read.input_ids)
    mask = read.attention_mask.bool()
    assert torch.equal(ours.mask, mask)
    scale = theirs.last_hidden_state[mask].abs().max()
    assert (ours.states[mask] - theirs.last_hidden_state[mask]).abs().max() < 1e-5 * scale
    assert (ours.pooled - theirs.text_embeds).abs().max() < 1e-5 * theirs.text_embeds.abs().max()


@pytest.mark.parametrize("pad", ["<|endoftext|>", "!"])
def test_sd1_s_encoder_gives_what_the_published_one_gives(pad):
    clip = tiny_clip.sd1()
    with torch.inference_mode():
        ours = text_states(clip, TEXTS, tiny_clip.WIDTH, "the prior")
    require_equal(ours, twin(clip.cond_stage_model.clip_l, "quick_gelu"), TEXTS, pad)
    assert ours.states.shape == (4, 77, tiny_clip.WIDTH) and ours.unread[:3] == (0, 0, 0)
    assert ours.unread[3] == len(tokenizer()(LONG).input_ids) - 77


@pytest.mark.parametrize("name", ["l", "g"])
def test_of_sdxl_s_two_encoders_the_one_of_the_width_gives_its_last_layer(name):
    clip = tiny_clip.two_encoders()
    encoder = getattr(clip.cond_stage_model, f"clip_{name}")
    width = {"l": tiny_clip.WIDTH, "g": 2 * tiny_clip.WIDTH}[name]
    with torch.inference_mode():
        before = clip.encode_from_tokens(clip.tokenize("a cat"), return_pooled=True)
        ours = text_states(clip, TEXTS, width, "the prior")
        after = clip.encode_from_tokens(clip.tokenize("a cat"), return_pooled=True)
    require_equal(ours, twin(encoder, {"l": "quick_gelu", "g": "gelu"}[name]), TEXTS, "!")
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert (encoder.layer, encoder.layer_idx) == ("hidden", -2)


def test_weights_act_on_the_states_as_everywhere_in_comfyui_and_not_on_the_embedding():
    clip = tiny_clip.sd1()
    with torch.inference_mode():
        plain, weighted = (
            text_states(clip, [text], tiny_clip.WIDTH, "the prior") for text in ("a red cat", "a (red:1.5) cat")
        )
        core = clip.encode_from_tokens(clip.tokenize("a (red:1.5) cat"))
    torch.testing.assert_close(plain.pooled, weighted.pooled)
    assert torch.equal(plain.mask, weighted.mask)
    assert torch.equal(weighted.states, core) and not torch.equal(weighted.states, plain.states)


def test_a_clip_of_another_width_is_refused():
    with pytest.raises(
        ValueError, match=r"^clip: expected a CLIP text encoder of width 768, .* got 64\. Connect CLIP ViT-L"
    ):
        text_states(tiny_clip.sd1(), ["a"], 768, "the prior")
    with pytest.raises(ValueError, match=r"width 1280, .* got 64, 128\. Connect CLIP ViT-bigG/14"):
        text_states(tiny_clip.two_encoders(), ["a"], 1280, "the prior")


def test_an_earlier_layer_is_refused():
    clip = tiny_clip.sd1()
    clip.clip_layer(-2)
    with pytest.raises(
        ValueError, match=r"^clip: expected its last layer, which the prior was trained with, got layer -2\."
    ):
        text_states(clip, ["a"], tiny_clip.WIDTH, "the prior")


@pytest.mark.parametrize("fill", [0.0, float("nan"), 6e4])
def test_a_checkpoint_without_a_projection_is_refused(fill):
    clip = tiny_clip.sd1()
    clip.cond_stage_model.clip_l.transformer.text_projection.weight.data.fill_(fill)
    with pytest.raises(ValueError, match=r"^clip: expected a text encoder with its projection .* got one without\. "):
        text_states(clip, ["a"], tiny_clip.WIDTH, "the prior")
