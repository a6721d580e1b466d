import comfy.model_management
import comfy.model_sampling
import comfy.samplers
import comfy_extras.nodes_custom_sampler as core
import comfy_extras.nodes_model_advanced as core_advanced
import pytest
import torch
from diffusers import DDIMInverseScheduler, DDIMScheduler
from fixtures import tiny_models
from fixtures.twin_unet import sd15_twin
from palimpsest.nodes.diffusion.trajectory import ModelFingerprint, Trajectory
from palimpsest.nodes.inversion.ddim import METHODS, InversionSampler, convergence_report, invert
from palimpsest.nodes.inversion.nodes import (
    DDIMInvert,
    LoadTrajectory,
    PreviewTrajectory,
    SampleTrajectory,
    TrajectoryStart,
)
from palimpsest.nodes.inversion.noise import trajectory_noise

import nodes as core_nodes

pytestmark = pytest.mark.model

SD_SCHEDULE = {
    "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False,
    "steps_offset": 1, "timestep_spacing": "leading",
}  # fmt: skip
KINDS = {
    "eps": (tiny_models.sd15, "ddim_uniform"),
    "v": (tiny_models.sd21_v, "ddim_uniform"),
    "sdxl": (tiny_models.sdxl, "ddim_uniform"),
    "flow": (tiny_models.flow_dit, "simple"),
}


def schedule(model, steps: int, name: str = "ddim_uniform") -> torch.Tensor:
    return comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), name, steps)


def sample_back(model, trajectory: Trajectory, latent: torch.Tensor) -> Trajectory:
    """Sample from the trajectory's start with stock euler at guidance 1, and record the path."""
    guider = core.BasicGuider.execute(model, trajectory.positive)[0]
    euler = core.KSamplerSelect.execute("euler")[0]
    noise = trajectory_noise(model, trajectory)
    return SampleTrajectory.execute(noise, guider, euler, trajectory.sigmas, {"samples": latent})[1]


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


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


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", METHODS)
@torch.inference_mode()
def test_a_constant_eps_model_round_trips(kind: str, method: str):
    """A network whose last layer answers a constant: d is one vector everywhere, so every method is exact."""
    build, scheduler = KINDS[kind]
    if kind in ("v", "sdxl"):
        build = tiny_models.sd15
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


@torch.inference_mode()
def test_a_step_that_does_not_converge_is_said():
    model = tiny_models.sd15()
    latent = tiny_models.latent(model, 2)["samples"]
    trajectory = invert(model, tiny_models.conditioning(model, 1), latent, schedule(model, 4), "fixed_point", 1)
    text, converged = convergence_report(trajectory)
    assert not converged
    assert "did not converge at" in text and "Raise iterations" in text


@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_stock_samplers_retrace_the_trajectory_from_noise_and_from_latent(kind: str):
    build, scheduler = KINDS[kind]
    model = build()
    steps = 6
    # A flow model's first level is sigma 1, where a latent counts nothing: its latent output starts one level lower.
    sigmas = schedule(model, steps, scheduler)[1 if kind == "flow" else 0 :]
    positive, picture = tiny_models.conditioning(model, 1), tiny_models.latent(model, 2, batch=2, height=8, width=16)
    trajectory, noise, latent = DDIMInvert.execute(model, positive, picture, sigmas, "ddim", 1).args
    guider = core.BasicGuider.execute(model, positive)[0]
    euler = core.KSamplerSelect.execute("euler")[0]
    fmt = model.get_model_object("latent_format")
    expected = sample_back(model, trajectory, picture["samples"]).latents

    # The start is exact whatever latent is wired beside the noise: the picture, an empty one, the inverted latent.
    for beside in (picture, {"samples": torch.zeros_like(picture["samples"])}, latent):
        out = core.SamplerCustomAdvanced.execute(noise, guider, euler, sigmas, beside)[0]["samples"]
        assert relative(fmt.process_in(out), expected[-1]) < 2e-5
    assert relative(expected[0], trajectory.latents[0]) < 1e-6

    out = core_nodes.KSamplerAdvanced().sample(
        model, "disable", 0, steps, 1.0, "euler", scheduler, positive, positive, latent,
        1 if kind == "flow" else 0, 1000, "disable",
    )[0]["samples"]  # fmt: skip
    assert relative(fmt.process_in(out), expected[-1]) < 2e-5


