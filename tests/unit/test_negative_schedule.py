import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from palimpsest.nodes.plug_and_play.negative_schedule import negative_schedule, weights

pytestmark = pytest.mark.unit

SIGMAS = torch.tensor([14.6, 9.0, 4.0, 1.5, 0.6, 0.03, 0.0])
NEGATIVE, EMPTY = [[torch.ones(1, 2, 3), {}]], [[torch.zeros(1, 2, 3), {}]]


def active(entries, sigma):
    """What core keeps at a level: both bounds inclusive, compared in float32."""
    level = torch.tensor(sigma)
    return [e for e in entries if not level > e[1]["timestep_start"] and not level < e[1]["timestep_end"]]


def strengths(entries, sigma):
    kept = active(entries, sigma)
    return [sum(e[1]["strength"] for e in kept if e[0] is side[0][0]) for side in (EMPTY, NEGATIVE)]


def test_linear_starts_at_the_empty_weight_and_ends_at_zero():
    assert weights(5, 0.75, "linear") == pytest.approx([0.75, 0.5625, 0.375, 0.1875, 0.0])
    assert weights(5, 0.75, "constant") == [0.75] * 5
    assert weights(3, 0.5, "exp") == pytest.approx([0.5, 0.5 * math.exp(-3), 0.5 * math.exp(-6)])
    assert weights(1, 0.75, "linear") == [0.75]


@pytest.mark.parametrize("schedule", ["linear", "constant", "exp"])
def test_weights_met_at_each_step(schedule):
    entries = negative_schedule(NEGATIVE, EMPTY, SIGMAS, 0.6, schedule)
    for a, sigma in zip(weights(6, 0.6, schedule), SIGMAS[:-1].tolist(), strict=True):
        assert strengths(entries, sigma) == pytest.approx([a, 1.0 - a])


@given(st.floats(0.0, 1e4, width=32))
def test_every_level_belongs_to_one_step(sigma):
    entries = negative_schedule(NEGATIVE, EMPTY, SIGMAS, 0.6, "exp")
    assert len(active(entries, sigma)) == 2
    assert sum(strengths(entries, sigma)) == pytest.approx(1.0)


def test_levels_off_by_rounding_and_midpoints_stay_in_their_step():
    entries = negative_schedule(NEGATIVE, EMPTY, SIGMAS, 1.0, "linear")
    expected = strengths(entries, 4.0)
    assert strengths(entries, 4.0 * (1 + 2e-7)) == expected
    assert strengths(entries, 4.0 * (1 - 2e-7)) == expected
    assert strengths(entries, (4.0 * 1.5) ** 0.5) == expected


def test_zero_weights_are_left_out():
    assert [e[0] is EMPTY[0][0] for e in negative_schedule(NEGATIVE, EMPTY, SIGMAS, 1.0, "constant")] == [True]
    assert [e[0] is NEGATIVE[0][0] for e in negative_schedule(NEGATIVE, EMPTY, SIGMAS, 0.0, "exp")] == [True]
    assert len(negative_schedule(NEGATIVE, EMPTY, SIGMAS, 1.0, "linear")) == 2 * 6 - 2


def test_several_entries_share_a_weight_as_their_strengths_do():
    two = [[torch.ones(1, 2, 3), {"strength": 3.0}], [torch.ones(1, 2, 3), {}]]
    entries = negative_schedule(two, EMPTY, SIGMAS, 0.6, "constant")
    assert [e[1]["strength"] for e in entries] == pytest.approx([0.6, 0.3, 0.1])
    assert two[0][1] == {"strength": 3.0}


@pytest.mark.parametrize("socket", ["negative", "empty"])
@pytest.mark.parametrize("key", ["start_percent", "end_percent", "clip_start_percent", "timestep_end"])
def test_refuses_entries_with_times_of_their_own(socket, key):
    sides = {"negative": NEGATIVE, "empty": EMPTY, socket: [[torch.ones(1, 2, 3), {key: 0.5}]]}
    with pytest.raises(ValueError, match=rf"^{socket}: expected .* got some with {key}"):
        negative_schedule(**sides, sigmas=SIGMAS, empty_weight=1.0, schedule="linear")


def test_refuses_sigmas_that_are_no_whole_schedule():
    with pytest.raises(ValueError, match=r"^sigmas: "):
        negative_schedule(NEGATIVE, EMPTY, SIGMAS.flip(0), 1.0, "linear")


@pytest.mark.parametrize("socket", ["negative", "empty"])
@pytest.mark.parametrize("count", [1, 2])
def test_refuses_prompts_without_any_strength(socket, count):
    """Fault E20: a division by zero."""
    mute = [[torch.ones(1, 2, 3), {"strength": 0.0}]] * count
    sides = {"negative": NEGATIVE, "empty": EMPTY, socket: mute}
    with pytest.raises(ValueError, match=rf"^{socket}: expected a prompt with a strength above 0"):
        negative_schedule(**sides, sigmas=SIGMAS, empty_weight=1.0, schedule="linear")
