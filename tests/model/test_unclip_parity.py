"""The decoder and the upsamplers against diffusers' unCLIP pipelines on the same weights, texts and noise, stage by stage.

The networks run in float32. The schedulers' coefficients are closed forms in float64, as in Karlo's own code (fault P1); with
diffusers' own, which are float32, pictures are only near.
"""

from __future__ import annotations

import pytest
import torch
from diffusers import DDIMScheduler
from palimpsest.nodes.unclip.decoder.conditioning import unclip_conditioning
from palimpsest.nodes.unclip.decoder.upsampling import linear_betas, upsample
from support.fixtures import twin_unclip, unclip
from support.fixtures.sampling import sample, schedule
from support.fixtures.twin_unclip_pipeline import (
    DECODER_SEED,
    UPSAMPLER_SEED,
    image_variation,
    scheduler,
    text_to_image,
    upsampler_start,
)

pytestmark = [pytest.mark.model, pytest.mark.newest]

PROMPTS = ["a red cube on a blue table", "an old monk, highly detailed"]
STEPS, CFG = 8, 4.0


def relative(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    assert ours.shape == theirs.shape
    print("relative", float((ours - theirs).norm() / theirs.norm()))
    return float((ours - theirs).norm() / theirs.norm())


@pytest.fixture(scope="module")
def twin():
    return twin_unclip.decoder()


@pytest.fixture(scope="module")
def networks():
    return twin_unclip.upsampler(1), twin_unclip.upsampler(2)


def decode(model, clip, texts: list[str], image_embeds: torch.Tensor, start: torch.Tensor, steps: int, cfg: float):
    """Through core's guider, each text with its own embedding and noise: as many runs as there are pictures."""
    sigmas = schedule(model, steps, "normal")
    drawn = unclip.drawn(start.shape, DECODER_SEED)
    rows = [drawn(0, 0) for _ in range(steps - 1)]
    out = []
    for i, text in enumerate(texts):
        embeds = unclip.embedding()
        embeds.image_embeds = image_embeds[i : i + 1]
        guidance = unclip_conditioning(clip, model, text, embeds)
        left = iter(row[i : i + 1] for row in rows)
        sampler = unclip.ancestral(noise_sampler=lambda *_, left=left: next(left))
        x = start[i : i + 1] * (1 + sigmas[0] ** 2) ** 0.5
        out.append(sample(model, x, guidance.positive, guidance.negative, cfg, sigmas, sampler)[-1])
        assert next(left, None) is None
    return torch.cat(out)


@torch.inference_mode()
def test_P1_text_to_image_is_the_published_pipeline_in_float64(twin, networks, clip):
    start = unclip.noise(2)
    theirs = text_to_image(clip, twin, *networks, PROMPTS, STEPS, 7, CFG, start)
    decoded = decode(unclip.decoder(twin), clip, PROMPTS, theirs.image_embeds, start, STEPS, CFG)
    assert relative(decoded, theirs.decoded) < 1e-4
    small = (theirs.decoded.movedim(1, -1) + 1) / 2
    image = upsample(unclip.upsampler(*networks), small, 2, 0, UPSAMPLER_SEED, 512)
    assert relative(image, theirs.image) < 1e-5


@pytest.mark.long
@torch.inference_mode()
def test_P1_image_variation_is_the_published_pipeline_in_float64(twin, networks, clip):
    """Two pictures at once, through one run: a batch of embeddings."""
    start, embeds = unclip.noise(2, seed=3), unclip.embedding(2)
    theirs = image_variation(clip, twin, *networks, embeds.image_embeds, STEPS, 7, CFG, start)
    model = unclip.decoder(twin)
    sigmas = schedule(model, STEPS, "normal")
    guidance = unclip_conditioning(clip, model, "", embeds)
    sampler = unclip.ancestral(noise_sampler=unclip.drawn(start.shape, DECODER_SEED))
    x = start * (1 + sigmas[0] ** 2) ** 0.5
    decoded = sample(model, x, guidance.positive, guidance.negative, CFG, sigmas, sampler)[-1]
    assert relative(decoded, theirs.decoded) < 1e-4
    small = (theirs.decoded.movedim(1, -1) + 1) / 2
    image = upsample(unclip.upsampler(*networks), small, 2, 7, UPSAMPLER_SEED, 512)
    assert relative(image, theirs.image) < 1e-5


@pytest.mark.long
@torch.inference_mode()
def test_with_the_float32_coefficients_of_diffusers_pictures_are_near(twin, networks, clip):
    """The last step of each stage scales the picture by 0.9995, and a random network multiplies what differs before it."""
    start = unclip.noise(2)
    theirs = text_to_image(clip, twin, *networks, PROMPTS, STEPS, 7, CFG, start, exact=False)
    decoded = decode(unclip.decoder(twin), clip, PROMPTS, theirs.image_embeds, start, STEPS, CFG)
    assert relative(decoded, theirs.decoded) < 1e-2
    small = (theirs.decoded.movedim(1, -1) + 1) / 2
    image = upsample(unclip.upsampler(*networks), small, 2, 0, UPSAMPLER_SEED, 512)
    assert relative(image, theirs.image) < 1e-3


@pytest.mark.long
@torch.inference_mode()
def test_the_published_number_of_steps_at_the_published_guidance(twin, clip):
    steps = 25
    start, embeds = unclip.noise(), unclip.embedding()
    theirs = image_variation(clip, twin, *[twin_unclip.upsampler()] * 2, embeds.image_embeds, steps, 2, 8.0, start)
    decoded = decode(unclip.decoder(twin), clip, [""], embeds.image_embeds, start, steps, 8.0)
    assert relative(decoded, theirs.decoded) < 1e-4


@torch.inference_mode()
def test_dalle2_s_second_upsampler_is_ddim_on_the_linear_schedule():
    """Published: fifteen steps; the training steps are spaced as Karlo's. Against diffusers' DDIM step on the same network."""
    network = twin_unclip.upsampler(levels=3)
    small = torch.rand(1, 8, 8, 3, generator=torch.Generator().manual_seed(0))
    ours = upsample(unclip.upsampler(network), small, 4, 0, 7, 512)

    ddim = DDIMScheduler(trained_betas=linear_betas().float(), clip_sample=True, set_alpha_to_one=True)
    timesteps = [round(i * 999 / 14) for i in reversed(range(15))]
    low_res = torch.nn.functional.interpolate(small.movedim(-1, 1) * 2 - 1, 32, mode="bicubic", antialias=True)
    x = torch.randn(low_res.shape, generator=torch.Generator().manual_seed(7))
    for t, following in zip(timesteps, [*timesteps[1:], -1], strict=True):
        # diffusers' step goes down by num_train_timesteps // num_inference_steps: that is told to be this step's.
        ddim.num_inference_steps = 1
        ddim.register_to_config(num_train_timesteps=t - following)
        eps = network(torch.cat([x, low_res], dim=1), t).sample
        x = ddim.step(eps, t, x, use_clipped_model_output=True).prev_sample
    assert relative(ours, (x.movedim(1, -1) / 2 + 0.5).clamp(0, 1)) < 1e-5


@torch.inference_mode()
def test_karlo_s_upsampler_at_another_number_of_steps(networks):
    small = torch.rand(2, 8, 8, 3, generator=torch.Generator().manual_seed(0))
    ours = upsample(unclip.upsampler(*networks), small, 2, 4, 9, 512)
    schedule = scheduler("fixed_small_log", seed=9)
    schedule.set_timesteps(4)
    low_res = torch.nn.functional.interpolate(small.movedim(-1, 1) * 2 - 1, 16, mode="bicubic", antialias=True)
    x = upsampler_start(2, 16, schedule)
    for i, t in enumerate(schedule.timesteps):
        eps = networks[i == 3](torch.cat([x, low_res], dim=1), t).sample
        x = schedule.step(eps, t, x, schedule.timesteps[i + 1] if i < 3 else None).prev_sample
    assert relative(ours, (x.movedim(1, -1) / 2 + 0.5).clamp(0, 1)) < 1e-5
