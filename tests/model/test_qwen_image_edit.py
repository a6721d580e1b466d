"""Qwen-Image-Edit's own text encoding: its encoder sees the picture, whose tokens stand in front of the words, beside a reference latent."""

from __future__ import annotations

from functools import partial

import comfy.samplers
import comfy_extras.nodes_custom_sampler as core
import pytest
import torch
from comfy_extras.nodes_edit_model import ReferenceLatent
from comfy_extras.nodes_qwen import TextEncodeQwenImageEdit, TextEncodeQwenImageEditPlus
from palimpsest.nodes.inversion.nodes import DDIMInvert, SampleTrajectory
from palimpsest.nodes.plug_and_play.nodes import PlugAndPlay
from palimpsest.nodes.prompt_to_prompt.nodes import AttentionMask, EncodePromptEdit, PromptToPrompt
from palimpsest.nodes.retracing.nodes import ExactRetracing
from palimpsest.nodes.text.tokens import columns_of_conditioning, tokenize
from support.fixtures import tiny_qwen
from support.fixtures.evaluated import Evaluated
from support.fixtures.inversions import relative, sample_back, schedule
from support.fixtures.tiny_transformers import KINDS

pytestmark = pytest.mark.model

KIND = KINDS["qwen_image"]
EULER = comfy.samplers.sampler_object("euler")
SOURCE, TARGET = "a red cat on grass", "a red dog on grass"
ENCODERS = {
    "edit": lambda clip, text, image: TextEncodeQwenImageEdit.execute(clip, text, image=image)[0],
    "plus": lambda clip, text, image: TextEncodeQwenImageEditPlus.execute(clip, text, image1=image, image2=image)[0],
}
TOKENS = {"edit": 37 * 37, "plus": 2 * 14 * 14}  # of 28 x 28 pixels
ENCODER = pytest.mark.parametrize("encoder", [pytest.param("edit", marks=pytest.mark.long), "plus"])


@pytest.fixture(scope="module")
def clip():
    return tiny_qwen.qwen_image()


@pytest.fixture(scope="module")
def image():
    return torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(3))


def encoded(clip, text: str, image: torch.Tensor, encoder: str) -> list:
    """With a reference latent, as these nodes add one by their VAE."""
    return ReferenceLatent.execute(
        ENCODERS[encoder](clip, text, image), {"samples": KIND.latent(30, height=6, width=10)}
    )[0]


def sampled(model, prompt: list, trajectory, noise, latent) -> torch.Tensor:
    guider = core.CFGGuider.execute(model, prompt, prompt, 1.0)[0]
    return core.SamplerCustomAdvanced.execute(noise, guider, EULER, trajectory.sigmas, latent)[0]["samples"]


@ENCODER
@torch.inference_mode()
def test_the_picture_s_own_queries_are_read_behind_all_of_these_tokens(clip, image, encoder):
    prompt = encoded(clip, SOURCE, image, encoder)
    alone = [[clip.encode_from_tokens_scheduled(clip.tokenize(SOURCE))[0][0], {}]]
    assert columns_of_conditioning(*prompt[0]) > TOKENS[encoder] + columns_of_conditioning(*alone[0])
    x, first = KIND.latent(1), {"query": {0}, "key": {0}}
    one, other = (Evaluated(KIND, own).recorded(x, first) for own in (prompt, alone))
    for place in (("query", 0, 0), ("key", 0, 0)):
        torch.testing.assert_close(one[place], other[place], rtol=0, atol=2e-6)


@ENCODER
@torch.inference_mode()
def test_inversion_and_plug_and_play_are_right(clip, image, encoder):
    model = KIND.model()
    prompt, other = (encoded(clip, text, image, encoder) for text in (SOURCE, TARGET))
    picture = {"samples": KIND.latent(1, height=8, width=12)}
    sigmas = schedule(model, 3, "simple")
    inverted = DDIMInvert.execute(model, prompt, picture, sigmas, "ddim", 1)[0]
    exact = ExactRetracing.execute(model, inverted)[0]
    assert relative(sample_back(exact, inverted, picture["samples"]).latents[-1], inverted.latents[-1]) < 1e-5

    noise, empty = core.Noise_RandomNoise(5), {"samples": torch.zeros_like(picture["samples"])}
    guider = core.CFGGuider.execute(model, prompt, prompt, 1.0)[0]
    made, trajectory = SampleTrajectory.execute(noise, guider, EULER, sigmas, empty).args
    edited = PlugAndPlay.execute(model, trajectory, 1.0, 1.0, "auto")[0]
    assert torch.equal(sampled(edited, prompt, trajectory, noise, empty), made["samples"])
    kept, free = (sampled(m, other, trajectory, noise, empty) for m in (edited, model))
    assert relative(kept, free) > 1e-5  # the pictures, which both prompts have, are most of their tokens


@ENCODER
@torch.inference_mode()
def test_edits_by_words_take_prompts_without_pictures_and_refuse_these(clip, image, encoder):
    """Where a word is behind a picture's tokens cannot be told from the encoding. The reference latent alone does both know."""
    model = KIND.model()
    with_pictures = encoded(clip, SOURCE, image, encoder)
    picture = {"samples": KIND.latent(1, height=8, width=12)}
    trajectory = DDIMInvert.execute(model, with_pictures, picture, schedule(model, 3, "simple"), "ddim", 1)[0]
    target, edit, *_ = EncodePromptEdit.execute(clip, SOURCE, TARGET, "auto", "", "").args
    target = ReferenceLatent.execute(target, {"samples": KIND.latent(30, height=6, width=10)})[0]
    noise = core.Noise_EmptyNoise()
    edited = PromptToPrompt.execute(model, trajectory, edit, 1.0, 1.0, 0.0, 0.3)[0]
    start = {"samples": model.model.process_latent_out(trajectory.start)}
    assert (
        relative(sampled(edited, target, trajectory, noise, start), sampled(model, target, trajectory, noise, start))
        > 1e-4
    )

    mask = partial(AttentionMask.execute, model, clip, trajectory, SOURCE, "cat", 0.0, 1.0, 0.0)
    columns = len(tokenize(clip, SOURCE).ids)
    assert mask().args[0].shape == (1, 64, 96)
    says = rf"expected .* which has {columns} tokens, got conditioning of \d+\. .* use Set Reference Latent in its place\.$"
    with pytest.raises(ValueError, match=f"^positive: {says}"):
        mask(positive=with_pictures)
    with pytest.raises(ValueError, match=f"^source: {says}"):
        PromptToPrompt.execute(model, trajectory, edit, 1.0, 1.0, 0.0, 0.3, source=with_pictures)
    with pytest.raises(ValueError, match=f"^positive: {says}"):
        sampled(edited, encoded(clip, TARGET, image, encoder), trajectory, noise, start)
