"""The decoder as a MODEL: core's samplers, guiders and masks on it, and what a run of it shares."""

from __future__ import annotations

import comfy.model_base
import comfy.model_management
import comfy.samplers
import comfy_extras.nodes_custom_sampler as core
import pytest
import torch
from palimpsest.nodes.inversion.ddim import convergence_report, invert
from palimpsest.nodes.unclip.decoder.conditioning import unclip_conditioning
from palimpsest.nodes.unclip.decoder.loading import pixel_vae
from palimpsest.nodes.unclip.respaced_schedule import respaced
from support.cases import cases
from support.fixtures import tiny_clip, twin_unclip, unclip
from support.fixtures.inversions import sample_back
from support.fixtures.sampling import sample, schedule

from nodes import (
    CLIPTextEncode,
    ConditioningConcat,
    EmptyLatentImage,
    KSampler,
    SetLatentNoiseMask,
)

pytestmark = pytest.mark.model

CFG = 4.0


@pytest.fixture(scope="module")
def model():
    """Of small answers: what a random network makes of a difference grows with every step."""
    return unclip.decoder(twin_unclip.decoder(output=0.3))


@pytest.fixture(scope="module")
def guidance(model, clip):
    return unclip_conditioning(clip, model, "a red cube", unclip.embedding())


