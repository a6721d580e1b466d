from itertools import product

import comfy.model_management
import comfy.model_sampling
import comfy.samplers
import comfy_extras.nodes_model_advanced as core_advanced
import pytest
import torch
from diffusers import DDIMInverseScheduler, DDIMScheduler
from palimpsest.nodes.diffusion.trajectory import Trajectory
from palimpsest.nodes.inversion.ddim import METHODS, convergence_report, invert
from palimpsest.nodes.inversion.nodes import (
    DDIMInvert,
)
from palimpsest.nodes.inversion.solvers import Effort, Level, fixed_point_step
from support.cases import cases
from support.fixtures import tiny_models
from support.fixtures.inversions import KINDS, relative, sample_back, schedule
from support.fixtures.twin_unet import sd15_twin

import nodes as core_nodes

pytestmark = pytest.mark.model

SD_SCHEDULE = {
    "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False,
    "steps_offset": 1, "timestep_spacing": "leading",
}  # fmt: skip


def vp(trajectory: Trajectory) -> torch.Tensor:
    """The latents in diffusers' variance-preserving units."""
    return trajectory.latents / (trajectory.sigmas**2 + 1).sqrt().view(-1, 1, 1, 1, 1)


@pytest.fixture(scope="module", params=["eps", "v"])
def twin(request):
    """A ComfyUI model, its weights in diffusers' class, and the prediction type both are read with."""
    model = tiny_models.sd15()
    unet = sd15_twin(model)
    if request.param == "v":
        model = core_advanced.ModelSamplingDiscrete().patch(model, "v_prediction", False)[0]
    return model, unet, {"eps": "epsilon", "v": "v_prediction"}[request.param]


@torch.inference_mode()
def test_ddim_equals_diffusers_inverse_scheduler(twin):
    model, unet, prediction = twin
    steps = 10
    positive, latent = tiny_models.conditioning(model, 1), tiny_models.latent(model, 2, batch=2)["samples"]
    trajectory = invert(model, positive, latent, schedule(model, steps), "ddim")

    scheduler = DDIMInverseScheduler(**SD_SCHEDULE, prediction_type=prediction, set_alpha_to_one=True)
    scheduler.set_timesteps(steps)
    x = trajectory.latents[-1]
    path = [x]
    for t in scheduler.timesteps:
        output = unet(x, t, positive[0][0].expand(2, -1, -1)).sample
        x = scheduler.step(output, t, x).prev_sample
        path.append(x)
    assert scheduler.timesteps.tolist() == list(range(1, 1000, 100))
    assert relative(vp(trajectory), torch.stack(path[::-1])) < 1e-4


@torch.inference_mode()
def test_euler_equals_the_closed_form_with_eps_at_the_source_level(twin):
    model, unet, prediction = twin
    steps = 10
    positive, latent = tiny_models.conditioning(model, 1), tiny_models.latent(model, 2)["samples"]
    trajectory = invert(model, positive, latent, schedule(model, steps), "euler")

    alpha_bar = DDIMScheduler(**SD_SCHEDULE).alphas_cumprod.double()
    grid = list(range(1, 1000, 100))
    x = trajectory.latents[-1].double()
    path = [x]
    for i, t in enumerate(grid):
        a_low = alpha_bar[grid[i - 1]] if i else torch.ones(())
        source = grid[i - 1] if i else t  # at sigma 0 the network has no timestep: the first step uses the target's
        a_eval = alpha_bar[source]
        # x at level a_low is fed to the network as it stands; at the first step rescaled to the level it is evaluated at.
        x_eval = x / a_low.sqrt() * a_eval.sqrt()
        output = unet(x_eval.float(), source, positive[0][0]).sample.double()
        eps = output if prediction == "epsilon" else a_eval.sqrt() * output + (1 - a_eval).sqrt() * x_eval
        x0 = (x - (1 - a_low).sqrt() * eps) / a_low.sqrt()
        x = alpha_bar[t].sqrt() * x0 + (1 - alpha_bar[t]).sqrt() * eps
        path.append(x)
    assert relative(vp(trajectory).double(), torch.stack(path[::-1])) < 1e-4


@pytest.mark.long
@torch.inference_mode()
def test_diffusers_ddim_retraces_a_fixed_point_inversion():
    """v-prediction: a random eps net is chaotic at low noise, and no iteration converges on it in a few evaluations."""
    model = tiny_models.sd15()
    unet = sd15_twin(model)
    model = core_advanced.ModelSamplingDiscrete().patch(model, "v_prediction", False)[0]
    positive = tiny_models.conditioning(model, 1)
    latent = tiny_models.latent(model, 2, batch=2, height=8, width=8)["samples"]
    trajectory = invert(model, positive, latent, schedule(model, 10), "fixed_point", iterations=12)

    scheduler = DDIMScheduler(**SD_SCHEDULE, prediction_type="v_prediction", set_alpha_to_one=True)
    scheduler.set_timesteps(10)
    x = vp(trajectory)[0]
    path = [x]
    for t in scheduler.timesteps:
        x = scheduler.step(unet(x, t, positive[0][0].expand(2, -1, -1)).sample, t, x).prev_sample
        path.append(x)
    assert relative(torch.stack(path), vp(trajectory)) < 1e-4
    assert convergence_report(trajectory)[1]


