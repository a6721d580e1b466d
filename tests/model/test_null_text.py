"""Null-text optimisation through stock samplers: what it gives back, what it keeps, what it leaves behind."""

from itertools import product

import comfy.model_management
import comfy.utils
import comfy_extras.nodes_custom_sampler as core
import comfy_extras.nodes_model_advanced as core_advanced
import pytest
import torch
from palimpsest.nodes.diffusion.schedule import MADE_FOR
from palimpsest.nodes.inversion.ddim import invert
from palimpsest.nodes.inversion.nodes import SampleTrajectory
from palimpsest.nodes.inversion.noise import trajectory_latent
from palimpsest.nodes.null_text.nodes import NullTextOptimize
from palimpsest.nodes.null_text.optimize import optimize
from palimpsest.nodes.null_text.solvers import Effort
from support.cases import cases
from support.fixtures import tiny_models
from support.fixtures.inversions import relative, schedule
from support.fixtures.null_text_runs import CFG, sampled

import nodes as core_nodes

pytestmark = pytest.mark.model

STEPS = 3
QUICK = Effort(inner_steps=3)


def v_model(build=tiny_models.two_level):
    """A random eps net is chaotic at low noise; read as v-prediction it can be inverted."""
    return core_advanced.ModelSamplingDiscrete().patch(build(), "v_prediction", False)[0]


MODELS = {
    "eps": tiny_models.two_level,
    "v": tiny_models.two_level_v,
    "sdxl": lambda: v_model(tiny_models.small_sdxl),
    "flow": tiny_models.flow_dit,
}


def inverted(model, batch=1, steps=STEPS, positive=None, iterations=12):
    positive = tiny_models.conditioning(model, 1) if positive is None else positive
    latent = tiny_models.latent(model, 2, batch=batch, height=8, width=8)["samples"]
    scheduler = "simple" if latent.shape[1] == 16 else "ddim_uniform"
    return positive, invert(model, positive, latent, schedule(model, steps, scheduler), "fixed_point", iterations)


@pytest.mark.parametrize(
    ("method", "kind"),
    cases(
        [*(("fast", kind) for kind in MODELS), *(("null_text", kind) for kind in ("eps", "v", "sdxl"))],
        ("fast", "eps"),
        ("fast", "flow"),
        ("null_text", "eps"),
    ),
)
@torch.inference_mode()
@pytest.mark.compat
def test_stock_samplers_end_where_the_optimisation_did(kind, method):
    model = MODELS[kind]()
    positive, trajectory = inverted(model, batch=2)
    negative = tiny_models.conditioning(model, 3)
    result, course = optimize(model, positive, negative, trajectory, CFG, QUICK, method)
    assert len(result) == STEPS
    out = sampled(model, trajectory, positive, result)
    # Random weights and this guidance multiply rounding: batched calls differ from single ones in the last digits.
    assert relative(out, course.final) < 1e-3
    plain = sampled(model, trajectory, positive, negative)
    wanted = trajectory.latents[-1]
    enough = 1.0 if kind == "flow" else 0.9  # three small Adam steps move a random transformer little
    assert (out - wanted).norm() < enough * (plain - wanted).norm()
    if method == "fast":
        pooled = [options.get("pooled_output") for _, options in result]
        assert kind != "sdxl" or not torch.equal(pooled[-1], negative[0][1]["pooled_output"].expand_as(pooled[-1]))


@pytest.mark.parametrize(
    ("method", "cfg"), cases(product(("null_text", "fast"), (0.0, 0.5)), ("fast", 0.0), ("null_text", 0.5))
)
@torch.inference_mode()
def test_guidance_below_1_is_guidance_too(method, cfg):
    model = v_model()
    positive, trajectory = inverted(model)
    negative = tiny_models.conditioning(model, 3)
    result, course = optimize(model, positive, negative, trajectory, cfg, QUICK, method)
    out = sampled(model, trajectory, positive, result, cfg)
    assert relative(out, course.final) < 1e-4
    plain = sampled(model, trajectory, positive, negative, cfg)
    wanted = trajectory.latents[-1]
    assert (out - wanted).norm() < 0.9 * (plain - wanted).norm()


@torch.inference_mode()
def test_another_number_of_steps_works_and_sample_trajectory_says_so(caplog):
    model = v_model()
    positive, trajectory = inverted(model)
    result, _ = optimize(model, positive, tiny_models.conditioning(model, 3), trajectory, CFG, QUICK, "fast")
    euler = core.KSamplerSelect.execute("euler")[0]
    latent = {"samples": torch.zeros_like(trajectory.start)}
    for steps, cfg, said in ((STEPS, CFG, ""), (STEPS, 4.0, "cfg 7.5, not 4"), (2 * STEPS, CFG, "the sampler has 7")):
        guider = core.CFGGuider.execute(model, positive, result, cfg)[0]
        noise = core.RandomNoise.execute(0)[0]
        caplog.clear()
        out = SampleTrajectory.execute(noise, guider, euler, schedule(model, steps), latent)[0]["samples"]
        assert bool(torch.isfinite(out).all())
        assert said in caplog.text and bool(said) == ("optimised" in caplog.text)