def start(model, steps: int, batch: int = 1, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    sigmas = schedule(model, steps, "normal")
    return unclip.noise(batch, seed=seed) * (1 + sigmas[0] ** 2) ** 0.5, sigmas


def run(model, guidance, sampler="euler", steps: int = 4, batch: int = 1, cfg: float = CFG, **options) -> torch.Tensor:
    x, sigmas = start(model, steps, batch)
    return sample(model, x, guidance.positive, guidance.negative, cfg, sigmas, sampler, **options)[-1]


def split_calls(monkeypatch) -> None:
    """As on a device without the memory for both conditions at once."""
    monkeypatch.setattr(comfy.model_base.BaseModel, "memory_required", lambda *_, **__: float("inf"))


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


def test_the_schedules_of_core_begin_at_timestep_979_and_the_noisier_ones_still_have_their_timesteps(model):
    sampling = model.get_model_object("model_sampling")
    alpha_bar = respaced(1000).alpha_bar.flip(0)
    sigmas = (1 / alpha_bar - 1).sqrt().float()
    torch.testing.assert_close(sampling.sigmas, sigmas[:980], rtol=1e-5, atol=0)
    assert torch.equal(sampling.timestep(sigmas), torch.arange(1000))
    assert float(sampling.sigma_max) == pytest.approx(32.0, abs=0.2)
    assert float(sigmas[-1]) > 20000
    for name in comfy.samplers.SCHEDULER_NAMES:
        made = schedule(model, 20, name)
        assert bool((made[1:] < made[:-1]).all()) and float(made[0]) <= float(sampling.sigma_max) * 1.0001, name


@pytest.mark.parametrize(
    "sampler",
    cases(["euler", "dpmpp_2m", "ddim", "heun", "uni_pc", "euler_ancestral", "lcm"], "dpmpp_2m", "euler_ancestral"),
)
@torch.inference_mode()
def test_core_s_samplers_work_on_it(model, guidance, sampler):
    out = run(model, guidance, sampler, steps=6)
    assert out.shape == (1, 3, 8, 8)
    assert bool(torch.isfinite(out).all()) and float(out.std()) > 0.05 and float(out.abs().max()) < 2.0


@torch.inference_mode()
def test_ksampler_from_an_empty_latent_of_core_s_gives_pixels(model, guidance):
    [empty] = EmptyLatentImage().generate(16, 24, 2)
    [latent] = KSampler().sample(
        model, 5, 3, CFG, "euler", "karras", guidance.positive, guidance.negative, empty, denoise=1.0
    )
    image = pixel_vae().decode(latent["samples"])
    assert image.shape == (2, 24, 16, 3)
    assert float(image.min()) >= 0 and float(image.max()) <= 1
    back = pixel_vae().encode(image)
    torch.testing.assert_close(back, latent["samples"].clamp(-1, 1), atol=1e-5, rtol=0)


@torch.inference_mode()
def test_guided_predictions_are_kept_to_what_pixels_can_be(model, guidance):
    seen = []

    def keep(args):
        seen.append(args["denoised"])
        return args["denoised"]

    watched = model.clone()
    watched.set_model_sampler_post_cfg_function(keep)
    run(watched, guidance, cfg=50.0)
    assert all(float(x.abs().max()) <= 1.0 for x in seen)


@pytest.mark.parametrize("sampler", ["euler", unclip.ancestral()])
@torch.inference_mode()
def test_a_batch_of_two_is_each_of_its_rows(model, clip, sampler):
    embeds = unclip.embedding(2)
    both = unclip_conditioning(clip, model, "a cat", embeds)
    x, sigmas = start(model, 3, 2)
    noises = unclip.noise(2, seed=9), unclip.noise(2, seed=10)

    def one(rows: slice) -> torch.Tensor:
        own = unclip.embedding()
        own.image_embeds = embeds.image_embeds[rows]
        told = unclip_conditioning(clip, model, "a cat", own)
        left = iter([noise[rows] for noise in noises])
        made = sampler if sampler == "euler" else unclip.ancestral(noise_sampler=lambda *_: next(left))
        return sample(model, x[rows], told.positive, told.negative, CFG, sigmas, made)[-1]

    left = iter(noises)
    made = sampler if sampler == "euler" else unclip.ancestral(noise_sampler=lambda *_: next(left))
    together = sample(model, x, both.positive, both.negative, CFG, sigmas, made)[-1]
    alone = torch.cat([one(slice(0, 1)), one(slice(1, 2))])
    assert relative(together, alone) < 1e-4
    assert relative(together[:1], together[1:]) > 0.1


@pytest.mark.parametrize("sampler", ["euler", unclip.ancestral()])
@torch.inference_mode()
def test_conditions_in_one_call_or_in_two(model, guidance, sampler, monkeypatch):
    together = run(model, guidance, sampler, batch=2)
    split_calls(monkeypatch)
    assert relative(run(model, guidance, sampler, batch=2), together) < 1e-4


@torch.inference_mode()
def test_F16_nothing_is_compared_from_step_to_step(model, guidance, monkeypatch):
    """Fault F16: a store of projected texts cost three synchronisations a step, and saved 1.8 % of Karlo's work."""
    compared = []
    equal = torch.equal
    monkeypatch.setattr(torch, "equal", lambda *tensors: compared.append(1) or equal(*tensors))
    run(model, guidance, steps=3)
    assert compared == [] and model.wrappers.get("sampler_sample", {}) == {}


@torch.inference_mode()
def test_what_pads_a_text_has_no_influence(model, guidance):
    changed = [[states.clone(), extra] for states, extra in guidance.positive]
    hidden = ~guidance.positive[0][1]["attention_mask"][0]
    changed[0][0][0, hidden] = torch.randn(int(hidden.sum()), tiny_clip.WIDTH)
    x, sigmas = start(model, 2)
    same = [sample(model, x, p, guidance.negative, CFG, sigmas)[-1] for p in (guidance.positive, changed)]
    assert torch.equal(*same)
    changed[0][0][0, 1] += 1.0
    assert relative(sample(model, x, changed, guidance.negative, CFG, sigmas)[-1], same[0]) > 1e-4


@torch.inference_mode()
def test_without_an_embedding_the_learned_one_takes_its_place(model, clip, guidance):
    learned = unclip.embedding()
    learned.image_embeds = model.model.diffusion_model.cf_param.detach()[None].clone()
    told = unclip_conditioning(clip, model, "", learned)
    text = unclip_conditioning(clip, model, "", None)
    x, sigmas = start(model, 2)
    results = [sample(model, x, c, c, 1.0, sigmas)[-1] for c in (guidance.negative, told.positive, text.positive)]
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])
    [plain] = CLIPTextEncode().encode(clip, "a red cube")
    assert bool(torch.isfinite(sample(model, x, plain, guidance.negative, CFG, sigmas)[-1]).all())


