"""Attention Mask on transformers: a word's share of the attention to text, block by block."""

from __future__ import annotations

import comfy.samplers
import comfy.text_encoders.pixart_t5
import comfy.text_encoders.sd3_clip
import pytest
import torch
from palimpsest.nodes.diffusion.trajectory import Trajectory
from palimpsest.nodes.prompt_to_prompt.attention_mask import found_words
from palimpsest.nodes.prompt_to_prompt.nodes import AttentionMask
from palimpsest.nodes.text.tokens import tokenize
from support.fixtures.explicit_attention import Explicit
from support.fixtures.plain_words import in_template
from support.fixtures.sampling import random_trajectory
from support.fixtures.tiny_clip import sd1, tokenizer_only
from support.fixtures.tiny_models import conditioning, two_level
from support.fixtures.tiny_transformers import KINDS, families
from support.fixtures.transformer_edits import path

pytestmark = pytest.mark.model

TEXT = "a red cat on the grass"


@pytest.mark.parametrize("name", ["flux", "sd35_medium", "qwen_image"])
@torch.inference_mode()
def test_a_map_is_the_words_share_of_an_explicit_softmax(name):
    kind = KINDS[name]
    model = kind.model()
    prompt = in_template(TEXT)
    source = kind.conditioning(2, len(prompt.ids))
    trajectory = path(kind, model, source, batch=2)
    cat, grass = prompt.words[2], prompt.words[5]
    found, report = found_words(model, trajectory, source, [cat, grass], prompt, range(2), "1-2")

    explicit = Explicit(6 * 8, len(prompt.ids))
    plain = model.clone()
    plain.model_options["transformer_options"]["optimized_attention_override"] = explicit
    expected = 0.0
    for step in range(2):
        guider = comfy.samplers.CFGGuider(plain)
        guider.set_conds(source, source)
        guider.set_cfg(1.0)
        first = len(explicit.shares)
        x = trajectory.latents[step]
        guider.sample(
            torch.zeros_like(x), x, _once(x), trajectory.sigmas[step : step + 2].clone(), seed=0, disable_pbar=True
        )
        assert len(explicit.shares) - first == kind.blocks
        for block in (1, 2):
            share = explicit.shares[first + block].mean(1)
            maps = torch.stack([share[..., list(word)].sum(-1) for word in (cat, grass)], 1)
            expected = expected + maps / maps.mean(-1, keepdim=True) / 4.0
    torch.testing.assert_close(found, expected.unflatten(-1, (6, 8)).float(), rtol=1e-6, atol=1e-6)
    assert [line.split()[0] for line in report.splitlines()[2:]] == ["1", "2"] and report.count("read") == 2


def _once(x: torch.Tensor):
    """A sampler that asks the model about x at the first level."""

    class Once(comfy.samplers.Sampler):
        def sample(self, model_wrap, sigmas, extra_args, callback, noise, latent_image, *rest):
            return model_wrap(x, sigmas[0].expand(len(x)), **extra_args)

    return Once()


@families("flux", "lumina2")
@torch.inference_mode()
def test_every_family_has_maps_from_its_clearest_blocks(name):
    kind = KINDS[name]
    model = kind.model()
    prompt = in_template(TEXT, parts=3 if kind.llama else 1)
    source = kind.conditioning(2, len(in_template(TEXT).ids))
    trajectory = path(kind, model, source)
    before = model.model_options
    found, report = found_words(model, trajectory, source, [prompt.words[2], *prompt.words], prompt, range(2), "auto")
    _, rows, columns = (1, 12, 16) if name == "flux2" else (1, 6, 8)
    assert found.shape == (1, 7, rows, columns)
    torch.testing.assert_close(found.mean((2, 3)), torch.ones(1, 7), rtol=0, atol=1e-5)
    assert torch.equal(found[:, 0], found[:, 3]) and not torch.equal(found[:, 1], found[:, 2])
    lines = [line.split() for line in report.splitlines()[2:]]
    assert len(lines) == kind.blocks
    variations = {int(line[0]): float(line[3]) for line in lines}
    read = {int(line[0]) for line in lines if line[-1] == "read"}
    assert read == {block for block, own in variations.items() if own >= max(variations.values()) / 2 - 1e-3}
    assert model.model_options == before


@torch.inference_mode()
def test_frames_have_a_map_each():
    kind = KINDS["wan"]
    model = kind.model()
    prompt = in_template(TEXT)
    source = kind.conditioning(2, len(prompt.ids))
    trajectory = path(kind, model, source)
    clip = torch.cat([trajectory.latents] * 2, 3)
    found, _ = found_words(
        model, Trajectory(clip, trajectory.sigmas, source, trajectory.model, "sampled", trajectory.residuals), source,
        [prompt.words[2]], prompt, range(1), "auto",
    )  # fmt: skip
    assert found.shape == (2, 1, 6, 8)


@torch.inference_mode()
def test_the_node_gives_a_mask_of_the_picture_s_size_for_prompts_of_two_encoders():
    """SD3 reads CLIP's columns and then T5's."""
    kind = KINDS["sd3"]
    model = kind.model()
    clip = tokenizer_only(comfy.text_encoders.sd3_clip.SD3Tokenizer)
    columns = len(tokenize(clip, TEXT).ids)
    assert columns == 77 + 77
    positive = kind.conditioning(2, columns)
    trajectory = path(kind, model, positive)
    result = AttentionMask.execute(model, clip, trajectory, TEXT, "red cat", 0.0, 1.0, 0.0, positive=positive)
    mask, colours, report = result.args
    assert mask.shape == (1, 96, 128) and set(mask.unique().tolist()) == {0.0, 1.0}
    assert colours.shape == (1, 96, 128, 3) and report.startswith("SD3: attention to the words")
    assert [word["word"] for word in result.ui["palimpsest_words"][0]["words"]] == TEXT.split()
    with pytest.raises(
        ValueError, match=r"^positive: expected an encoding of the text, which has 154 tokens, got .* 77"
    ):
        short = kind.conditioning(2, 77)
        AttentionMask.execute(model, clip, trajectory, TEXT, "cat", 0.0, 1.0, 0.0, positive=short)


@torch.inference_mode()
def test_blocks_that_a_model_lacks_are_refused():
    kind = KINDS["flux"]
    model = kind.model()
    clip = tokenizer_only(comfy.text_encoders.pixart_t5.PixArtTokenizer)
    positive = kind.conditioning(2, len(tokenize(clip, TEXT).ids))
    trajectory = path(kind, model, positive, 1)

    def read(blocks):
        return AttentionMask.execute(
            model, clip, trajectory, TEXT, "cat", 0.0, 1.0, 0.0, positive=positive, blocks=blocks
        ).args[2]

    with pytest.raises(ValueError, match=r"^blocks: expected block numbers 0-4 of this Flux\.1, .* got '5'"):
        read("3-4, 5")
    with pytest.raises(ValueError, match=r"^blocks: expected 'auto', 'all' or block numbers"):
        read("double")
    assert read("double 1, single 0").count("read") == 2 and read("all").count("read") == 5
    unet = two_level()
    steps = random_trajectory(unet, conditioning(unet, 1), 1)
    with pytest.raises(ValueError, match=r"^blocks: expected 'auto' for a UNet"):
        AttentionMask.execute(unet, sd1(), steps, TEXT, "cat", 0.0, 1.0, 0.0, blocks="3")
    with pytest.raises(ValueError, match=r"^clip: expected CLIP text encoders, which this UNet reads"):
        AttentionMask.execute(unet, clip, steps, TEXT, "cat", 0.0, 1.0, 0.0, positive=conditioning(unet, 1, tokens=8))
