"""Editing without inversion, against the published algorithms on diffusers' transformers with the same weights."""

from __future__ import annotations

import comfy.samplers
import comfy_extras.nodes_custom_sampler as core
import pytest
import torch
from palimpsest.nodes.flow_edit.guider import FLOW_EDIT, VELOCITY_MASK, noise_of_level
from palimpsest.nodes.flow_edit.nodes import FlowEdit
from support.fixtures import tiny_models
from support.fixtures.tiny_transformers import KINDS
from support.fixtures.twin_transformers import TWINS, flow_edit, uni_edit

pytestmark = pytest.mark.model

EULER = comfy.samplers.sampler_object("euler")


def schedule(model, steps=10):
    return comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "simple", steps)


def edit(
    model,
    picture,
    positive,
    negative,
    source,
    sigmas,
    cfg=1.0,
    cfg_source=1.0,
    sampler=EULER,
    seed=7,
    latent=None,
    **options,
):
    method = {"method": options.pop("method", FLOW_EDIT)}
    mask = options.pop("mask", None)
    noise = options.pop("noise", None) or core.Noise_RandomNoise(seed)
    guider = FlowEdit.execute(model, positive, negative, source, cfg, cfg_source, {**method, **options}, mask=mask)[0]
    return core.SamplerCustomAdvanced.execute(noise, guider, sampler, sigmas, latent or {"samples": picture})[0][
        "samples"
    ]


def relative(a, b):
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("name, cfg, cfg_source", [("flux", 1.0, 1.0), ("sd3", 6.0, 3.5), ("qwen_image", 4.0, 1.5)])
@torch.inference_mode()
def test_flow_edit_is_the_published_algorithm(name, cfg, cfg_source):
    kind = KINDS[name]
    model = kind.model()
    velocity = TWINS[name].velocity(model)
    picture = torch.cat([kind.latent(1, height=8, width=8), kind.latent(2, height=8, width=8)])
    positive, negative, source = (
        kind.conditioning(seed, **({"guidance": g} if name == "flux" else {}))
        for seed, g in ((3, 5.5), (4, 3.5), (5, 1.5))
    )
    sigmas = schedule(model, 12)
    result = edit(model, picture, positive, negative, source, sigmas, cfg, cfg_source, strength=10 / 12, averages=1)
    part = sigmas[2:]
    x0 = model.model.process_latent_in(picture)
    noises = [noise_of_level(x0, float(sigma), 7) for sigma in part[:-1]]
    wanted = flow_edit(velocity, x0, part, noises, (source, negative, cfg_source), (positive, negative, cfg))
    assert relative(model.model.process_latent_in(result), wanted) < 1e-5
    assert relative(result, picture) > 1e-2


@pytest.mark.parametrize("name", TWINS)
@torch.inference_mode()
def test_the_velocity_mask_is_the_published_algorithm(name):
    kind = KINDS[name]
    model = kind.model()
    velocity = TWINS[name].velocity(model)
    options = {"guidance": 1.0} if name == "flux" else {}
    positive, source = kind.conditioning(3, **options), kind.conditioning(5, **options)
    start = kind.latent(6, height=8, width=8)
    sigmas = schedule(model)

    class Start:
        seed = 0

        def generate_noise(self, latent):
            return start.clone()  # at sigma 1 a flow model begins at the noise itself

    result = edit(
        model,
        torch.zeros_like(start),
        positive,
        positive,
        source,
        sigmas,
        method=VELOCITY_MASK,
        omega=0.5,
        noise=Start(),
    )
    wanted = uni_edit(velocity, start, sigmas, 0.5, source, positive)
    assert relative(model.model.process_latent_in(result), wanted) < 1e-5