@pytest.mark.parametrize("method", cases(["null_text", "fast"], "null_text"))
@torch.inference_mode()
def test_ksampler_advanced_takes_it_too(method):
    model = v_model()
    positive, trajectory = inverted(model)
    negative = tiny_models.conditioning(model, 3)
    result, course = optimize(model, positive, negative, trajectory, CFG, QUICK, method)
    latent = {"samples": trajectory_latent(model, trajectory)}
    out = core_nodes.KSamplerAdvanced().sample(
        model, "disable", 0, STEPS, CFG, "euler", "ddim_uniform", positive, result, latent, 0, STEPS, "disable"
    )[0]["samples"]
    assert relative(model.model.process_latent_in(out), course.final) < 1e-4


@pytest.mark.parametrize(("kind", "cfg"), cases(product(("v", "sdxl"), (1.0, 7.5)), ("v", 7.5)))
@torch.inference_mode()
def test_the_source_prompt_as_negative_gives_the_picture_back_at_any_guidance(kind, cfg):
    model = MODELS[kind]()
    positive, trajectory = inverted(model, iterations=40)
    result, course = optimize(model, positive, [], trajectory, cfg, QUICK, "negative_prompt")
    out = sampled(model, trajectory, positive, result, cfg)
    assert relative(out, sampled(model, trajectory, positive, positive, 1.0)) < 1e-4
    assert relative(out, trajectory.latents[-1]) < 1e-2  # the inversion's own residual
    assert course.evaluations.forwards == course.evaluations.backwards == 0
    assert result[0][1] == positive[0][1] and result[0][1] is not positive[0][1]


@torch.inference_mode()
def test_each_step_has_its_own_entry_with_all_that_the_negative_had():
    model = tiny_models.small_sdxl()
    positive, trajectory = inverted(model)
    negative = core_nodes.ConditioningSetMask().append(
        tiny_models.conditioning(model, 3), torch.rand(1, 8, 8), "default", 0.7
    )[0]
    result, course = optimize(model, positive, negative, trajectory, CFG, QUICK, "null_text")
    for i, (embedding, options) in enumerate(result):
        assert embedding.dtype == torch.float32 and embedding.device.type == "cpu" and not embedding.requires_grad
        assert options["pooled_output"] is negative[0][1]["pooled_output"]
        assert options["mask"] is negative[0][1]["mask"] and options["mask_strength"] == 0.7
        assert options["timestep_end"] <= float(trajectory.sigmas[i]) <= options["timestep_start"]
        assert options[MADE_FOR]["cfg"] == CFG
    assert len({embedding.sum().item() for embedding, _ in result}) == STEPS
    assert relative(sampled(model, trajectory, positive, result), course.final) < 1e-4
    assert "timestep_start" not in negative[0][1]


@pytest.mark.parametrize("method", cases(["null_text", "fast"], "fast"))
@torch.inference_mode()
def test_an_area_of_the_negative_is_kept(method):
    model = v_model()
    positive, trajectory = inverted(model)
    negative = core_nodes.ConditioningSetArea().append(tiny_models.conditioning(model, 3), 32, 64, 0, 0, 1.0)[0]
    result, course = optimize(model, positive, negative, trajectory, CFG, QUICK, method)
    assert all(options["area"] == negative[0][1]["area"] for _, options in result)
    assert relative(sampled(model, trajectory, positive, result), course.final) < 1e-4


@torch.inference_mode()
def test_a_control_net_on_both_prompts_is_honoured():
    model = v_model(tiny_models.two_level)
    hint = torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(3))
    both = core_nodes.ControlNetApplyAdvanced().apply_controlnet(
        tiny_models.conditioning(model, 1),
        tiny_models.conditioning(model, 3),
        tiny_models.control_net(),
        hint,
        0.5,
        0.0,
        1.0,
    )
    positive, trajectory = inverted(model, positive=both[0], steps=3)
    ends = []
    for checkpoint in (True, False):
        result, course = optimize(model, positive, both[1], trajectory, CFG, QUICK, "null_text", checkpoint=checkpoint)
        assert all(options["control"] is both[1][0][1]["control"] for _, options in result)
        assert relative(sampled(model, trajectory, positive, result), course.final) < 1e-4
        ends.append(course.final)
    assert relative(*ends) < 1e-4


@torch.inference_mode()
def test_rows_of_a_batch_are_optimised_as_if_alone():
    model = v_model()
    positive, trajectory = inverted(model, batch=2)
    effort = Effort(inner_steps=4, tolerance=2e-3, constants="paper")
    together, course = optimize(
        model, positive, tiny_models.conditioning(model, 3), trajectory, CFG, effort, "null_text"
    )
    for row in range(2):
        latents = trajectory.latents[:, row : row + 1]
        single = type(trajectory)(
            latents, *(getattr(trajectory, n) for n in ("sigmas", "positive", "model", "method", "residuals"))
        )
        alone, _ = optimize(model, positive, tiny_models.conditioning(model, 3), single, CFG, effort, "null_text")
        for (a, _), (b, _) in zip(together, alone, strict=True):
            assert relative(a[row : row + 1], b) < 1e-3
    assert course.before[0].shape == (2,)


