import pytest
from hypothesis import given
from hypothesis import strategies as st
from palimpsest.nodes.attention.unet_sites import Sites, parse_sites

pytestmark = pytest.mark.unit

SD15 = (0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1)
SDXL = (10, 10, 10, 2, 2, 2, 0, 0, 0)


def test_auto_is_the_published_choice_on_sd15():
    assert parse_sites("auto", SD15) == Sites((4,), tuple((block, 0) for block in range(4, 12)))


def test_auto_takes_every_depth_of_sdxl_from_its_second_block():
    sites = parse_sites(" Auto ", SDXL)
    assert sites.features == (1,)
    assert sites.attention == tuple((b, d) for b in range(1, 6) for d in range(SDXL[b]))


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("features 4; attention 4-11", "auto"),
        ("attention 4-7, 8 9-11;features 4;", "auto"),
        ("ATTENTION 4 - 11 ; features 4-4", "auto"),
        ("features 3,5,4,4", "features 3-5"),
    ],
)
def test_ways_to_write_the_same(text, same):
    assert parse_sites(text, SD15) == parse_sites(same, SD15)


def test_a_part_left_out_is_empty():
    assert parse_sites("features 4", SD15).attention == ()
    assert parse_sites("attention 4-11", SD15).features == ()


@pytest.mark.parametrize(
    ("text", "depths", "says"),
    [
        ("", SD15, "got ''"),
        (";", SD15, "got ';'"),
        ("features", SD15, "got 'features'"),
        ("features 4; features 5", SD15, "'features 5'"),
        ("middle 0", SD15, "'middle 0'"),
        ("features -", SD15, "'features -'"),
        ("features x4", SD15, "'x4'"),
        ("features 12", SD15, "0-11 of this UNet, alone or as first-last, got '12'"),
        ("features 9", SDXL, "0-8 of this UNet"),
        ("attention 11-4", SD15, "'11-4'"),
        ("attention 4--11", SD15, "'4--11'"),
        ("features single 20-37; attention 0-56", SD15, "got 'single'"),  # of a transformer
        ("attention double 3-7", SD15, "got 'double'"),
        ("attention 0-56", SD15, "got '0-56'"),
        ("attention 2-4", SD15, "got 2 in 'attention 2-4'"),
        ("attention 5-6", SDXL, "0, 1, 2, 3, 4, 5 of this model"),
        ("auto", (1, 1, 1, 1), "4 output blocks"),
        ("auto", (0, 0, 0, 4, 4, 4, 4, 4, 4, 0, 0, 0), "'auto' knows only"),
    ],
)
def test_refuses_naming_socket_token_and_range(text, depths, says):
    with pytest.raises(ValueError, match=r"^blocks: expected") as error:
        parse_sites(text, depths)
    assert says in str(error.value)


@given(st.text(alphabet="featuresnio -,;0123456789", max_size=40))
def test_any_text_gives_sites_of_the_model_or_a_refusal(text):
    try:
        sites = parse_sites(text, SD15)
    except ValueError as error:
        assert str(error).startswith("blocks: ")
    else:
        assert sites == parse_sites(str(sites), SD15)


def test_covers():
    auto = parse_sites("auto", SD15)
    assert auto.covers(parse_sites("attention 5,6", SD15))
    assert not auto.covers(parse_sites("attention 3", SD15))
    assert not parse_sites("attention 5,6", SD15).covers(auto)