@pytest.mark.parametrize(
    ("name", "sampler"),
    [*((name, "euler") for name in KINDS), *(("flux", sampler) for sampler in ("heun", "dpmpp_2m", "res_multistep"))],
)
@torch.inference_mode()
def test_equal_prompts_return_the_source_bit_for_bit(name, sampler):
    kind = KINDS[name]
    model = kind.model()
    picture = kind.latent(1, batch=2)
    prompt = kind.conditioning(3)
    result = edit(
        model,
        picture,
        prompt,
        prompt,
        prompt,
        schedule(model, 4),
        sampler=comfy.samplers.sampler_object(sampler),
        strength=0.75,
    )
    assert torch.equal(result, picture)


@torch.inference_mode()
def test_strength_0_and_a_black_mask_return_the_source_and_a_half_mask_changes_its_half():
    kind = KINDS["flux"]
    model = kind.model()
    picture, prompts = kind.latent(1), [kind.conditioning(seed) for seed in (3, 4, 5)]
    sigmas = schedule(model, 4)
    assert torch.equal(edit(model, picture, *prompts, sigmas, strength=0.0), picture)
    black, half = torch.zeros(1, 96, 128), torch.zeros(1, 96, 128)
    half[..., 64:] = 1.0
    assert torch.equal(edit(model, picture, *prompts, sigmas, strength=1.0, mask=black), picture)
    result = edit(model, picture, *prompts, sigmas, strength=1.0, mask=half)
    assert torch.equal(result[..., :7], picture[..., :7])
    assert bool(((result - picture)[..., 9:].abs().amax((0, 1)) > 0).all())
    masked = edit(model, picture, *prompts, sigmas, strength=1.0, latent={"samples": picture, "noise_mask": half})
    assert torch.equal(masked, result)


@torch.inference_mode()
def test_a_row_of_a_batch_is_what_it_is_alone_and_any_noise_will_do():
    kind = KINDS["sd3"]
    model = kind.model()
    pictures, prompts = kind.latent(1, batch=2), [kind.conditioning(seed) for seed in (3, 4, 5)]
    sigmas = schedule(model, 4)
    both = edit(model, pictures, *prompts, sigmas, cfg=4.0, strength=1.0)
    again = edit(model, pictures, *prompts, sigmas, cfg=4.0, strength=1.0)
    alone = edit(model, pictures[:1], *prompts, sigmas, cfg=4.0, strength=1.0)
    assert torch.equal(both, again)
    torch.testing.assert_close(both[:1], alone, rtol=0, atol=1e-4)
    silent = edit(model, pictures, *prompts, sigmas, cfg=4.0, strength=1.0, noise=core.Noise_EmptyNoise())
    assert silent.shape == both.shape


@torch.inference_mode()
def test_models_that_add_noise_to_the_picture_run_too():
    model = tiny_models.sd15()
    picture = tiny_models.latent(model, 1, height=8, width=8)["samples"]
    prompt, other = tiny_models.conditioning(model, 2), tiny_models.conditioning(model, 3)
    sigmas = schedule(model, 4)
    same = edit(model, picture, prompt, prompt, prompt, sigmas, strength=1.0)
    assert torch.equal(same, picture)
    assert relative(edit(model, picture, other, prompt, prompt, sigmas, strength=1.0), picture) > 1e-3


@torch.inference_mode()
def test_refusals_name_the_socket():
    kind = KINDS["flux"]
    model = kind.model()
    picture, prompts = kind.latent(1), [kind.conditioning(seed) for seed in (3, 4, 5)]
    with pytest.raises(ValueError, match="latent_image: expected the picture to edit"):
        edit(model, torch.zeros_like(picture), *prompts, schedule(model, 4), strength=1.0)
    with pytest.raises(ValueError, match="sigmas: expected a schedule that ends at 0"):
        edit(model, picture, *prompts, schedule(model, 4)[:-1], strength=1.0)
    with pytest.raises(ValueError, match="euler_ancestral"):
        edit(model, picture, *prompts, schedule(model, 4), sampler=comfy.samplers.sampler_object("euler_ancestral"))
