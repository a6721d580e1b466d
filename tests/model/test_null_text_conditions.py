"""What the optimisation evaluates is what a sampler evaluates: on models and conditions of other kinds than a plain UNet."""

import dataclasses
from itertools import product

import comfy.supported_models
import comfy_extras.nodes_custom_sampler as core
import pytest
import torch
from palimpsest.nodes.diffusion.source_run import exact_retracing
from palimpsest.nodes.inversion.ddim import invert
from palimpsest.nodes.inversion.nodes import SampleTrajectory
from palimpsest.nodes.null_text.nodes import NullTextOptimize
from palimpsest.nodes.null_text.optimize import METHODS, optimize
from palimpsest.nodes.null_text.solvers import Effort
from support.cases import cases
from support.fixtures import tiny_models
from support.fixtures.inversions import relative, schedule
from support.fixtures.null_text_runs import CFG, sampled
from support.fixtures.sampling import random_trajectory
from support.fixtures.tiny_transformers import KINDS
from support.fixtures.transformer_edits import path

import nodes as core_nodes

pytestmark = pytest.mark.model

DISTILLED = ("flux", "flux2")
QUICK = Effort(inner_steps=2, tolerance=1e-7)


def inverted(model, positive, steps=4, iterations=8):
    latent = tiny_models.latent(model, 2, height=8, width=8)["samples"]
    return invert(model, positive, latent, schedule(model, steps), "fixed_point", iterations)


def patched(model, kind, row):
    """A patch that acts on the rows of one prompt, which it knows by cond_or_uncond (0 positive, 1 negative)."""
    model = model.clone()

    def change(n, rows, factor=1.5):
        parts = n.chunk(len(rows))
        return torch.cat([factor * part if of == row else part for part, of in zip(parts, rows, strict=True)])

    def wrapper(apply, args):
        return change(apply(args["input"], args["timestep"], **args["c"]), args["cond_or_uncond"], 1.02)

    if kind == "attention":
        model.set_model_attn2_output_patch(lambda n, options: change(n, options["cond_or_uncond"]))
    else:
        model.set_model_unet_function_wrapper(wrapper)
    return model


@pytest.mark.parametrize(
    ("kind", "row", "method"),
    cases(
        product(("attention", "wrapper"), (0, 1), ("fast", "null_text")),
        ("attention", 1, "fast"),
        ("wrapper", 0, "null_text"),
    ),
)
@torch.inference_mode()
def test_patches_on_one_prompt_s_rows_act_as_they_do_in_a_sampler_E4(kind, row, method):
    model = patched(tiny_models.two_level_v(), kind, row)
    positive, negative = tiny_models.conditioning(model, 1), tiny_models.conditioning(model, 3)
    trajectory = inverted(model, positive)
    result, course = optimize(model, positive, negative, trajectory, CFG, QUICK, method)
    assert relative(sampled(model, trajectory, positive, result), course.final) < 1e-3


def inpainting():
    class Config(comfy.supported_models.SD15):
        unet_extra_config = {"num_heads": 4, "num_head_channels": -1}

    return tiny_models._patcher(Config({**tiny_models.SD1_UNET, "in_channels": 9}), 0, torch.float32)


def with_picture(conditioning, seed=4):
    """As InpaintModelConditioning leaves it."""
    generator = torch.Generator().manual_seed(seed)
    picture = {
        "concat_latent_image": torch.randn(1, 4, 8, 8, generator=generator),
        "concat_mask": torch.rand(1, 1, 64, 64, generator=generator).round(),
    }
    return [[text, {**options, **picture}] for text, options in conditioning]


@pytest.mark.parametrize(
    ("pictures", "method"),
    cases(
        product(("none", "both", "positive only"), ("fast", "null_text")),
        ("both", "fast"),
        ("positive only", "null_text"),
    ),
)
@torch.inference_mode()
def test_inpainting_checkpoints_E9_R7(method, pictures):
    model = inpainting()
    positive, negative = tiny_models.conditioning(model, 1), tiny_models.conditioning(model, 3)
    positive = with_picture(positive) if pictures != "none" else positive
    negative = with_picture(negative) if pictures == "both" else negative
    trajectory = inverted(model, positive)
    result, course = optimize(model, positive, negative, trajectory, 1.5, QUICK, method)
    assert relative(sampled(model, trajectory, positive, result, 1.5), course.final) < 1e-3
    wanted = trajectory.latents[-1]
    assert (course.final - wanted).norm() < (sampled(model, trajectory, positive, negative, 1.5) - wanted).norm()


@torch.inference_mode()
def test_without_a_positive_the_trajectory_s_own_prompt_is_the_source():
    model = tiny_models.two_level_v()
    positive, negative = tiny_models.conditioning(model, 1), tiny_models.conditioning(model, 3)
    settings = (model, negative, inverted(model, positive), CFG, 2, 1e-2, 1e-5, "fast", "code")
    given, own = NullTextOptimize.execute(*settings, positive)[0], NullTextOptimize.execute(*settings)[0]
    assert all(torch.equal(a, b) for (a, _), (b, _) in zip(given, own, strict=True))


