"""Inversion of models that other nodes have patched, or that live on devices and in numbers of less precision."""

import comfy.samplers
import comfy_extras.nodes_custom_sampler as core
import comfy_extras.nodes_model_advanced as core_advanced
import pytest
import torch
from comfy.model_patcher import ModelPatcher
from comfy.model_sampling import IMG_TO_IMG_FLOW, ModelSamplingDiscreteFlow
from comfy.patcher_extension import WrappersMP
from comfy_extras.nodes_apg import APG
from comfy_extras.nodes_easycache import EasyCacheNode, LazyCacheNode
from comfy_extras.nodes_perpneg import PerpNeg
from palimpsest.nodes.diffusion.source_run import exact_retracing
from palimpsest.nodes.diffusion.trajectory import Trajectory
from palimpsest.nodes.inversion.ddim import convergence_report, invert, rounding
from palimpsest.nodes.inversion.nodes import SampleTrajectory
from palimpsest.nodes.inversion.noise import TrajectoryNoise
from palimpsest.nodes.inversion.solvers import Effort, Level, fixed_point_step
from palimpsest.nodes.null_text.optimize import optimize
from palimpsest.nodes.null_text.solvers import Effort as NullTextEffort
from palimpsest.nodes.plug_and_play.nodes import CaptureFeatures, PlugAndPlay
from support.cases import cases
from support.fixtures import other_packs, tiny_models
from support.fixtures.inversions import relative, schedule
from support.fixtures.without_float64 import WithoutFloat64

pytestmark = pytest.mark.model

CACHES = {
    "EasyCache": lambda model: EasyCacheNode.execute(model, 3.0, 0.0, 1.0, False)[0],
    "EasyCache, defaults": lambda model: EasyCacheNode.execute(model, 0.2, 0.15, 0.95, False)[0],
    "LazyCache": lambda model: LazyCacheNode.execute(model, 3.0, 0.0, 1.0, False)[0],
}


def v_model():
    return core_advanced.ModelSamplingDiscrete().patch(tiny_models.two_level(), "v_prediction", False)[0]


def picture(model, size: int = 8) -> torch.Tensor:
    return tiny_models.latent(model, 2, height=size, width=size)["samples"]


@pytest.mark.parametrize("method", cases(["ddim", "fixed_point"], "ddim"))
@pytest.mark.parametrize("cache", CACHES)
@torch.inference_mode()
def test_a_step_cache_is_left_out_of_an_inversion_E16(cache: str, method: str):
    """Fault E16: a cache compares a call with the one before it, as if the noise went down: silently wrong on the way up."""
    model = v_model()
    cached = CACHES[cache](model)
    before = {kind: list(by_key) for kind, by_key in cached.wrappers.items()}
    inputs = tiny_models.conditioning(model, 1), picture(model), schedule(model, 8), method
    assert torch.equal(invert(cached, *inputs).latents, invert(model, *inputs).latents)
    assert {kind: list(by_key) for kind, by_key in cached.wrappers.items()} == before


@pytest.mark.parametrize("cache", CACHES)
@torch.inference_mode()
def test_a_step_cache_is_left_out_where_a_trajectory_is_read_E16(cache: str):
    model = v_model()
    trajectory = invert(model, tiny_models.conditioning(model, 1), picture(model, 16), schedule(model, 4), "ddim")
    plain = CaptureFeatures.execute(model, trajectory, 0.8, 0.5, "features 1; attention 1-3", "fp32")[0]
    cached = CaptureFeatures.execute(CACHES[cache](model), trajectory, 0.8, 0.5, "features 1; attention 1-3", "fp32")[0]
    for a, b in zip(plain.records, cached.records, strict=True):
        assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("cache", CACHES)