@pytest.mark.parametrize("dtype", cases([torch.float16, torch.bfloat16, torch.float8_e4m3fn], torch.float16))
@torch.inference_mode()
@pytest.mark.compat
def test_low_precision_weights_keep_a_float32_embedding(dtype):
    model = tiny_models.two_level_v(dtype=dtype)
    positive, trajectory = inverted(model, steps=3)
    negative = tiny_models.conditioning(model, 3)
    result, course = optimize(model, positive, negative, trajectory, CFG, QUICK, "null_text")
    assert all(embedding.dtype == torch.float32 and bool(torch.isfinite(embedding).all()) for embedding, _ in result)
    wanted = trajectory.latents[-1]
    plain = sampled(model, trajectory, positive, negative)
    assert (course.final - wanted).norm() < (plain - wanted).norm()


@torch.inference_mode()
def test_running_it_twice_gives_the_same_and_leaves_the_model_as_it_was():
    model = v_model()
    weights = [p.clone() for p in model.model.parameters()]
    options, patches = repr(model.model_options), dict(model.weight_wrapper_patches)
    positive, trajectory = inverted(model)
    before = sampled(model, trajectory, positive, positive)
    negative = tiny_models.conditioning(model, 3)
    first, _ = optimize(model, positive, negative, trajectory, CFG, QUICK, "null_text")
    second, _ = optimize(model, positive, negative, trajectory, CFG, QUICK, "null_text")
    assert all(torch.equal(a, b) for (a, _), (b, _) in zip(first, second, strict=True))
    assert repr(model.model_options) == options and model.weight_wrapper_patches == patches
    assert all(torch.equal(a, b) for a, b in zip(weights, model.model.parameters(), strict=True))
    assert not any(getattr(module, "weight_function", ()) for module in model.model.modules())
    assert torch.equal(sampled(model, trajectory, positive, positive), before)


@torch.inference_mode()
def test_an_interrupt_half_way_releases_the_clone_and_leaves_the_model_as_it_was():
    model = v_model()
    weights = [p.clone() for p in model.model.parameters()]
    positive, trajectory = inverted(model)
    before = sampled(model, trajectory, positive, positive)
    calls = []

    def interrupt(apply, args):
        calls.append(1)
        if len(calls) == 6:
            comfy.model_management.interrupt_current_processing()
        return apply(args["input"], args["timestep"], **args["c"])

    interrupted = model.clone()
    interrupted.set_model_unet_function_wrapper(interrupt)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        optimize(interrupted, positive, tiny_models.conditioning(model, 3), trajectory, CFG, QUICK, "null_text")
    assert len(calls) == 6
    assert all(torch.equal(a, b) for a, b in zip(weights, model.model.parameters(), strict=True))
    modules = list(model.model.modules())
    assert not any(getattr(module, "weight_function", ()) for module in modules)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in modules)
    assert torch.equal(sampled(model, trajectory, positive, positive), before)


@pytest.mark.parametrize(("method", "at_most"), [("null_text", 8 * STEPS), ("fast", 3 * STEPS)])
@torch.inference_mode()
def test_evaluations_are_counted(method, at_most):
    model = v_model()
    positive, trajectory = inverted(model)
    rows = []
    counted = model.clone()
    for conditioning, seed in ((positive, 6), (negative := tiny_models.conditioning(model, 3), 7)):
        conditioning[0][1]["pooled_output"] = torch.full((1, 8), seed)  # as CLIP Text Encode gives it: SD1.5 reads none
    counted.set_model_unet_function_wrapper(
        lambda apply, args: (
            rows.append(len(args["cond_or_uncond"])),
            apply(args["input"], args["timestep"], **args["c"]),
        )[1]
    )
    _, course = optimize(counted, positive, negative, trajectory, CFG, QUICK, method)
    spent = course.evaluations
    assert spent.forwards == sum(rows)
    assert spent.backwards == (3 * STEPS if method == "null_text" else 0)
    assert 2 * STEPS < spent.forwards + spent.backwards <= at_most


@torch.inference_mode()
def test_the_node_shows_its_progress_and_draws_a_report():
    model = v_model()
    positive, trajectory = inverted(model, steps=3)
    progress = []
    comfy.utils.set_progress_bar_global_hook(lambda value, total, preview, **_: progress.append((value, total)))
    try:
        result, report = NullTextOptimize.execute(
            model, tiny_models.conditioning(model, 3), trajectory, CFG, 2, 1e-2, 1e-5, "null_text", "code", positive
        ).args
    finally:
        comfy.utils.set_progress_bar_global_hook(None)
    assert progress[-1] == (3, 3) and len(result) == 3
    assert report.shape[0] == 1 and report.shape[3] == 3 and 0.0 <= float(report.min()) < float(report.max()) <= 1.0
