"""Against diffusers' UnCLIPScheduler, which computes in float32, and its DDIMScheduler on the respaced chain."""

import pytest
import torch
from diffusers import DDIMScheduler
from diffusers.schedulers.scheduling_unclip import UnCLIPScheduler
from palimpsest.nodes.unclip.respaced_schedule import respaced, squaredcos_cap_v2

pytestmark = pytest.mark.unit


def scheduler(steps: int, **config) -> UnCLIPScheduler:
    made = UnCLIPScheduler(prediction_type="sample", clip_sample_range=5.0, **config)
    made.set_timesteps(steps)
    return made


def previous(timesteps: torch.Tensor) -> list[int | None]:
    return [*(int(t) for t in timesteps[1:]), None]


def test_betas_are_those_of_diffusers():
    assert torch.equal(squaredcos_cap_v2().float(), UnCLIPScheduler().betas)


def test_steps_are_those_of_diffusers_for_every_count():
    for steps in range(2, 1001):
        assert torch.equal(respaced(steps).timesteps, scheduler(steps).timesteps)


def test_seven_steps_are_karlo_s():
    assert respaced(7).timesteps.tolist() == [999, 832, 666, 500, 333, 166, 0]


@pytest.mark.parametrize("steps", [7, 25, 50, 600])
def test_betas_and_variances_of_the_respaced_chain_are_those_of_diffusers(steps):
    ours, theirs = respaced(steps), scheduler(steps)
    fraction = torch.linspace(-1, 1, 5)
    for i, (t, after) in enumerate(zip(theirs.timesteps, previous(theirs.timesteps), strict=True)):
        next_level = theirs.alphas_cumprod[after] if after is not None else theirs.one
        one_step = t - (after if after is not None else -1) == 1
        beta = theirs.betas[t] if one_step else 1 - theirs.alphas_cumprod[t] / next_level
        assert float(ours.betas[i]) == float(beta)
        assert float(ours.alpha_bar[i]) == float(theirs.alphas_cumprod[t])
        deviation = float(theirs._get_variance(t, prev_timestep=after))
        assert float(ours.posterior_variance[i]) ** 0.5 == pytest.approx(deviation, rel=1e-6, abs=1e-9)
        if after is not None:
            learned = theirs._get_variance(t, after, fraction, "learned_range")
            torch.testing.assert_close(ours.learned_log_variance(i, fraction), learned, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("steps", [7, 25, 50])
def test_the_chain_is_the_exact_one_to_its_rounding(steps):
    """beta = 1 - alpha_bar / alpha_bar of the next level, alpha_bar in closed form; 0.999 caps the training chain's last beta."""
    ours = respaced(steps)
    level = torch.cos((torch.arange(1001, dtype=torch.float64) / 1000 + 0.008) / 1.008 * torch.pi / 2) ** 2
    exact = level[1:] / level[0]
    exact[999] = exact[998] * 1e-3
    torch.testing.assert_close(ours.alpha_bar, exact[ours.timesteps], rtol=1e-3, atol=1e-6)
    after = torch.cat([exact[ours.timesteps][1:], torch.ones(1, dtype=torch.float64)])
    torch.testing.assert_close(ours.betas, 1 - exact[ours.timesteps] / after, rtol=1e-3, atol=1e-6)


def test_the_last_step_s_learned_variance_is_finite():
    ours = respaced(7)
    assert torch.isfinite(ours.learned_log_variance(6, torch.tensor([-1.0, 1.0]))).all()


@pytest.mark.parametrize("steps", [7, 25, 50])
def test_ancestral_steps_are_those_of_diffusers(steps):
    ours, theirs = respaced(steps), scheduler(steps)
    generator = torch.Generator().manual_seed(0)
    x, x0 = torch.randn(2, 64, generator=generator), 4 * torch.randn(2, 64, generator=generator)
    for i, (t, after) in enumerate(zip(theirs.timesteps, previous(theirs.timesteps), strict=True)):
        expected = theirs.step(x0, t, x, after, generator=torch.Generator().manual_seed(i)).prev_sample
        noise = torch.randn(2, 64, generator=torch.Generator().manual_seed(i))
        got = ours.step(i, x, x0.clamp(-5, 5), noise)
        assert (got - expected).abs().max() < 2e-6 * expected.abs().max()


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_other_etas_are_ddim_on_the_respaced_chain(eta):
    ours = respaced(25)
    theirs = DDIMScheduler(
        25, trained_betas=ours.betas.flip(0).numpy(), prediction_type="sample", clip_sample=True, clip_sample_range=5.0
    )
    theirs.set_timesteps(25)
    generator = torch.Generator().manual_seed(0)
    x, x0 = torch.randn(2, 64, generator=generator), 4 * torch.randn(2, 64, generator=generator)
    for i, t in enumerate(theirs.timesteps):
        noise = torch.randn(2, 64, generator=generator)
        expected = theirs.step(x0, t, x, eta, use_clipped_model_output=True, variance_noise=noise).prev_sample
        got = ours.step(i, x, x0.clamp(-5, 5), noise, eta)
        rounding = 6e-4 if eta == 1.0 else 1e-4  # of the last step's 1 - alpha_bar: respaced() says where it comes from
        assert (got - expected).abs().max() < rounding * expected.abs().max()


def test_a_constant_prediction_is_where_every_path_ends():
    ours, constant = respaced(25), torch.full((1, 8), 0.7)
    for eta in (0.0, 0.5, 1.0):
        x = torch.randn(1, 8, generator=torch.Generator().manual_seed(1))
        for i in range(25):
            x = ours.step(i, x, constant, torch.randn(1, 8, generator=torch.Generator().manual_seed(i)), eta)
        torch.testing.assert_close(x, constant, rtol=6e-4 if eta == 1.0 else 1e-6, atol=0.0)


@pytest.mark.parametrize("steps", [0, 1, 1001])
def test_other_counts_are_refused(steps):
    with pytest.raises(ValueError, match=rf"^steps: expected 2 to 1000, .* got {steps}\. "):
        respaced(steps)


def test_other_betas_may_be_given():
    linear = torch.linspace(1e-4, 2e-2, 1000, dtype=torch.float64)
    ours = respaced(15, linear)
    assert ours.timesteps[[0, -1]].tolist() == [999, 0]
    assert float(ours.alpha_bar[0]) == pytest.approx(float((1 - linear).prod()))