@torch.inference_mode()
def test_core_s_unclip_conditioning_works_on_it(model, clip, guidance):
    from nodes import unCLIPConditioning

    text = unclip_conditioning(clip, model, "a red cube", None)
    [wired] = unCLIPConditioning().apply_adm(text.positive, unclip.embedding(), 1.0, 0.0)
    x, sigmas = start(model, 2)
    results = [sample(model, x, p, guidance.negative, CFG, sigmas)[-1] for p in (wired, guidance.positive)]
    assert torch.equal(*results)
    [noisy] = unCLIPConditioning().apply_adm(text.positive, unclip.embedding(), 1.0, 0.1)
    with pytest.raises(ValueError, match=r"^noise_augmentation: expected 0, .* got 0\.1\. "):
        sample(model, x, noisy, guidance.negative, CFG, sigmas)


@pytest.mark.parametrize("dtype", cases([torch.float16, torch.bfloat16], torch.float16))
@torch.inference_mode()
def test_half_precision_weights(clip, dtype):
    twin = twin_unclip.decoder(output=0.3)
    full, half = unclip.decoder(twin), unclip.decoder(twin, dtype)
    assert half.model.get_dtype() == dtype
    told = unclip_conditioning(clip, full, "a cat", unclip.embedding())
    for sampler in ("euler", unclip.ancestral()):
        a, b = (run(m, told, sampler, steps=2, cfg=1.0) for m in (full, half))
        assert relative(b, a) < (0.02 if dtype == torch.float16 else 0.2)


@pytest.mark.parametrize("sampler", ["euler", unclip.ancestral()])
@torch.inference_mode()
def test_a_masked_part_is_kept(model, guidance, sampler):
    picture = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(3)) * 1.8 - 0.9
    mask = torch.zeros(1, 8, 8)
    mask[..., 4:] = 1.0
    [latent] = SetLatentNoiseMask().set_mask({"samples": picture}, mask)
    sampler = comfy.samplers.sampler_object(sampler) if isinstance(sampler, str) else sampler
    noise = core.RandomNoise.execute(4).args[0]
    guider = core.CFGGuider.execute(model, guidance.positive, guidance.negative, CFG).args[0]
    out = core.SamplerCustomAdvanced.execute(noise, guider, sampler, schedule(model, 4, "normal"), latent).args[0]
    out = out["samples"]
    torch.testing.assert_close(out[..., :4], picture[..., :4], atol=1e-3, rtol=0)
    assert relative(out[..., 4:], picture[..., 4:]) > 0.2


@torch.inference_mode()
def test_a_cancelled_run_leaves_the_model_as_it_was(model, guidance):
    before = run(model, guidance, unclip.ancestral())
    options = str(model.model_options)

    def cancel(step: int) -> None:
        if step == 1:
            comfy.model_management.interrupt_current_processing()
            comfy.model_management.throw_exception_if_processing_interrupted()

    with pytest.raises(comfy.model_management.InterruptProcessingException):
        run(model, guidance, unclip.ancestral(), on_step=cancel)
    assert str(model.model_options) == options
    assert torch.equal(run(model, guidance, unclip.ancestral()), before)


@torch.inference_mode()
def test_any_size_is_worked_on(model, guidance):
    """Sides that are no multiple of the network's are filled up for it and cut off again."""
    sigmas = schedule(model, 2, "normal")
    x = torch.randn(1, 3, 18, 13, generator=torch.Generator().manual_seed(0)) * 32
    out = sample(model, x, guidance.positive, guidance.negative, CFG, sigmas)[-1]
    assert out.shape == x.shape and bool(torch.isfinite(out).all())