@torch.inference_mode()
def test_the_start_is_exact_at_the_models_maximum_sigma():
    """There ComfyUI scales noise by sqrt(1 + sigma^2) instead of sigma."""
    model = tiny_models.sd15()
    sigmas = schedule(model, 5, "normal")
    assert float(sigmas[0]) == pytest.approx(float(model.get_model_object("model_sampling").sigma_max))
    latent = tiny_models.latent(model, 2)["samples"]
    trajectory = invert(model, tiny_models.conditioning(model, 1), latent, sigmas, "ddim")
    assert relative(sample_back(model, trajectory, latent).latents[0], trajectory.latents[0]) < 1e-6


@pytest.mark.parametrize(("method", "iterations", "expected"), [("ddim", 5, 8), ("euler", 5, 8), ("fixed_point", 3, 24)])
@torch.inference_mode()
def test_evaluations_spent(method: str, iterations: int, expected: int):
    model = tiny_models.sd15()
    calls = []
    model.set_model_unet_function_wrapper(lambda apply, args: (calls.append(1), apply(args["input"], args["timestep"], **args["c"]))[1])
    invert(
        model, tiny_models.conditioning(model, 1), tiny_models.latent(model, 2)["samples"], schedule(model, 8), method, iterations
    )
    assert len(calls) == expected


@torch.inference_mode()
def test_rows_of_a_batch_do_not_influence_each_other():
    model = tiny_models.sd21_v()
    latents = tiny_models.latent(model, 2, batch=3, height=8, width=12)["samples"]
    positive, sigmas = tiny_models.conditioning(model, 1), schedule(model, 8)
    together = invert(model, positive, latents, sigmas, "fixed_point", 4)
    for row in range(3):
        alone = invert(model, positive, latents[row : row + 1], sigmas, "fixed_point", 4)
        assert relative(together.latents[:, row : row + 1], alone.latents) < 1e-4


@torch.inference_mode()
def test_masks_areas_and_several_conditions_are_honoured():
    model = tiny_models.sd21_v()
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


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.inference_mode()
def test_half_precision_weights_keep_a_float32_trajectory(dtype: torch.dtype):
    model = tiny_models.sd21_v(dtype=dtype)
    latent = tiny_models.latent(model, 2)["samples"]
    trajectory = invert(model, tiny_models.conditioning(model, 1), latent, schedule(model, 6), "fixed_point", 5)
    assert trajectory.latents.dtype == torch.float32
    full = invert(tiny_models.sd21_v(), trajectory.positive, latent, schedule(model, 6), "fixed_point", 5)
    assert relative(trajectory.latents, full.latents) < 0.05


@torch.inference_mode()
def test_sample_trajectory_gives_the_samples_of_stock_sampling_bit_for_bit():
    model = tiny_models.sd15()
    sigmas, empty = schedule(model, 6, "normal"), {"samples": torch.zeros(2, 4, 8, 8)}
    positive, negative = tiny_models.conditioning(model, 1), tiny_models.conditioning(model, 3)
    guider = core.CFGGuider.execute(model, positive, negative, 4.0)[0]
    noise = core.RandomNoise.execute(5)[0]
    for name in ("euler", "heun", "dpmpp_2m", "lms"):
        sampler = core.KSamplerSelect.execute(name)[0]
        stock = core.SamplerCustomAdvanced.execute(noise, guider, sampler, sigmas, empty)[0]["samples"]
        latent, trajectory = SampleTrajectory.execute(noise, guider, sampler, sigmas, empty).args
        assert torch.equal(latent["samples"], stock)
        fmt = model.get_model_object("latent_format")
        assert relative(trajectory.latents[-1], fmt.process_in(stock)) < 1e-6
        assert trajectory.latents.shape == (7, 2, 4, 8, 8)
        assert torch.equal(trajectory.positive[0][0], positive[0][0])
    assert trajectory.method == "sampled"


@pytest.mark.parametrize("name", ["euler_ancestral", "dpmpp_sde", "dpmpp_2m_sde", "lcm", "ddpm", "er_sde", "dpm_adaptive"])
@torch.inference_mode()
def test_samplers_that_leave_the_deterministic_path_are_refused(name: str):
    model = tiny_models.sd15()
    guider = core.BasicGuider.execute(model, tiny_models.conditioning(model, 1))[0]
    sampler = core.KSamplerSelect.execute(name)[0]
    with pytest.raises(ValueError, match=f"sampler: expected a sampler that follows one deterministic path.*got {name}"):
        SampleTrajectory.execute(
            core.RandomNoise.execute(5)[0], guider, sampler, schedule(model, 4), {"samples": torch.zeros(1, 4, 8, 8)}
        )


