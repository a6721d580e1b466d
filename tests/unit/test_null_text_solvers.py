"""The solvers on a model whose prediction is affine in the embedding, where every answer is known."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from palimpsest.nodes.null_text.solvers import Effort, Step, line_share, solve_fast, solve_null_text
from support.fixtures.without_float64 import WithoutFloat64

pytestmark = pytest.mark.unit

CFG = 7.5
SHAPE = (2, 3, 4, 4)


class Affine:
    """u(e) = u0 + A e, for each row."""

    def __init__(self, seed: int = 0):
        generator = torch.Generator().manual_seed(seed)
        self.offset = torch.randn(SHAPE, generator=generator)
        self.matrix = torch.randn(48, 10, generator=generator) / 10**0.5
        self.calls = []

    def predict(self, embedding):
        self.calls.append("forward")
        return self.offset + (embedding.flatten(1) @ self.matrix.T).view(SHAPE)

    def predict_with_pullback(self, embedding):
        def pullback(cotangent):
            self.calls.append("backward")
            return (cotangent.flatten(1) @ self.matrix).view_as(embedding)

        return self.predict(embedding), pullback


def problem(model, source):
    """A step whose target is met exactly by the source embedding, as on a pivot."""
    cond = model.predict(source)
    x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(9))
    sigma, sigma_next = 4.0, 3.0
    target = x + (x - cond) / sigma * (sigma_next - sigma)
    model.calls.clear()
    return Step(x, target, cond, sigma, sigma_next, CFG, (sigma_next**2 + 1) ** 0.5)


@pytest.fixture
def model():
    return Affine()


@pytest.fixture
def source():
    return torch.randn(2, 5, 2, generator=torch.Generator().manual_seed(5))


NULL = torch.zeros(2, 5, 2)


def test_the_wanted_prediction_lands_on_the_target(model, source):
    step = problem(model, source)
    assert torch.allclose(step.next(step.wanted), step.target, atol=1e-5)
    assert torch.allclose(step.wanted, step.cond, atol=1e-4)
    assert float(step.loss(step.wanted).max()) < 1e-10


def test_the_loss_slope_is_its_derivative(model, source):
    step = problem(model, source)
    uncond = model.predict(NULL).requires_grad_()
    (slope,) = torch.autograd.grad(step.loss(uncond).sum(), uncond)
    assert torch.allclose(step.loss_slope(uncond.detach()), slope, rtol=1e-4, atol=1e-8)


def on_the_way(model, source):
    return lambda share: model.predict(share.view(-1, 1, 1) * source)


START = torch.zeros(2)


def test_fast_reaches_the_tolerance_by_the_shortest_move_with_two_predictions(model, source):
    step = problem(model, source)
    share, uncond, before = solve_fast(step, on_the_way(model, source), START, 1e-3, True)
    assert torch.allclose(step.loss(uncond), torch.full((2,), 1e-3), rtol=1e-3)
    assert torch.allclose(share, 1 - (1e-3 / before).sqrt(), atol=1e-4)
    assert model.calls == ["forward", "forward"]


def test_fast_asks_for_the_source_prediction_where_it_is_not_the_conds(model, source):
    step = problem(model, source)
    _, uncond, _ = solve_fast(step, on_the_way(model, source), START, 1e-3, False)
    assert model.calls == ["forward"] * 3
    assert torch.allclose(step.loss(uncond), torch.full((2,), 1e-3), rtol=1e-3)


def test_fast_leaves_alone_what_is_good_enough(model, source):
    step = problem(model, source)
    share, _, _ = solve_fast(step, on_the_way(model, source), torch.tensor([1.0, 0.2]), 1e-3, True)
    assert share[0] == 1.0 and 0.2 < share[1] < 1.0
    model.calls.clear()
    again, _, _ = solve_fast(step, on_the_way(model, source), share, 1.1e-3, True)
    assert torch.equal(again, share) and model.calls == ["forward"]


@settings(deadline=None)
@given(st.floats(1e-4, 0.9), st.floats(-2.0, 3.0), st.floats(0.0, 2.0), st.integers(0, 50))
def test_line_share_is_the_smallest_that_meets_the_ratio_or_the_best(ratio, along, across, seed):
    gain, other = torch.randn(2, 1, 64, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    other = other - gain * (gain * other).sum() / gain.square().sum()
    missing = along * gain + across * other
    share = float(line_share(missing, gain, torch.tensor([ratio])))
    grid = torch.linspace(0, 1, 2001, dtype=torch.float64)
    left = (missing - grid[:, None] * gain).square().sum(1)
    met = (left <= ratio * missing.square().sum()).nonzero()
    expected = float(grid[met[0, 0]]) if len(met) else float(grid[left.argmin()])
    assert share == pytest.approx(expected, abs=2e-3)


def null_text(step, model, embedding, effort):
    return solve_null_text(step, embedding, effort, model.predict, model.predict_with_pullback)


def test_null_text_lowers_the_loss_at_every_inner_step(model, source):
    step = problem(model, source)
    losses = [step.loss(null_text(step, model, NULL, Effort(n, 1e-2, 0.0))[1]) for n in range(1, 8)]
    assert all(bool((b < a).all()) for a, b in itertools.pairwise(losses))


def test_null_text_stops_after_the_step_at_which_it_saw_the_tolerance_met(model, source):
    step = problem(model, source)
    near = source + 1e-3
    embedding, _, _ = null_text(step, model, near, Effort(10, 1e-3, 1.0))
    assert model.calls == ["forward", "backward", "forward"]
    assert not torch.equal(embedding, near)
    assert torch.equal(near, source + 1e-3)


def test_a_row_that_has_stopped_keeps_its_embedding(model, source):
    step = problem(model, source)
    mixed = torch.stack([source[0] + 1e-3, NULL[1]])
    tolerance = float(step.loss(model.predict(mixed))[0]) * 1.5
    long, _, _ = null_text(step, model, mixed, Effort(6, 1e-3, tolerance))
    short, _, _ = null_text(step, model, mixed, Effort(1, 1e-3, tolerance))
    assert torch.equal(long[0], short[0])
    assert not torch.equal(long[1], short[1])


def test_constants_of_the_published_code_and_of_the_paper():
    code = Effort(10, 1e-2, 1e-5, "code")
    assert code.at(0.0) == code
    assert code.at(0.98).learning_rate == pytest.approx(5.1e-3)
    assert code.at(0.98).tolerance == pytest.approx(1e-5 + 49 * 2e-5)
    paper = Effort(10, 1e-2, 1e-5, "paper")
    assert paper.at(0.98) == paper


def test_fast_needs_no_float64_on_the_device_E1():
    """Fault E1: the share was computed in float64 where the latents are."""
    missing, gain = torch.randn(2, 2, 1, 4, 4, generator=torch.Generator().manual_seed(2))
    wanted = torch.tensor([0.3, 0.7])
    there = [x.as_subclass(WithoutFloat64) for x in (missing, gain, wanted)]
    assert torch.equal(line_share(*there), line_share(missing, gain, wanted))
