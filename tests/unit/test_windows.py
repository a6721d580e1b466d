import pytest
from palimpsest.nodes.attention.unet_sites import Sites
from palimpsest.nodes.plug_and_play.windows import Windows

pytestmark = pytest.mark.unit


SITES = Sites((4,), ((4, 0),))


@pytest.mark.parametrize(
    ("ends", "steps", "expected"),
    [
        ((0.8, 0.5), 50, (40, 25)),
        ((0.0, 0.0), 50, (0, 0)),
        ((1.0, 1.0), 50, (50, 50)),
        ((0.29, 0.57), 100, (29, 57)),
        ((0.5, 0.99), 3, (1, 2)),
        ((0.8, 0.01), 1, (1, 1)),  # fault R2: windows of one step rounded to nothing
        ((0.1, 0.0), 4, (1, 0)),
    ],
)
def test_counts_whole_steps(ends, steps, expected):
    assert Windows.of(SITES, *ends, steps) == Windows(SITES, *expected)


def test_a_kind_without_sites_has_no_steps():
    assert Windows.of(Sites((4,), ()), 0.5, 1.0, 10).last == 5
    assert Windows.of(Sites((), ((4, 0),)), 1.0, 0.5, 10).last == 5


def test_end_is_exclusive():
    windows = Windows(SITES, feature=3, attention=1)
    assert [bool(windows.at(i).features) for i in range(5)] == [True, True, True, False, False]
    assert [bool(windows.at(i).attention) for i in range(5)] == [True, False, False, False, False]
    assert windows.last == 3
