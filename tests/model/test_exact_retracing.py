"""Sampling that goes back exactly the way a ddim inversion came, for one evaluation a step in each direction."""

import pytest
import torch
from palimpsest.nodes.inversion.ddim import invert
from palimpsest.nodes.plug_and_play.nodes import CaptureFeatures, PlugAndPlay
from palimpsest.nodes.retracing.nodes import ExactRetracing
from support.cases import cases
from support.fixtures import tiny_models
from support.fixtures.inversions import KINDS, relative, sample_back
from support.fixtures.other_packs import with_control
from support.fixtures.sampling import sample, schedule
from support.fixtures.tiny_models import conditioning, control_net, latent, sd15, two_level
from support.fixtures.tiny_transformers import KINDS as TRANSFORMERS
from support.fixtures.unet_probe import UNetProbe, same

pytestmark = pytest.mark.model

STEPS = 4
BLOCKS = "features 0; attention 0-3"  # of a UNet with two levels


def zero_terminal_v():
    """v-prediction whose last level is pure noise, as ModelSamplingDiscrete with zsnr makes it."""
    from comfy_extras.nodes_model_advanced import ModelSamplingDiscrete

    return ModelSamplingDiscrete().patch(tiny_models.two_level_v(), "v_prediction", True)[0]


ALL_KINDS = {**KINDS, "zsnr v": (zero_terminal_v, "normal")}


def inverted(model, scheduler="ddim_uniform", batch=1, positive=None, steps=STEPS):
    positive = positive or conditioning(model, 1)
    picture = latent(model, 5, batch=batch, height=8, width=8)["samples"]
    return invert(model, positive, picture, schedule(model, steps, scheduler), "ddim")


def exact(model, trajectory):
    return ExactRetracing.execute(model, trajectory)[0]


def back(model, trajectory, start=None, sampler="euler"):
    start = trajectory.start if start is None else start
    return sample(model, start, trajectory.positive, conditioning(model, 3), 1.0, trajectory.sigmas, sampler)


@pytest.mark.parametrize("kind", cases(ALL_KINDS, "eps", "flow", "zsnr v"))
@torch.inference_mode()
def test_retraces_every_latent(kind):
    build, scheduler = ALL_KINDS[kind]
    model = build()
    trajectory = inverted(model, scheduler)
    picture = model.model.process_latent_out(trajectory.latents[-1])
    assert relative(sample_back(model, trajectory, picture).latents[-1], trajectory.latents[-1]) > 1e-2
    path = sample_back(exact(model, trajectory), trajectory, picture).latents
    # The step down from a sigma of 4500 to one of 15 or so is a difference of large numbers: float32 has no more places.
    bar = 3e-4 if kind == "zsnr v" else 1e-4
    assert max(relative(ours, source) for ours, source in zip(path, trajectory.latents, strict=True)) < bar


@pytest.mark.parametrize("name", cases(TRANSFORMERS, "flux", "sd3", "wan"))
@torch.inference_mode()
def test_retraces_transformers(name):
    kind = TRANSFORMERS[name]
    model = kind.model()
    trajectory = invert(model, kind.conditioning(2), kind.latent(1), schedule(model, 4, "simple"), "ddim")
    picture = model.model.process_latent_out(trajectory.latents[-1])
    path = sample_back(exact(model, trajectory), trajectory, picture).latents
    assert max(relative(ours, source) for ours, source in zip(path, trajectory.latents, strict=True)) < 1e-4


@torch.inference_mode()
def test_costs_one_evaluation_a_step_up_and_down():
    model = sd15()
    with UNetProbe(model) as probe:
        trajectory = inverted(model)
        assert len(probe.calls) == trajectory.steps
        back(exact(model, trajectory), trajectory)
        assert len(probe.calls) == 2 * trajectory.steps


