"""Where a sampler starts on a trajectory: through stock nodes, with masks, at inner levels, with fewer steps."""

import comfy_extras.nodes_custom_sampler as core
import pytest
import torch
from palimpsest.nodes.diffusion.trajectory import Trajectory
from palimpsest.nodes.inversion.ddim import invert
from palimpsest.nodes.inversion.nodes import DDIMInvert, TrajectoryStart
from palimpsest.nodes.inversion.noise import trajectory_noise
from palimpsest.nodes.plug_and_play.nodes import PlugAndPlay
from support.cases import cases
from support.fixtures import tiny_models
from support.fixtures.inversions import KINDS, relative, schedule

import nodes as core_nodes

pytestmark = pytest.mark.model


def first_x(noise, guider, sigmas: torch.Tensor, latent: dict, sampler: str = "euler") -> torch.Tensor:
    """x where a stock sampler begins, in the model's sampling space."""
    path = []
    guider.sample(
        noise.generate_noise(latent), latent["samples"], core.KSamplerSelect.execute(sampler)[0], sigmas,
        callback=lambda i, denoised, x, total: path.append(x.clone()), disable_pbar=True, seed=0,
    )  # fmt: skip
    return path[0]


def ksampler_advanced(model, positive, negative, latent: dict, steps: int, **changed) -> torch.Tensor:
    inputs = {
        "add_noise": "disable", "noise_seed": 0, "steps": steps, "cfg": 1.0, "sampler_name": "euler",
        "scheduler": "ddim_uniform", "start_at_step": 0, "end_at_step": 1000, "return_with_leftover_noise": "disable", **changed,
    }  # fmt: skip
    out = core_nodes.KSamplerAdvanced().sample(
        model, positive=positive, negative=negative, latent_image=latent, **inputs
    )
    return model.get_model_object("latent_format").process_in(out[0]["samples"])


@torch.inference_mode()
def test_a_masked_picture_is_retraced_outside_the_mask_E3():
    """Faults E3 and R11: the latent kept its noise_mask, and KSampler (Advanced) kept the noise outside it."""
    model = tiny_models.two_level_v()
    positive, picture = tiny_models.conditioning(model, 1), tiny_models.latent(model, 2)
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., :4] = 1
    masked = {**picture, "noise_mask": mask, "batch_index": [3]}
    trajectory, noise, latent, sigmas = DDIMInvert.execute(
        model, positive, masked, schedule(model, 10), "fixed_point", 10
    ).args
    assert "noise_mask" not in latent and latent["batch_index"] == [3]
    outside, expected = (..., slice(4, None)), trajectory.latents[-1][..., 4:]
    assert relative(ksampler_advanced(model, positive, positive, latent, 10)[outside], expected) < 1e-4
    # An edit inside the mask: the noise, with the masked picture beside it.
    guider = core.BasicGuider.execute(model, tiny_models.conditioning(model, 5))[0]
    euler = core.KSamplerSelect.execute("euler")[0]
    out = core.SamplerCustomAdvanced.execute(noise, guider, euler, sigmas, masked)[0]["samples"]
    out = model.get_model_object("latent_format").process_in(out)
    assert relative(out[outside], expected) < 1e-5 and relative(out[..., :4], trajectory.latents[-1][..., :4]) > 1e-2


@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_trajectory_start_begins_at_the_level_of_its_sigmas_E14(kind: str):
    build, scheduler = KINDS[kind]
    model = build()
    positive, picture = tiny_models.conditioning(model, 1), tiny_models.latent(model, 2, height=8, width=8)
    trajectory = invert(model, positive, picture["samples"], schedule(model, 6, scheduler), "ddim")
    guider = core.BasicGuider.execute(model, positive)[0]
    for given in (None, trajectory.sigmas[2:], trajectory.sigmas[1::2], trajectory.sigmas[1:4]):
        noise, latent, sigmas = TrajectoryStart.execute(model, trajectory, given).args
        assert sigmas is (trajectory.sigmas if given is None else given)
        at_level = trajectory.latents[0 if given is None else trajectory.step_of(float(given[0]))]
        assert relative(first_x(noise, guider, sigmas, picture), at_level) < 1e-5
        if given is not None:  # at a flow model's sigma 1 nothing of a latent is left

            class NoNoise:
                def generate_noise(self, latent):
                    return torch.zeros_like(latent["samples"])

            assert relative(first_x(NoNoise(), guider, sigmas, latent), at_level) < 1e-5


@pytest.mark.parametrize("sigmas", [[], [0.0], [5.5, 1.0, 0.0]])
@torch.inference_mode()
def test_trajectory_start_refuses_other_levels_E14(sigmas: list[float]):
    model = tiny_models.two_level()
    trajectory = a_trajectory(model, 4)
    with pytest.raises(
        ValueError, match=r"sigmas: expected to start at a level of the trajectory, .*inversion's scheduler"
    ):
        TrajectoryStart.execute(model, trajectory, torch.tensor(sigmas))


