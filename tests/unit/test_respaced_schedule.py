"""Against diffusers' UnCLIPScheduler in float64, the same in its own float32, and its DDIMScheduler on the respaced chain."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDIMScheduler
from diffusers.schedulers.scheduling_unclip import UnCLIPScheduler
from palimpsest.nodes.unclip.respaced_schedule import respaced, squaredcos_cap_v2, visiting
from support.fixtures.unclip_schedulers import exact_alpha_bar, exactly

pytestmark = pytest.mark.unit

# What float32 leaves of 1 - alpha_bar where it is smallest: 4e-5 at timestep 0, in units of 2^-24.
FLOAT32 = 1e-3


def scheduler(steps: int, **config) -> UnCLIPScheduler:
    made = UnCLIPScheduler(prediction_type="sample", clip_sample_range=5.0, **config)
    made.set_timesteps(steps)
    return made


def previous(timesteps: torch.Tensor) -> list[int | None]:
    return [*(int(t) for t in timesteps[1:]), None]


def draws() -> tuple[torch.Tensor, torch.Tensor]:
    """(x, x0), of which some of x0 is beyond the clamp."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 64, generator=generator), 4 * torch.randn(2, 64, generator=generator)


def test_betas_are_those_of_diffusers():
    assert torch.equal(squaredcos_cap_v2().float(), UnCLIPScheduler().betas)


def test_steps_are_those_of_diffusers_for_every_count():
    for steps in range(2, 1001):
        assert torch.equal(respaced(steps).timesteps, scheduler(steps).timesteps)


def test_seven_steps_are_karlo_s():
    assert respaced(7).timesteps.tolist() == [999, 832, 666, 500, 333, 166, 0]


@pytest.mark.parametrize("steps", [2, 7, 25, 50, 600, 1000])
def test_P1_every_coefficient_is_the_closed_form_in_float64(steps):
    """Fault P1: they were computed in float32."""
    ours, exact = respaced(steps), exact_alpha_bar()
    after = torch.cat([exact[ours.timesteps][1:], torch.ones(1, dtype=torch.float64)])
    betas = 1 - exact[ours.timesteps] / after
    for found, expected in (
        (ours.alpha_bar, exact[ours.timesteps]),
        (ours.alpha_bar_next, after),
        (ours.betas, betas),
        (ours.posterior_variance, (1 - after) / (1 - exact[ours.timesteps]) * betas),
    ):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-16)


@pytest.mark.parametrize("steps", [7, 25, 50, 600])
@pytest.mark.parametrize("ancestral", [True, False])
def test_P1_the_last_step_goes_to_the_predicted_picture_itself(steps, ancestral):
    """Fault P1: the last ancestral step gave 0.999472 x0."""
    x, x0 = (values.double() for values in draws())
    last = respaced(steps).step(steps - 1, x, x0, torch.zeros_like(x), float(ancestral))
    torch.testing.assert_close(last, x0, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("steps", [7, 25, 50, 600])
@pytest.mark.parametrize(("exact", "tolerance"), [(True, 1e-9), (False, FLOAT32)])
def test_betas_and_variances_of_the_respaced_chain_are_those_of_diffusers(steps, exact, tolerance):
    ours, theirs = respaced(steps), scheduler(steps)
    theirs = exactly(theirs) if exact else theirs
    fraction = torch.linspace(-1, 1, 5, dtype=torch.float64)
    for i, (t, after) in enumerate(zip(theirs.timesteps, previous(theirs.timesteps), strict=True)):
        deviation = float(theirs._get_variance(t, prev_timestep=after))
        assert float(ours.posterior_variance[i]) ** 0.5 == pytest.approx(deviation, rel=tolerance, abs=1e-9)
        if after is not None:
            learned = theirs._get_variance(t, after, fraction, "learned_range").double()
            torch.testing.assert_close(ours.learned_log_variance(i, fraction), learned, rtol=0, atol=tolerance)


def test_the_last_step_s_learned_variance_is_finite():
    ours = respaced(7)
    assert torch.isfinite(ours.learned_log_variance(6, torch.tensor([-1.0, 1.0]))).all()


@pytest.mark.parametrize("steps", [7, 25, 50])
@pytest.mark.parametrize(("exact", "tolerance"), [(True, 5e-7), (False, FLOAT32)])
def test_ancestral_steps_are_those_of_diffusers(steps, exact, tolerance):
    ours, theirs = respaced(steps), scheduler(steps)
    theirs = exactly(theirs) if exact else theirs
    x, x0 = draws()
    for i, (t, after) in enumerate(zip(theirs.timesteps, previous(theirs.timesteps), strict=True)):
        expected = theirs.step(x0, t, x, after, generator=torch.Generator().manual_seed(i)).prev_sample
        noise = torch.randn(2, 64, generator=torch.Generator().manual_seed(i))
        got = ours.step(i, x, x0.clamp(-5, 5), noise)
        assert (got - expected).abs().max() < tolerance * expected.abs().max()


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_other_etas_are_ddim_on_the_respaced_chain(eta):
    ours = respaced(25)
    theirs = DDIMScheduler(
        25, trained_betas=ours.betas.flip(0).numpy(), prediction_type="sample", clip_sample=True, clip_sample_range=5.0
    )
    theirs.alphas_cumprod = (1 - ours.betas.flip(0)).cumprod(0)
    theirs.final_alpha_cumprod = torch.ones((), dtype=torch.float64)
    theirs.set_timesteps(25)
    generator = torch.Generator().manual_seed(0)
    x, x0 = torch.randn(2, 64, generator=generator), 4 * torch.randn(2, 64, generator=generator)
    for i, t in enumerate(theirs.timesteps):
        noise = torch.randn(2, 64, generator=generator)
        expected = theirs.step(x0, t, x, eta, use_clipped_model_output=True, variance_noise=noise).prev_sample
        got = ours.step(i, x, x0.clamp(-5, 5), noise, eta)
        assert (got - expected).abs().max() < 5e-6 * expected.abs().max()


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_a_constant_prediction_is_where_every_path_ends(eta):
    ours, constant = respaced(25), torch.full((1, 8), 0.7)
    x = torch.randn(1, 8, generator=torch.Generator().manual_seed(1))
    for i in range(25):
        x = ours.step(i, x, constant, torch.randn(1, 8, generator=torch.Generator().manual_seed(i)), eta)
    torch.testing.assert_close(x, constant, rtol=1e-6, atol=0.0)


@pytest.mark.parametrize("steps", [0, 1, 1001])
def test_other_counts_are_refused(steps):
    with pytest.raises(ValueError, match=rf"^steps: expected 2 to 1000, .* got {steps}\. "):
        respaced(steps)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_other_betas_may_be_given(dtype):
    linear = torch.linspace(1e-4, 2e-2, 1000, dtype=dtype)
    ours = respaced(15, linear)
    assert ours.timesteps[[0, -1]].tolist() == [999, 0]
    assert float(ours.alpha_bar[0]) == pytest.approx(float((1 - linear.double()).prod()), rel=1e-12)
    assert ours.betas.dtype == torch.float64


def test_part_of_a_chain_ends_where_it_is_told_to():
    part = visiting(torch.tensor([900, 400, 100]))
    exact = exact_alpha_bar()
    torch.testing.assert_close(part.alpha_bar, exact[[900, 400]], rtol=1e-10, atol=0)
    torch.testing.assert_close(part.alpha_bar_next, exact[[400, 100]], rtol=1e-10, atol=0)