@torch.inference_mode()
def test_rows_of_a_batch_and_one_source_for_many():
    model = two_level()
    trajectory = inverted(model, batch=2)
    assert relative(back(exact(model, trajectory), trajectory)[-1], trajectory.latents[-1]) < 1e-4
    one = inverted(model)
    rows = back(exact(model, one), one, start=one.start.expand(3, -1, -1, -1))[-1]
    assert relative(rows, one.latents[-1].expand_as(rows)) < 1e-4


@torch.inference_mode()
def test_masks_and_areas():
    model = two_level()
    trajectory = inverted(model)
    embedding = trajectory.positive[0][0]
    left = torch.zeros(1, 8, 8)
    left[..., :4] = 1.0
    masked = [
        [embedding, {"mask": mask, "set_area_to_bounds": False, "mask_strength": 1.0}] for mask in (left, 1.0 - left)
    ]
    path = sample(exact(model, trajectory), trajectory.start, masked, conditioning(model, 3), 1.0, trajectory.sigmas)
    assert relative(path[-1], trajectory.latents[-1]) < 1e-4


@torch.inference_mode()
def test_control_net_on_inversion_and_sampling():
    model = two_level()
    net = control_net()
    positive, _ = with_control(net, conditioning(model, 1), [])
    trajectory = inverted(model, positive=positive)
    assert relative(back(exact(model, trajectory), trajectory)[-1], trajectory.latents[-1]) < 1e-4


@torch.inference_mode()
def test_edits_retrace_too_and_once():
    """Plug-and-Play with the source's own prompt gives the source; the node before it changes nothing more."""
    model = two_level()
    trajectory = inverted(model)

    def edit(m, **options):
        return PlugAndPlay.execute(m, trajectory, 0.7, 0.5, BLOCKS, exact_retracing=True, **options)[0]

    once = back(edit(model), trajectory)
    assert relative(once[-1], trajectory.latents[-1]) < 1e-4
    noise = torch.randn(trajectory.start.shape, generator=torch.Generator().manual_seed(8))
    start = noise * trajectory.sigmas[0]  # off the source's path
    free = back(edit(model), trajectory, start)[-1]
    assert same(back(exact(edit(model), trajectory), trajectory, start)[-1], free)
    assert same(back(edit(exact(model, trajectory)), trajectory, start)[-1], free)
    plain = PlugAndPlay.execute(model, trajectory, 0.7, 0.5, BLOCKS)[0]
    assert same(back(exact(plain, trajectory), trajectory, start)[-1], free)
    assert same(
        back(PlugAndPlay.execute(exact(model, trajectory), trajectory, 0.7, 0.5, BLOCKS)[0], trajectory, start)[-1],
        free,
    )
    features = CaptureFeatures.execute(model, trajectory, 0.7, 0.5, BLOCKS, "fp32", True)[0]
    assert same(back(edit(model, features=features), trajectory, start)[-1], free)
    with pytest.raises(ValueError, match=r"^features: expected some captured with exact_retracing off"):
        PlugAndPlay.execute(model, trajectory, 0.7, 0.5, BLOCKS, features=features)


@torch.inference_mode()
def test_refuses_what_it_cannot_retrace():
    model = two_level()
    trajectory = inverted(model, steps=2)
    for sampler in ("heun", "dpmpp_2m", "euler_ancestral"):
        with pytest.raises(ValueError, match=rf"^sampler: expected euler or ddim, .* got {sampler}"):
            back(exact(model, trajectory), trajectory, sampler=sampler)
    coarse = trajectory.sigmas[[0, *range(2, len(trajectory.sigmas))]]
    with pytest.raises(ValueError, match=r"^sigmas: expected every step of the trajectory"):
        sample(exact(model, trajectory), trajectory.start, trajectory.positive, [], 1.0, coarse)
    other = invert(model, trajectory.positive, latent(model, 5)["samples"], trajectory.sigmas, "euler")
    for node in (ExactRetracing.execute, lambda m, t: PlugAndPlay.execute(m, t, 0.5, 0.5, BLOCKS, True)):
        with pytest.raises(ValueError, match=r"^trajectory: expected one made with the method ddim"):
            node(model, other)