@pytest.mark.parametrize(
    ("kind", "method"), cases(product(KINDS, METHODS), *zip(("eps", "flow", "eps"), METHODS, strict=False))
)
@torch.inference_mode()
def test_a_constant_eps_model_round_trips(kind: str, method: str):
    """A network whose last layer answers a constant: d is one vector everywhere, so every method is exact."""
    build, scheduler = KINDS[kind]
    if kind in ("v", "sdxl"):
        build = tiny_models.two_level
    model = build()
    layer = model.model.diffusion_model.out[-1] if kind != "flow" else model.model.diffusion_model.final_layer.linear
    layer.weight.zero_()
    layer.bias.copy_(torch.linspace(-1, 1, len(layer.bias)))
    latent = tiny_models.latent(model, 2)["samples"]
    trajectory = invert(model, tiny_models.conditioning(model, 1), latent, schedule(model, 10, scheduler), method)
    back = sample_back(model, trajectory, latent)
    assert relative(back.latents[-1], trajectory.latents[-1]) < 1e-6
    assert relative(back.latents, trajectory.latents) < 1e-6


@pytest.mark.parametrize("kind", ["v", "flow"])
@torch.inference_mode()
def test_fixed_point_retraces_better_with_more_iterations_and_reports_it(kind: str):
    build, scheduler = KINDS[kind]
    model = build()
    latent = tiny_models.latent(model, 2, batch=2, height=8, width=8)["samples"]
    errors, residuals = [], []
    for iterations in (1, 2, 4, 8):
        trajectory = invert(
            model, tiny_models.conditioning(model, 1), latent, schedule(model, 12, scheduler), "fixed_point", iterations
        )
        errors.append(relative(sample_back(model, trajectory, latent).latents, trajectory.latents))
        residuals.append(float(trajectory.residuals.max()))
    assert errors == sorted(errors, reverse=True) and errors[-1] < 1e-4
    assert residuals == sorted(residuals, reverse=True)
    assert not torch.isnan(trajectory.residuals).any()


def test_a_hard_step_borrows_evaluations_within_the_same_total():
    """A linear denoiser that barely answers at the lowest sigma, as on a picture that the model has ironed flat there."""
    x = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(3))
    gains = torch.linspace(0.1, 1, 64).view(1, 1, 8, 8)
    solution = fixed_point_step(lambda y, sigma: gains * y, x, Level(0.0, 0.04), None, Effort(5, 5))
    assert solution.evaluations == 5 and solution.residual > 2e-3
    effort = Effort.for_step(5, spent=0, step=0, steps=20)
    solution = fixed_point_step(lambda y, sigma: gains * y, x, Level(0.0, 0.04), None, effort)
    assert 5 < solution.evaluations <= effort.most == 14 and solution.residual <= effort.sufficient
    assert relative(solution.x * gains, x) <= 2e-3
    assert Effort.for_step(5, spent=14, step=1, steps=20).most == 9
    assert Effort.for_step(5, spent=95, step=19, steps=20).most == 5
    assert Effort.for_step(5, spent=24, step=1, steps=20).most == 4
    assert Effort.for_step(3, spent=0, step=0, steps=20).most == 3


@torch.inference_mode()
def test_a_step_that_does_not_converge_is_said():
    model = tiny_models.two_level()
    latent = tiny_models.latent(model, 2)["samples"]
    trajectory = invert(model, tiny_models.conditioning(model, 1), latent, schedule(model, 4), "fixed_point", 1)
    text, converged = convergence_report(trajectory)
    assert not converged
    assert "not converged" in text and "Raise iterations" in text


@pytest.mark.parametrize(
    ("method", "iterations", "expected"),
    [("ddim", 5, 8), ("euler", 5, 8), ("fixed_point", 3, 24), ("fixed_point", 5, 40)],
)
@torch.inference_mode()
def test_evaluations_spent(method: str, iterations: int, expected: int):
    model = tiny_models.two_level()
    calls = []
    model.set_model_unet_function_wrapper(
        lambda apply, args: (calls.append(1), apply(args["input"], args["timestep"], **args["c"]))[1]
    )
    invert(
        model,
        tiny_models.conditioning(model, 1),
        tiny_models.latent(model, 2)["samples"],
        schedule(model, 8),
        method,
        iterations,
    )
    assert len(calls) == expected


@torch.inference_mode()
def test_rows_of_a_batch_do_not_influence_each_other():
    model = tiny_models.two_level_v()
    latents = tiny_models.latent(model, 2, batch=3, height=9, width=13)["samples"]
    positive, sigmas = tiny_models.conditioning(model, 1), schedule(model, 8)
    together = invert(model, positive, latents, sigmas, "fixed_point", 4)
    for row in range(3):
        alone = invert(model, positive, latents[row : row + 1], sigmas, "fixed_point", 4)
        assert relative(together.latents[:, row : row + 1], alone.latents) < 1e-4