@pytest.mark.parametrize(("scheduler", "output"), cases([("normal", 0.02), ("karras", 0.1)], ("normal", 0.02)))
@torch.inference_mode()
def test_an_inversion_followed_by_euler_returns_the_picture(clip, scheduler, output):
    """Up to where core's schedules begin, sigma 32, at which less than a grey level in ten is lost to float32."""
    model = unclip.decoder(twin_unclip.decoder(output=output))
    positive = unclip_conditioning(clip, model, "a photo", unclip.embedding()).positive
    picture = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(3)) * 1.8 - 0.9
    trajectory = invert(model, positive, picture, schedule(model, 12, scheduler), "fixed_point", 12)
    assert convergence_report(trajectory)[1], convergence_report(trajectory)[0]
    back = sample_back(model, trajectory, torch.zeros_like(picture)).latents[-1]
    psnr = -10 * torch.log10(((back - picture) / 2).square().mean())
    print("inversion", scheduler, float(psnr), convergence_report(trajectory)[0])
    assert float(psnr) > 40


def test_wrong_conditions_and_latents_are_refused(model, guidance, clip):
    x, sigmas = start(model, 2)
    wide = [[torch.randn(1, 77, 96), {"pooled_output": torch.randn(1, 64)}]]
    with pytest.raises(ValueError, match=r"^positive: expected text states 64 wide, .* got one 96 wide\. Connect "):
        sample(model, x, wide, guidance.negative, CFG, sigmas)
    [both] = ConditioningConcat().concat(guidance.positive, guidance.positive)
    with pytest.raises(
        ValueError, match=r"^negative: expected a mask for each of the text's 154 tokens, got one for 77\. "
    ):
        sample(model, x, guidance.positive, both, CFG, sigmas)
    three = unclip_conditioning(clip, model, "", unclip.embedding(3)).positive
    with pytest.raises(
        ValueError, match=r"^positive: expected one image embedding, or .* latent's 1 pictures, got 3\. "
    ):
        sample(model, x, three, guidance.negative, CFG, sigmas)
    with pytest.raises(ValueError, match=r"^latent_image: expected pictures in pixel space, .* \[1, 4, 16, 16\]\. "):
        sample(model, torch.randn(1, 4, 16, 16), guidance.positive, guidance.negative, CFG, sigmas)
    with pytest.raises(ValueError, match=r"^clip_vision_output: expected .*\[batch, 64\], .* got \[1, 32\]\. "):
        unclip_conditioning(clip, model, "", unclip.embedding(width=32))


@torch.inference_mode()
def test_a_conditioning_made_without_the_model_is_the_same(model, clip):
    embeds = unclip.embedding()
    with_model, without = (unclip_conditioning(clip, given, "a cat", embeds) for given in (model, None))
    for ours, other in ((with_model.positive, without.positive), (with_model.negative, without.negative)):
        assert torch.equal(ours[0][0], other[0][0]) and ours[0][1].keys() == other[0][1].keys()
        assert torch.equal(ours[0][1]["attention_mask"], other[0][1]["attention_mask"])
    x, sigmas = start(model, 2)
    wide = unclip_conditioning(clip, None, "", unclip.embedding(width=32))
    with pytest.raises(ValueError, match=r"^positive: expected an image embedding 64 wide, .* got one 32 wide\. "):
        sample(model, x, wide.positive, wide.negative, CFG, sigmas)


@pytest.mark.parametrize("connected", [True, False])
def test_R12_another_model_s_clip_is_refused_by_the_socket(model, connected):
    """Fault R12: "mat1 and mat2 shapes cannot be multiplied" where the socket could be named."""
    other = tiny_clip.two_encoders(width_l=128, width_g=192)
    with pytest.raises(ValueError, match=r"^clip: expected a .*, got .*128, 192\. Connect "):
        unclip_conditioning(other, model if connected else None, "a cat", None)
    other.layer_idx = -2
    with pytest.raises(ValueError, match=r"^clip: expected its last layer"):
        unclip_conditioning(other, model if connected else None, "a cat", None)


def test_of_two_text_encoders_the_one_of_the_model_s_width_is_taken(model):
    clip = tiny_clip.two_encoders()
    states = unclip_conditioning(clip, model, "a cat", None).positive[0][0]
    assert states.shape == (1, 77, tiny_clip.WIDTH)