@torch.inference_mode()
def test_an_edit_with_fewer_steps_than_the_inversion_starts_on_its_path_or_not_at_all_E14():
    """Fault E14: the sampler's 5 steps begin at an inner level of the inversion's 10, for which the noise was not made."""
    model = tiny_models.two_level()
    picture = tiny_models.latent(model, 2)
    trajectory, few = a_trajectory(model, 10), schedule(model, 5)
    assert trajectory.step_of(float(few[0])) == 1
    guider = core.BasicGuider.execute(
        PlugAndPlay.execute(model, trajectory, 0.8, 0.5, "features 1; attention 1-3")[0], trajectory.positive
    )[0]
    with pytest.raises(
        ValueError,
        match=r"expected a start on the trajectory, .*\(number 1 of 10\), got one that differs from it by .* %",
    ):
        first_x(trajectory_noise(model, trajectory), guider, few, picture)
    noise, latent, _ = TrajectoryStart.execute(model, trajectory, few).args
    assert relative(first_x(noise, guider, few, picture), trajectory.latents[1]) < 1e-5
    assert relative(first_x(noise, guider, few, latent, "heun"), trajectory.latents[1]) < 1e-5


@torch.inference_mode()
def test_an_edit_in_a_sampler_that_adds_noise_once_more_is_refused_R12():
    """Fault R12: a plain KSampler on DDIM Invert's latent adds noise, and nothing said so."""
    model = tiny_models.two_level()
    positive, picture = tiny_models.conditioning(model, 1), tiny_models.latent(model, 2)
    trajectory, _, latent, _ = DDIMInvert.execute(model, positive, picture, schedule(model, 4), "ddim", 1).args
    edited = PlugAndPlay.execute(model, trajectory, 0.8, 0.5, "features 1; attention 1-3")[0]
    ksampler_advanced(edited, positive, positive, latent, 4)
    with pytest.raises(ValueError, match="with add_noise disabled"):
        ksampler_advanced(edited, positive, positive, latent, 4, add_noise="enable")
    with pytest.raises(ValueError, match="with add_noise disabled"):
        core_nodes.KSampler().sample(edited, 0, 4, 1.0, "euler", "ddim_uniform", positive, positive, latent, 1.0)


def test_latents_that_hold_their_noise_say_so_R12():
    for node, index in ((DDIMInvert, 2), (TrajectoryStart, 1)):
        output = node.GET_SCHEMA().outputs[index]
        assert output.display_name == "noised_latent" and "add_noise disabled" in output.tooltip


@torch.inference_mode()
def test_dpm_2_in_ksampler_is_told_what_ksampler_does_R10():
    model = tiny_models.two_level()
    trajectory = a_trajectory(model, 6)
    latent = TrajectoryStart.execute(model, trajectory)[1]
    edited = PlugAndPlay.execute(model, trajectory, 0.8, 0.5, "features 1; attention 1-3")[0]
    with pytest.raises(ValueError, match=r"With dpm_2, KSampler computes one step more .* Use euler"):
        ksampler_advanced(edited, trajectory.positive, trajectory.positive, latent, 6, sampler_name="dpm_2")


@torch.inference_mode()
def test_steps_that_ddim_uniform_cannot_take_are_named():
    """BasicScheduler gives the 30 that it is told, KSampler takes 31."""
    model = tiny_models.two_level()
    positive, picture = tiny_models.conditioning(model, 1), tiny_models.latent(model, 2)
    sigmas = core.BasicScheduler.execute(model, "ddim_uniform", 30, 1.0)[0]
    trajectory, _, latent, _ = DDIMInvert.execute(model, positive, picture, sigmas, "ddim", 1).args
    edited = PlugAndPlay.execute(model, trajectory, 0.8, 0.5, "features 1; attention 1-3")[0]
    with pytest.raises(ValueError, match=r"got 31 steps with 1 other levels, .* Use 20, 25, 40 or 50 steps for both"):
        ksampler_advanced(edited, positive, positive, latent, 30)


@pytest.mark.parametrize("sampler", cases(["dpm_2", "uni_pc"], "dpm_2"))
@torch.inference_mode()
def test_samplers_for_which_ksampler_leaves_out_a_level_start_on_an_inversion_R10(sampler: str):
    """Without an edit they sample from the inverted noise: with KSampler's own levels, one step more without its last."""
    model = tiny_models.two_level_v()
    positive, picture = tiny_models.conditioning(model, 1), tiny_models.latent(model, 2)
    sigmas = schedule(model, 21)
    sigmas = torch.cat((sigmas[:-2], sigmas[-1:]))
    trajectory, _, latent, _ = DDIMInvert.execute(model, positive, picture, sigmas, "fixed_point", 5).args
    out = ksampler_advanced(model, positive, positive, latent, 20, sampler_name=sampler)
    assert relative(out, trajectory.latents[-1]) < 0.2


@torch.inference_mode()
def a_trajectory(model, steps: int) -> Trajectory:
    return invert(
        model,
        tiny_models.conditioning(model, 1),
        tiny_models.latent(model, 2)["samples"],
        schedule(model, steps),
        "ddim",
    )