@torch.inference_mode()
def test_masks_areas_and_several_conditions_are_honoured():
    model = tiny_models.two_level_v()
    latent, sigmas = tiny_models.latent(model, 2)["samples"], schedule(model, 8)
    left, right = tiny_models.conditioning(model, 1), tiny_models.conditioning(model, 3)
    mask = torch.zeros(1, 16, 16)
    mask[:, :, :8] = 1
    masked = core_nodes.ConditioningSetMask().append(left, mask, "default", 1.0)[0]
    masked += core_nodes.ConditioningSetMask().append(right, 1 - mask, "default", 1.0)[0]
    masked += core_nodes.ConditioningSetArea().append(left, 64, 64, 0, 0, 0.5)[0]
    trajectory = invert(model, masked, latent, sigmas, "fixed_point", 12)
    back = sample_back(model, trajectory, latent)
    assert relative(back.latents, trajectory.latents) < 1e-4
    assert relative(invert(model, left, latent, sigmas, "fixed_point", 12).latents, trajectory.latents) > 1e-3


@torch.inference_mode()
def test_a_control_net_in_the_conditioning_is_honoured_and_released():
    model = core_advanced.ModelSamplingDiscrete().patch(tiny_models.two_level(), "v_prediction", False)[0]
    latent = tiny_models.latent(model, 2, height=8, width=8)["samples"]
    plain = tiny_models.conditioning(model, 1)
    hint = torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(3))
    net = tiny_models.control_net()
    controlled = core_nodes.ControlNetApplyAdvanced().apply_controlnet(plain, [], net, hint, 0.5, 0.0, 1.0)[0]
    trajectory = invert(model, controlled, latent, schedule(model, 5), "fixed_point", 12)
    back = sample_back(model, trajectory, latent)
    assert relative(back.latents, trajectory.latents) < 1e-3
    without = invert(model, plain, latent, schedule(model, 5), "fixed_point", 12)
    assert relative(without.latents, trajectory.latents) > 1e-2
    assert controlled[0][1]["control"].model_sampling_current is None


@pytest.mark.parametrize("dtype", cases([torch.bfloat16, torch.float16], torch.float16))
@torch.inference_mode()
def test_half_precision_weights_keep_a_float32_trajectory(dtype: torch.dtype):
    model = tiny_models.two_level_v(dtype=dtype)
    latent = tiny_models.latent(model, 2)["samples"]
    trajectory = invert(model, tiny_models.conditioning(model, 1), latent, schedule(model, 6), "fixed_point", 5)
    assert trajectory.latents.dtype == torch.float32
    full = invert(tiny_models.two_level_v(), trajectory.positive, latent, schedule(model, 6), "fixed_point", 5)
    assert relative(trajectory.latents, full.latents) < 0.05


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sigmas": torch.tensor([0.0, 1.0, 14.0])}, "sigmas: expected strictly descending"),
        ({"sigmas": torch.tensor([14.0, 1.0])}, "sigmas: expected the schedule to end at 0"),
        (
            {"latent_image": {"samples": torch.zeros(1, 4, 8, 8)}},
            "latent_image: expected the latent of a picture, got an empty",
        ),
        (
            {"latent_image": {"samples": torch.ones(1, 16, 8, 8)}},
            r"latent_image: expected a latent of this model.*\(1, 16, 8, 8\)",
        ),
        ({"latent_image": {"samples": torch.full((1, 4, 8, 8), torch.nan)}}, "latent_image: expected finite values"),
    ],
)
@torch.inference_mode()
def test_bad_inputs_are_refused_before_the_model_runs(change: dict, message: str):
    model = tiny_models.two_level()
    model.set_model_unet_function_wrapper(lambda apply, args: pytest.fail("the model ran"))
    inputs = {
        "model": model, "positive": tiny_models.conditioning(model, 1), "latent_image": tiny_models.latent(model, 2),
        "sigmas": torch.tensor([14.0, 1.0, 0.0]), "method": "ddim", "iterations": 1,
    }  # fmt: skip
    with pytest.raises(ValueError, match=message):
        DDIMInvert.execute(**{**inputs, **change})


@torch.inference_mode()
def test_an_interrupt_half_way_leaves_the_model_as_it_was():
    model = tiny_models.two_level()
    options = repr(model.model_options)
    weights = [p.clone() for p in model.model.parameters()]
    positive, latent, sigmas = (
        tiny_models.conditioning(model, 1),
        tiny_models.latent(model, 2)["samples"],
        schedule(model, 6),
    )
    before = invert(model, positive, latent, sigmas, "ddim")
    interrupted = model.clone()
    calls = []

    def interrupt(apply, args):
        calls.append(1)
        if len(calls) == 3:
            comfy.model_management.interrupt_current_processing()
        return apply(args["input"], args["timestep"], **args["c"])

    interrupted.set_model_unet_function_wrapper(interrupt)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        invert(interrupted, positive, latent, sigmas, "ddim")
    assert len(calls) <= 4
    assert repr(model.model_options) == options
    assert all(torch.equal(a, b) for a, b in zip(weights, model.model.parameters(), strict=True))
    assert torch.equal(invert(model, positive, latent, sigmas, "ddim").latents, before.latents)
