"""Inversion of models that other nodes have patched, or that live on devices and in numbers of less precision."""

import comfy_extras.nodes_custom_sampler as core
import comfy_extras.nodes_model_advanced as core_advanced
import pytest
import torch
from comfy_extras.nodes_easycache import EasyCacheNode, LazyCacheNode
from comfy_extras.nodes_pag import PerturbedAttentionGuidance
from comfy_extras.nodes_sag import SelfAttentionGuidance
from palimpsest.nodes.inversion.ddim import convergence_report, invert, rounding
from palimpsest.nodes.inversion.nodes import DDIMInvert, SampleTrajectory
from palimpsest.nodes.inversion.solvers import Effort, Level, fixed_point_step
from palimpsest.nodes.null_text.optimize import optimize
from palimpsest.nodes.null_text.solvers import Effort as NullTextEffort
from palimpsest.nodes.plug_and_play.nodes import CaptureFeatures, PlugAndPlay
from support.fixtures import other_packs, tiny_models
from support.fixtures.inversions import relative, sample_back, schedule

pytestmark = pytest.mark.model

CACHES = {
    "EasyCache": lambda model: EasyCacheNode.execute(model, 3.0, 0.0, 1.0, False)[0],
    "EasyCache, defaults": lambda model: EasyCacheNode.execute(model, 0.2, 0.15, 0.95, False)[0],
    "LazyCache": lambda model: LazyCacheNode.execute(model, 3.0, 0.0, 1.0, False)[0],
}


def v_model():
    return core_advanced.ModelSamplingDiscrete().patch(tiny_models.sd15(), "v_prediction", False)[0]


def picture(model, size: int = 8) -> torch.Tensor:
    return tiny_models.latent(model, 2, height=size, width=size)["samples"]


@pytest.mark.parametrize("method", ["ddim", "fixed_point"])
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
    plain = CaptureFeatures.execute(model, trajectory, 0.8, 0.5, "auto", "fp32")[0]
    cached = CaptureFeatures.execute(CACHES[cache](model), trajectory, 0.8, 0.5, "auto", "fp32")[0]
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


@torch.inference_mode()
def test_guidance_that_reads_a_negative_prompt_is_refused_E16():
    """Fault E16: Self-Attention Guidance blurs by the attention of the negative prompt, of which an inversion has none."""
    model = v_model()
    patched = SelfAttentionGuidance.execute(model, 0.5, 2.0)[0]
    inputs = tiny_models.conditioning(model, 1), tiny_models.latent(model, 2), schedule(model, 4), "ddim", 1
    with pytest.raises(ValueError, match=r"model: expected a model whose guidance.*such as Self-Attention Guidance"):
        DDIMInvert.execute(patched, *inputs)


@torch.inference_mode()
def test_guidance_that_reads_only_the_positive_prompt_is_retraced_E16():
    model = PerturbedAttentionGuidance.execute(v_model(), 2.0)[0]
    positive, latent = tiny_models.conditioning(model, 1), picture(model)
    trajectory = invert(model, positive, latent, schedule(model, 6), "fixed_point", 20)
    assert relative(sample_back(model, trajectory, latent).latents, trajectory.latents) < 1e-3


@torch.inference_mode()
@pytest.mark.parametrize("other", [other_packs.random_tiles, other_packs.token_merging])
@torch.inference_mode()
def test_a_network_that_draws_at_random_is_refused(other):
    """Inverted or optimised in silence, the picture did not come back."""
    model = tiny_models.two_level()
    prompt, negative, sigmas = *(tiny_models.conditioning(model, seed) for seed in (1, 2)), schedule(model, 2)
    latent = picture(model, 16)
    for method in ("ddim", "fixed_point"):
        with pytest.raises(ValueError, match="model: expected one that answers .* Token Merging"):
            invert(other(model), prompt, latent, sigmas, method)
    trajectory = invert(model, prompt, latent, sigmas, "ddim")
    with pytest.raises(ValueError, match="model: expected one that answers"):
        optimize(other(model), prompt, negative, trajectory, 7.5, NullTextEffort(), "fast")
    still = other_packs.sharpened_attention(other_packs.free_u(model))
    assert torch.isfinite(invert(still, prompt, latent, sigmas, "ddim").latents).all()


def test_an_edited_model_is_refused_by_name_E15():
    """Fault E15: the refusal spoke of noise and levels."""
    model = tiny_models.sd15()
    positive, latent, sigmas = tiny_models.conditioning(model, 1), picture(model), schedule(model, 3)
    trajectory = invert(model, positive, latent, sigmas, "ddim")
    edited = PlugAndPlay.execute(model, trajectory, 0.8, 0.5, "auto")[0]
    for use in (
        lambda: invert(edited, positive, latent, sigmas, "ddim"),
        lambda: optimize(edited, positive, positive, trajectory, 4.0, NullTextEffort(), "fast"),
        lambda: optimize(edited, positive, positive, trajectory, 4.0, NullTextEffort(), "null_text"),
    ):
        with pytest.raises(
            ValueError, match="model: expected the model from before any edit, got one with plug and play"
        ):
            use()


class WithoutFloat64(torch.Tensor):
    """A tensor on a device that has no float64, as MPS, XPU and DirectML are; `cpu()` takes it from there."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        if function is torch.Tensor.cpu:
            return args[0].as_subclass(torch.Tensor)
        out = super().__torch_function__(function, types, args, kwargs or {})
        for value in out if isinstance(out, tuple | list) else [out]:
            if isinstance(value, cls) and value.dtype == torch.float64:
                raise TypeError("no float64 on this device")
        return out


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


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@torch.inference_mode()
def test_half_precision_stops_where_its_rounding_begins_E18(dtype: torch.dtype):
    """Fault E18: no residual in half precision is ever `exact`, and every step spent all it might."""
    model = tiny_models.sd21_v(dtype=dtype)
    calls = []
    model.set_model_unet_function_wrapper(
        lambda apply, args: (calls.append(1), apply(args["input"], args["timestep"], **args["c"]))[1]
    )
    inputs = tiny_models.conditioning(model, 1), picture(model, 16), schedule(model, 10)
    trajectory = invert(model, *inputs, "fixed_point", 10)
    assert len(calls) <= 55
    assert float(trajectory.residuals.max()) < rounding(model.model) == torch.finfo(dtype).eps
    assert convergence_report(trajectory, rounding(model.model))[1]
    full = invert(tiny_models.sd21_v(), *inputs, "fixed_point", 10)
    assert relative(trajectory.latents, full.latents) < 0.05