@torch.inference_mode()
def test_trajectory_start_gives_the_same_start_as_the_inversion():
    model = tiny_models.sd15()
    picture = tiny_models.latent(model, 2)
    trajectory, noise, latent = DDIMInvert.execute(
        model, tiny_models.conditioning(model, 1), picture, schedule(model, 4), "ddim", 1
    ).args
    again, start, sigmas = TrajectoryStart.execute(model, trajectory).args
    assert torch.equal(again.generate_noise(picture), noise.generate_noise(picture))
    assert torch.equal(start["samples"], latent["samples"]) and torch.equal(sigmas, trajectory.sigmas)
    with pytest.raises(ValueError, match=r"model: expected the kind of model the trajectory was made with, BaseModel"):
        TrajectoryStart.execute(tiny_models.sdxl(), trajectory)
    with pytest.raises(ValueError, match=r"noise: this trajectory starts from latents of shape \(1, 4, 16, 16\)"):
        noise.generate_noise({"samples": torch.zeros(1, 4, 8, 8)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sigmas": torch.tensor([0.0, 1.0, 14.0])}, "sigmas: expected strictly descending"),
        ({"sigmas": torch.tensor([14.0, 1.0])}, "sigmas: expected the schedule to end at 0"),
        ({"latent_image": {"samples": torch.zeros(1, 4, 8, 8)}}, "latent_image: expected the latent of a picture, got an empty"),
        ({"latent_image": {"samples": torch.ones(1, 16, 8, 8)}}, r"latent_image: expected a picture's latent .*\(1, 16, 8, 8\)"),
        ({"latent_image": {"samples": torch.full((1, 4, 8, 8), torch.nan)}}, "latent_image: expected finite values"),
    ],
)
@torch.inference_mode()
def test_bad_inputs_are_refused_before_the_model_runs(change: dict, message: str):
    model = tiny_models.sd15()
    model.set_model_unet_function_wrapper(lambda apply, args: pytest.fail("the model ran"))
    inputs = {
        "model": model, "positive": tiny_models.conditioning(model, 1), "latent_image": tiny_models.latent(model, 2),
        "sigmas": torch.tensor([14.0, 1.0, 0.0]), "method": "ddim", "iterations": 1,
    }  # fmt: skip
    with pytest.raises(ValueError, match=message):
        DDIMInvert.execute(**{**inputs, **change})


@torch.inference_mode()
def test_an_interrupt_half_way_leaves_the_model_as_it_was():
    model = tiny_models.sd15()
    options = repr(model.model_options)
    weights = [p.clone() for p in model.model.parameters()]
    positive, latent, sigmas = tiny_models.conditioning(model, 1), tiny_models.latent(model, 2)["samples"], schedule(model, 6)
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


@torch.inference_mode()
def test_preview_strip_has_one_row_a_picture():
    model = tiny_models.sd15()
    picture = tiny_models.latent(model, 2, batch=2, height=8, width=10)
    trajectory = invert(model, tiny_models.conditioning(model, 1), picture["samples"], schedule(model, 6), "ddim")
    strip = PreviewTrajectory.execute(trajectory, 4)[0]
    assert strip.shape == (2, 64, 4 * 80, 3) and float(strip.min()) >= 0 and float(strip.max()) <= 1
    assert strip[0].ne(strip[1]).any()


def test_load_trajectory_reads_nothing_outside_its_folders(tmp_path):
    for name in ("../secret.trajectory.safetensors [output]", "/etc/passwd", "secret.trajectory.safetensors"):
        assert "is not in the output or input folder" in LoadTrajectory.validate_inputs(name)
        with pytest.raises(ValueError, match="is not in the output or input folder"):
            LoadTrajectory.execute(name)


def test_a_fingerprint_tells_prediction_types_apart():
    model = tiny_models.sd15()
    v = core_advanced.ModelSamplingDiscrete().patch(model, "v_prediction", False)[0]
    ModelFingerprint.of(model).require_match(tiny_models.sd15(seed=1))
    with pytest.raises(ValueError, match="V_PREDICTION"):
        ModelFingerprint.of(model).require_match(v)


def test_the_inversion_sampler_is_not_taken_for_one_that_follows_a_trajectory():
    from palimpsest.nodes.diffusion.samplers import require_deterministic

    with pytest.raises(ValueError, match="InversionSampler"):
        require_deterministic(InversionSampler("ddim", 1))
