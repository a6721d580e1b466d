from dataclasses import replace

import pytest
import torch
from palimpsest.nodes.diffusion.schedule import require_descending_to_zero
from palimpsest.nodes.diffusion.trajectory import ModelFingerprint, Trajectory

pytestmark = pytest.mark.unit

MODEL = ModelFingerprint("BaseModel", "SD15", ("EPS", "ModelSamplingDiscrete"), 14.6)


def trajectory(sigmas: list[float]) -> Trajectory:
    steps = len(sigmas) - 1
    return Trajectory(
        latents=torch.zeros(steps + 1, 1, 4, 8, 8),
        sigmas=torch.tensor(sigmas),
        positive=[[torch.zeros(1, 77, 8), {}]],
        model=MODEL,
        method="ddim",
        residuals=torch.zeros(steps),
    )


def test_step_of_finds_grid_levels_only():
    path = trajectory([14.6, 3.0, 0.5, 0.0])
    assert [path.step_of(s) for s in (14.6, 3.0, 0.5, 0.0)] == [0, 1, 2, 3]
    assert path.step_of(3.0 * (1 + 1e-6)) == 1
    assert path.step_of(1.2) is None
    assert path.step_of(0.01) is None


def test_require_steps_accepts_a_part_of_the_schedule_and_names_another_one():
    path = trajectory([14.6, 3.0, 0.5, 0.0])
    path.require_steps(torch.tensor([3.0, 0.5, 0.0]))
    with pytest.raises(
        ValueError, match=r"sigmas: expected noise levels of the trajectory, which has 3 steps.*first 2\.0000"
    ):
        path.require_steps(torch.tensor([14.6, 2.0, 0.0]))


@pytest.mark.parametrize("sampler", ["dpm_2", "uni_pc"])
def test_levels_that_ksampler_leaves_out_are_said_R10(sampler: str):
    """Fault R10: the refusal asked for the settings that were made already."""
    path = trajectory([14.6, 3.0, 0.5, 0.0])
    with pytest.raises(ValueError, match=f"With {sampler}, KSampler computes one step more and leaves out"):
        path.require_steps(torch.tensor([14.6, 2.0, 0.0]), sampler=sampler)


def on_the_way() -> Trajectory:
    latents = torch.randn(4, 1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    return replace(
        trajectory([14.6, 3.0, 0.5, 0.0]), latents=latents * torch.tensor([14.6, 3, 1, 1]).view(-1, 1, 1, 1, 1)
    )


@pytest.mark.parametrize(("step", "sigma"), [(0, 14.6), (1, 3.0), (2, 0.5)])
def test_a_start_on_the_trajectory_is_let_through_E14(step: int, sigma: float):
    path = on_the_way()
    path.require_start(path.latents[step].half(), sigma, noise_added=True)
    path.require_start(path.latents[step].expand(3, -1, -1, -1), sigma, noise_added=False)


@pytest.mark.parametrize(
    ("step", "sigma", "change"),
    [
        (0, 3.0, 3.0 / 14.6),  # the start of the path at an inner level, scaled to it
        (0, 14.6, 1.015),
        (2, 3.0, 1.0),
    ],
)
@pytest.mark.parametrize("noise_added", [True, False])
def test_a_start_beside_the_trajectory_is_refused_E14(step: int, sigma: float, change: float, noise_added: bool):
    """Fault E14: a sampler that started at an inner level from a wrong latent drew a wrong picture in silence."""
    path = on_the_way()
    with pytest.raises(ValueError, match=rf"expected a start on the trajectory, its latent at sigma {sigma:.4f}"):
        path.require_start(path.latents[step] * change, sigma, noise_added)


def test_noise_added_once_more_is_refused_and_other_noise_is_not_R12():
    path = on_the_way()
    noise = 14.6 * torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    path.require_start(noise, 14.6, noise_added=True)
    with pytest.raises(ValueError, match="add_noise disabled"):
        path.require_start(path.start + noise, 14.6, noise_added=True)
    with pytest.raises(ValueError, match="expected a start on the trajectory"):
        path.require_start(path.latents[1] + 0.1 * noise, 3.0, noise_added=True)


def test_a_latent_that_another_run_left_is_let_through():
    """An edit in two parts: the second sampler adds no noise."""
    path = on_the_way()
    edited = path.latents[1] + 0.3 * torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    path.require_start(edited, 3.0, noise_added=False)


@pytest.mark.parametrize(
    ("sigmas", "message"),
    [
        ([1.0], "at least one step"),
        ([0.0, 1.0], "strictly descending"),
        ([2.0, 2.0, 0.0], "strictly descending"),
        ([2.0, 1.0], "end at 0"),
        ([float("nan"), 0.0], "finite"),
    ],
)
def test_schedules_no_trajectory_can_have_are_refused(sigmas: list[float], message: str):
    with pytest.raises(ValueError, match=f"sigmas: expected .*{message}"):
        require_descending_to_zero(torch.tensor(sigmas))


def test_a_trajectory_checks_its_own_shapes():
    with pytest.raises(ValueError, match="one per latent"):
        Trajectory(torch.zeros(3, 1, 4, 8, 8), torch.tensor([1.0, 0.0]), [], MODEL, "ddim", torch.zeros(1))
    with pytest.raises(ValueError, match="float32"):
        Trajectory(torch.zeros(2, 1, 4, 8, 8).half(), torch.tensor([1.0, 0.0]), [], MODEL, "ddim", torch.zeros(1))
    with pytest.raises(ValueError, match="one per step"):
        Trajectory(torch.zeros(2, 1, 4, 8, 8), torch.tensor([1.0, 0.0]), [], MODEL, "ddim", torch.zeros(2))
