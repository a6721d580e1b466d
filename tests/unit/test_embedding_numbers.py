import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from palimpsest.nodes.unclip.embeddings.numbers import mixing_weights, numbers, thetas

pytestmark = pytest.mark.unit


@settings(deadline=None)
@given(st.lists(st.floats(-1e6, 1e6), min_size=1), st.sampled_from([",", ", ", " ", "; ", "\n", " ,\t", "，", "、"]))
def test_a_list_is_read_as_it_was_written(values: list[float], between: str):
    assert numbers(f" {between.join(map(repr, values))} ", "thetas") == values
    assert numbers(between.join(map(repr, values)) + ",", "thetas") == values


@pytest.mark.parametrize("text", ["", "  ", ",", "a half", "0, x, 1", "0, nan", "inf", "0.5.5", "0, 0x1", "½"])
def test_what_is_no_list_of_numbers_is_said(text: str):
    with pytest.raises(ValueError, match=r"^thetas: expected numbers .+ got .+\. \w.+\.$"):
        thetas(text, 0)


@pytest.mark.parametrize("text", ["0, 1.5", "-0.1", "0,25"])
def test_thetas_lie_between_the_ends(text: str):
    with pytest.raises(ValueError, match=r"thetas: expected numbers from 0 to 1, got"):
        thetas(text, 0)


def test_frames_go_evenly_through_the_list():
    assert thetas("0, 0.25, 0.5", 0).tolist() == [0, 0.25, 0.5]
    assert thetas("0, 1", 5).tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert thetas("0 1 0", 9).tolist() == [0, 0.25, 0.5, 0.75, 1, 0.75, 0.5, 0.25, 0]
    assert thetas("0, 0.5, 0.5, 1", 7).tolist() == [0, 0.25, 0.5, 0.5, 0.5, 0.75, 1]
    assert thetas("0.2, 1", 1).tolist() == pytest.approx([0.2])
    with pytest.raises(ValueError, match=r"thetas: expected at least two numbers to spread 5 frames over, got "):
        thetas("0.5", 5)
    with pytest.raises(ValueError, match="thetas: expected at most 4096 numbers, got 5000"):
        thetas("0.5 " * 5000, 0)


def test_weights_belong_to_sockets():
    assert mixing_weights("", 4) == [0.25] * 4
    assert mixing_weights("1, -0.5", 2) == [1, -0.5]
    with pytest.raises(ValueError, match=r"weights: expected one number for each of the 3 embeddings, got 2 in '1, 1'"):
        mixing_weights("1, 1", 3)
    with pytest.raises(ValueError, match="weights: expected one that is not 0, got '0, 0'"):
        mixing_weights("0, 0", 2)