@torch.inference_mode()
def test_sampling_with_a_step_cache_is_recorded_as_it_is_sampled_E16(cache: str):
    model = v_model()
    positive, negative = tiny_models.conditioning(model, 1), tiny_models.conditioning(model, 3)
    guider = core.CFGGuider.execute(CACHES[cache](model), positive, negative, 4.0)[0]
    noise, euler = core.RandomNoise.execute(5)[0], core.KSamplerSelect.execute("euler")[0]
    sigmas, empty = schedule(model, 8, "normal"), {"samples": torch.zeros(1, 4, 8, 8)}
    stock = core.SamplerCustomAdvanced.execute(noise, guider, euler, sigmas, empty)[0]["samples"]
    latent, trajectory = SampleTrajectory.execute(noise, guider, euler, sigmas, empty).args
    assert torch.equal(latent["samples"], stock) and trajectory.steps == 8
    d = (trajectory.latents[:-1] - trajectory.latents[1:]) / (sigmas[:-1] - sigmas[1:]).view(-1, 1, 1, 1, 1)
    assert torch.isfinite(d).all() and relative(trajectory.latents[0], trajectory.latents[1]) > 1e-2


GUIDANCE = {
    "PAG": other_packs.perturbed_attention,
    "APG": lambda model: APG.execute(model, 0.5, 5.0, 0.3)[0],
    "CFG Override": lambda model: core.CFGOverride.execute(model, 3.0, 0.0, 1.0)[0],
    "RescaleCFG": lambda model: core_advanced.RescaleCFG().patch(model, 0.7)[0],
    "PerpNeg": lambda model: PerpNeg.execute(model, tiny_models.conditioning(model, 7), 1.0)[0],
}


@pytest.mark.parametrize("name", GUIDANCE)
@torch.inference_mode()
def test_guidance_by_other_nodes_finds_nothing_to_guide_E16(name: str):
    """Fault E16: an inversion has no negative prompt. What guidance of any kind is to leave alone has the positive as negative."""
    model = GUIDANCE[name](tiny_models.two_level())
    positive, latent = tiny_models.conditioning(model, 1), picture(model, 16)
    trajectory = invert(model, positive, latent, schedule(model, 4), "ddim")
    back = _unguided(exact_retracing(model, trajectory), trajectory, latent)
    assert relative(back, trajectory.latents[-1]) < 1e-4


@torch.inference_mode()
def test_self_attention_guidance_finds_nothing_to_guide_E16():
    """It asks about a blurred latent, which an exact retracing has no place for."""
    model = other_packs.self_attention_guidance(v_model())
    latent = picture(model)
    trajectory = invert(model, tiny_models.conditioning(model, 1), latent, schedule(model, 6), "fixed_point", 20)
    assert relative(_unguided(model, trajectory, latent), trajectory.latents[-1]) < 1e-3
    trajectory = invert(model, tiny_models.conditioning(model, 1), latent, schedule(model, 2), "ddim")
    with pytest.raises(ValueError, match="model: expected guidance that evaluates the sampler's own latent only"):
        _unguided(exact_retracing(model, trajectory), trajectory, latent)


def _unguided(model: ModelPatcher, trajectory: Trajectory, latent: torch.Tensor) -> torch.Tensor:
    """Sampled from the trajectory's start with its prompt as negative too, which is evaluated even at guidance 1."""
    model = model.clone()
    model.model_options["disable_cfg1_optimization"] = True
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(trajectory.positive, trajectory.positive)
    guider.set_cfg(1.0)
    sampler = comfy.samplers.sampler_object("euler")
    noise = TrajectoryNoise(trajectory.start, float(trajectory.sigmas[0]), model).generate_noise({"samples": latent})
    return model.model.process_latent_in(guider.sample(noise, latent, sampler, trajectory.sigmas, disable_pbar=True))


@torch.inference_mode()
def test_the_positive_alone_is_evaluated():
    model = tiny_models.two_level()
    counted = model.clone()
    rows: list[int] = []

    def count(executor, x, *args, **kwargs):
        rows.append(len(x))
        return executor(x, *args, **kwargs)

    counted.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "test", count)
    inputs = tiny_models.conditioning(model, 1), picture(model, 16), schedule(model, 4), "ddim"
    assert torch.equal(invert(counted, *inputs).latents, invert(model, *inputs).latents)
    assert rows == [1] * 4