@torch.inference_mode()
def test_a_positive_with_an_area_is_refused_where_it_can_be_seen_E20():
    """Core gives such a prompt a copy of the negative's first entry, that of step 0, for all steps."""
    model = tiny_models.two_level_v()
    positive, negative = tiny_models.conditioning(model, 1), tiny_models.conditioning(model, 3)
    trajectory = inverted(model, positive)
    result, course = optimize(model, positive, negative, trajectory, CFG, QUICK, "fast")
    area = core_nodes.ConditioningSetArea().append(positive, 32, 32, 0, 0, 1.0)[0]
    mask = core_nodes.ConditioningSetMask().append(positive, torch.ones(1, 8, 8), "mask bounds", 1.0)[0]
    euler, noise = core.KSamplerSelect.execute("euler")[0], core.RandomNoise.execute(0)[0]
    latent = {"samples": torch.zeros_like(trajectory.start)}
    for regional in (area, mask, positive + area):
        guider = core.CFGGuider.execute(model, regional, result, CFG)[0]
        with pytest.raises(ValueError, match=r"^positive: expected a prompt for the whole picture"):
            SampleTrajectory.execute(noise, guider, euler, trajectory.sigmas, latent)
        followed = core.CFGGuider.execute(
            exact_retracing(model, dataclasses.replace(trajectory, method="ddim")), regional, result, CFG
        )[0]
        with pytest.raises(ValueError, match=r"^positive: expected a prompt for the whole picture"):
            core.SamplerCustomAdvanced.execute(noise, followed, euler, trajectory.sigmas, latent)
        plain = core.CFGGuider.execute(model, regional, negative, CFG)[0]
        assert SampleTrajectory.execute(noise, plain, euler, trajectory.sigmas, latent)[1].steps == trajectory.steps


def transformer(name, **more):
    kind = KINDS[name]
    unet = {**kind.unet, **kind.more, **more}
    return type(kind)(kind.config, unet, kind.blocks, kind.channels, kind.frames, kind.pooled, kind.llama)


@pytest.mark.parametrize("name", cases([name for name in KINDS if name not in DISTILLED], "sd3", "lumina2", "hidream"))
@torch.inference_mode()
def test_fast_repeats_no_text_of_a_transformer_E21(name):
    kind = transformer(name)
    model, positive = kind.model(), kind.conditioning(1)
    trajectory = path(kind, model, positive, 3, height=8, width=8)
    result, course = optimize(model, positive, kind.conditioning(3), trajectory, 3.0, QUICK, "fast")
    assert {embedding.shape[1] for embedding, _ in result} == {20}
    assert relative(sampled(model, trajectory, positive, result, 3.0), course.final) < 1e-3
    if kind.llama:  # the second of its texts goes the same way as the first
        for embedding, options in result:
            ends = [[own[0][0], own[0][1]["conditioning_llama3"]] for own in (kind.conditioning(3), positive)]
            shares = [
                float(((now - start) * (end - start)).sum() / (end - start).square().sum())
                for now, start, end in zip((embedding, options["conditioning_llama3"]), *ends, strict=True)
            ]
            assert shares[0] == pytest.approx(shares[1], abs=1e-4)
        assert shares[0] > 1e-3
    with pytest.raises(ValueError, match=r"^negative: expected as many tokens as the positive's 20 for fast, got 10"):
        optimize(model, positive, kind.conditioning(3, tokens=10), trajectory, 3.0, QUICK, "fast")
    alone, _ = optimize(model, positive, kind.conditioning(3, tokens=10), trajectory, 3.0, QUICK, "negative_prompt")
    assert alone[0][0] is positive[0][0]


@torch.inference_mode()
def test_fast_still_repeats_the_texts_of_a_unet():
    model = tiny_models.two_level_v()
    positive, negative = tiny_models.conditioning(model, 1, tokens=154), tiny_models.conditioning(model, 3)
    trajectory = inverted(model, positive)
    result, course = optimize(model, positive, negative, trajectory, CFG, QUICK, "fast")
    assert {embedding.shape[1] for embedding, _ in result} == {154}
    assert relative(sampled(model, trajectory, positive, result), course.final) < 1e-3


@pytest.mark.newest
@pytest.mark.parametrize(
    ("name", "more"), [("flux", {"guidance_embed": False}), ("chroma", {}), ("lumina2", {}), ("z_image", {})]
)
@torch.inference_mode()
def test_null_text_refuses_transformers_whose_kernels_have_no_gradients_E21(name, more):
    kind = transformer(name, **more)
    model, positive = kind.model(), kind.conditioning(1)
    trajectory = random_trajectory(model, positive, 2, size=(8, 8), scheduler="simple")
    with pytest.raises(
        ValueError, match=r"^model: expected one whose layers all have gradients .* fast or negative_prompt"
    ):
        optimize(model, positive, kind.conditioning(3), trajectory, 3.0, QUICK, "null_text")
    assert not any(getattr(module, "weight_function", ()) for module in model.model.modules())


@torch.inference_mode()
def test_null_text_optimises_sd3_E21():
    kind = transformer("sd3")
    model, positive, negative = kind.model(), kind.conditioning(1), kind.conditioning(3)
    trajectory = random_trajectory(model, positive, 2, size=(8, 8), scheduler="simple")
    result, course = optimize(model, positive, negative, trajectory, 3.0, QUICK, "null_text")
    assert relative(sampled(model, trajectory, positive, result, 3.0), course.final) < 1e-3
    assert all(bool((after < before).all()) for before, after in zip(course.before, course.after, strict=True))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", DISTILLED)
@torch.inference_mode()
def test_guidance_distilled_models_have_nothing_to_optimise_E21(name, method):
    kind = transformer(name)
    model, positive = kind.model(), kind.conditioning(1)
    trajectory = random_trajectory(model, positive, 2, size=(8, 8), scheduler="simple")
    model.set_model_unet_function_wrapper(lambda apply, args: pytest.fail("the model ran"))
    with pytest.raises(ValueError, match=r"^model: expected one with classifier-free guidance, .* guidance-distilled"):
        optimize(model, positive, kind.conditioning(3), trajectory, 3.5, QUICK, method)
