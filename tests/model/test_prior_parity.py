"""Against diffusers' PriorTransformer, UnCLIPScheduler and Kandinsky pipeline on the same weights, text states and noise.

The networks run in float32. The scheduler's coefficients are closed forms in float64, as in Karlo's own code (fault P1); with
diffusers' own, which are float32, the embeddings are only near.
"""

from __future__ import annotations

from itertools import product
from pathlib import Path

import comfy.sd1_clip
import pytest
import torch
from diffusers import KandinskyPriorPipeline, PriorTransformer
from diffusers.schedulers.scheduling_unclip import UnCLIPScheduler
from palimpsest.nodes.text.text_states import text_states
from palimpsest.nodes.unclip.prior.checkpoint import prior
from palimpsest.nodes.unclip.prior.prior import Options, Prior, sample
from support.cases import cases
from support.fixtures import tiny_clip
from support.fixtures.twin_prior import KANDINSKY_22_WIDTH, KARLO_WIDTH, TINY, loop, published_noise, random_text, twin
from support.fixtures.unclip_schedulers import exactly
from transformers import (
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

pytestmark = [pytest.mark.model, pytest.mark.newest]


def ours(model: PriorTransformer) -> Prior:
    return prior(dict(model.state_dict()), "prior.safetensors", None)


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    assert found.shape == expected.shape
    return float((found - expected).abs().max() / expected.abs().max())


@torch.inference_mode()
def compare(
    model: PriorTransformer, steps: int, count: int, cfg: float, clamp: float, lengths=(9, 2), exact: bool = True
) -> float:
    width = model.config.embedding_dim
    text = random_text(width, lengths if cfg != 1.0 else lengths[:1])
    found = sample(ours(model), text, published_noise(3, steps, count, width), Options(steps, cfg, clamp))
    return relative(found, loop(model, text, 3, count, steps, cfg, clamp, exact))


@pytest.mark.parametrize(
    ("lengths", "clamp"),
    cases(product(((9, 2), (2, 77), (77, 30), (2, 2)), (5.0, 10.0)), ((9, 2), 5.0), ((77, 30), 10.0)),
)
def test_P1_the_loop_is_the_published_one_in_float64(lengths, clamp):
    assert compare(twin(**TINY), 25, 3, 4.0, clamp, lengths) < 1e-5


@pytest.mark.parametrize("steps", cases([7, 40, 100], 7))
def test_P1_the_loop_is_the_published_one_for_other_counts_of_steps(steps):
    assert compare(twin(**TINY, seed=1), steps, 1, 4.0, 5.0) < 1e-5


@pytest.mark.parametrize("steps", cases([25, 100], 25))
def test_with_the_float32_coefficients_of_diffusers_the_last_step_scales_the_embedding_by_0_9995(steps):
    assert compare(twin(**TINY), steps, 3, 4.0, 5.0, exact=False) < 1e-3


def test_without_guidance_too():
    assert compare(twin(**TINY), 25, 2, 1.0, 10.0) < 1e-5


@pytest.mark.long
@pytest.mark.parametrize("size", [KARLO_WIDTH, KANDINSKY_22_WIDTH])
def test_the_loop_is_the_published_one_at_the_published_widths(size):
    assert compare(twin(**size), 3, 2, 4.0, 5.0) < 1e-5


def test_kandinsky_s_pipeline_gives_the_same_embeddings():
    clip = tiny_clip.sd1()
    encoder = clip.cond_stage_model.clip_l.transformer
    text_config = CLIPTextConfig(
        vocab_size=49408, hidden_size=64, intermediate_size=128, projection_dim=64, num_attention_heads=2,
        num_hidden_layers=1, hidden_act="quick_gelu", bos_token_id=49406, eos_token_id=49407,
    )  # fmt: skip
    text_encoder = CLIPTextModelWithProjection(text_config).eval()
    text_encoder.load_state_dict({name: value.float() for name, value in encoder.state_dict().items()}, strict=False)
    vision_config = CLIPVisionConfig(
        hidden_size=64, intermediate_size=64, num_attention_heads=2, num_hidden_layers=1, projection_dim=64, image_size=28, patch_size=14
    )  # fmt: skip
    model = twin(**TINY)
    pipeline = KandinskyPriorPipeline(
        prior=model,
        image_encoder=CLIPVisionModelWithProjection(vision_config).eval(),
        text_encoder=text_encoder,
        tokenizer=CLIPTokenizer.from_pretrained(
            Path(comfy.sd1_clip.__file__).with_name("sd1_tokenizer"), model_max_length=77
        ),
        scheduler=exactly(UnCLIPScheduler(prediction_type="sample", clip_sample_range=10.0)),
        image_processor=None,
    )
    pipeline.set_progress_bar_config(disable=True)
    prompt, negative = "a red fox, 4k photo", "low quality, bad quality"
    made = ours(model)
    with torch.inference_mode():
        for negatives in (None, negative):
            rows = 1 if negatives is None else 2  # with a negative prompt the pipeline samples that one as well
            theirs = pipeline(prompt, negatives, generator=torch.Generator().manual_seed(5), num_inference_steps=25)
            text = text_states(clip, [prompt, negatives or ""], 64, "the prior")
            noise = published_noise(5, 25, rows, 64)
            assert relative(sample(made, text, noise[:, :1], Options()), theirs.image_embeds) < 1e-5
        text = text_states(clip, [negative, negative], 64, "the prior")
        assert relative(sample(made, text, noise[:, 1:], Options()), theirs.negative_image_embeds) < 1e-5