@pytest.mark.parametrize("other", [other_packs.random_tiles, other_packs.token_merging])
@torch.inference_mode()
def test_a_network_that_draws_at_random_is_refused(other):
    """Inverted or optimised in silence, the picture did not come back."""
    model = tiny_models.two_level()
    prompt, negative, sigmas = *(tiny_models.conditioning(model, seed) for seed in (1, 2)), schedule(model, 2)
    latent = picture(model, 16)
    for method in ("ddim", "fixed_point"):
        with pytest.raises(
            ValueError, match=r"model: expected a model that gives the same prediction .* Token Merging"
        ):
            invert(other(model), prompt, latent, sigmas, method)
    trajectory = invert(model, prompt, latent, sigmas, "ddim")
    with pytest.raises(ValueError, match="model: expected a model that gives the same prediction"):
        optimize(other(model), prompt, negative, trajectory, 7.5, NullTextEffort(), "fast")
    still = other_packs.sharpened_attention(other_packs.free_u(model))
    assert torch.isfinite(invert(still, prompt, latent, sigmas, "ddim").latents).all()


@torch.inference_mode()
def test_a_model_that_starts_from_no_noise_is_refused():
    class Sampling(IMG_TO_IMG_FLOW, ModelSamplingDiscreteFlow):
        pass

    model = tiny_models.two_level()
    model.add_object_patch("model_sampling", Sampling())
    with pytest.raises(ValueError, match="model: expected one that draws a picture from noise"):
        invert(model, tiny_models.conditioning(model, 1), picture(model, 16), torch.tensor([1.0, 0.5, 0.0]), "ddim")


@torch.inference_mode()
def test_an_edited_model_is_refused_by_name_E15():
    """Fault E15: the refusal spoke of noise and levels."""
    model = tiny_models.two_level()
    positive, latent, sigmas = tiny_models.conditioning(model, 1), picture(model), schedule(model, 3)
    trajectory = invert(model, positive, latent, sigmas, "ddim")
    edited = PlugAndPlay.execute(model, trajectory, 0.8, 0.5, "features 1; attention 1-3")[0]
    for use in (
        lambda: invert(edited, positive, latent, sigmas, "ddim"),
        lambda: optimize(edited, positive, positive, trajectory, 4.0, NullTextEffort(), "fast"),
        lambda: optimize(edited, positive, positive, trajectory, 4.0, NullTextEffort(), "null_text"),
    ):
        with pytest.raises(
            ValueError, match="model: expected the model from before any edit, got one with plug and play"
        ):
            use()


def test_fixed_point_needs_no_float64_on_the_device_E1():
    """Fault E1: the small systems of Anderson mixing were solved in float64 where the latents are."""
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(3))
    gains = torch.linspace(0.1, 1, 64).view(1, 1, 8, 8)
    level, effort = Level(0.0, 0.04), Effort(14, 14)
    expected = fixed_point_step(lambda y, sigma: gains * y, x, level, None, effort)
    device = x.as_subclass(WithoutFloat64)
    with pytest.raises(TypeError, match="no float64"):
        device.double()
    solution = fixed_point_step(lambda y, sigma: gains * y, device, level, None, effort)
    assert isinstance(solution.x, WithoutFloat64) and solution.evaluations == expected.evaluations > 4
    assert torch.equal(solution.x.cpu(), expected.x)


@pytest.mark.parametrize("dtype", cases([torch.float16, torch.bfloat16], torch.float16))
@torch.inference_mode()
def test_half_precision_stops_where_its_rounding_begins_E18(dtype: torch.dtype):
    """Fault E18: no residual in half precision is ever `exact`, and every step spent all it might."""
    model = tiny_models.two_level_v(dtype=dtype)
    calls = []
    model.set_model_unet_function_wrapper(
        lambda apply, args: (calls.append(1), apply(args["input"], args["timestep"], **args["c"]))[1]
    )
    inputs = tiny_models.conditioning(model, 1), picture(model), schedule(model, 10)
    trajectory = invert(model, *inputs, "fixed_point", 10)
    assert len(calls) <= 55
    assert float(trajectory.residuals.max()) < rounding(model.model) == torch.finfo(dtype).eps
    assert convergence_report(trajectory, rounding(model.model))[1]
    full = invert(tiny_models.two_level_v(), *inputs, "fixed_point", 10)
    assert relative(trajectory.latents, full.latents) < 0.05
