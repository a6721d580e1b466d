import pytest
from palimpsest.nodes.attention.families import CROSS, TEXT_FIRST, Family
from palimpsest.nodes.attention.transformer_sites import (
    exchange_blocks,
    parse_blocks,
    parse_transformer_sites,
    word_blocks,
)

pytestmark = pytest.mark.unit

FLUX, SD35_LARGE, SD3_MEDIUM, QWEN = (19, 38), (38, 0), (24, 0), (60, 0)


@pytest.mark.parametrize(
    "family, count, features",
    [
        ("Flux.1", FLUX, range(39, 57)),
        ("Chroma", FLUX, range(39, 57)),
        ("SD3", SD3_MEDIUM, range(23)),
        ("SD3", SD35_LARGE, range(37)),
        ("Qwen-Image", QWEN, range(16, 45)),
        ("Z-Image", (30, 0), range(10, 30)),
    ],
)
def test_auto_is_the_published_choice(family, count, features):
    sites = parse_transformer_sites("auto", family, count)
    assert sites.features == tuple(features)
    assert sites.attention == tuple((block, 0) for block in range(sum(count)))


def test_blocks_are_counted_through_or_by_kind():
    sites = parse_transformer_sites("features single 20-37; attention double 0-18, single 0 - 2", "Flux.1", FLUX)
    assert sites.features == tuple(range(39, 57))
    assert [block for block, _ in sites.attention] == [*range(19), 19, 20, 21]
    same = parse_transformer_sites("Features 39-56; attention 0-21", "Flux.1", FLUX)
    assert same == sites


@pytest.mark.parametrize(
    "blocks, words",
    [
        ("attention 57", "expected block numbers 0-56 of this Flux.1, which has 19 double and 38 single"),
        ("attention double 19", "expected double numbers 0-18"),
        ("attention single 38", "expected single numbers 0-37"),
        ("attention 5-3", "expected block numbers 0-56"),
        ("features out_layers", "expected block numbers"),
        ("blocks 3", "expected 'auto', or 'features' and 'attention' once each"),
        ("attention 1; attention 2", "once each"),
        ("", "expected 'auto' or block numbers"),
    ],
)
def test_a_wrong_block_is_named(blocks, words):
    with pytest.raises(ValueError, match=words):
        parse_transformer_sites(blocks, "Flux.1", FLUX)


def test_blocks_that_see_words_are_the_published_ones_of_that_depth():
    assert word_blocks("Flux.1", (19, 38)) == (11, 12, 14, 17, 18)
    assert word_blocks("SD3", (24, 0)) == (4, 5, 7, 8, 9) and word_blocks("SD3", (38, 0)) == (16, 18, 20, 21, 24)
    assert word_blocks("Flux.1", (8, 38)) is None and word_blocks("Z-Image", (30, 0)) is None
    assert parse_blocks(" All", "Flux.1", (2, 3)) == (0, 1, 2, 3, 4) and parse_blocks("auto", "Flux.1", (2, 3)) is None
    assert parse_blocks("double 1, single 0-1", "Flux.1", (2, 3)) == (1, 2, 3)
    with pytest.raises(ValueError, match=r"^blocks: expected block numbers 0-4 of this Flux\.1"):
        parse_blocks("features 3", "Flux.1", (2, 3))


def test_words_are_exchanged_in_the_published_share_of_the_blocks():
    assert exchange_blocks(Family("Flux.1", TEXT_FIRST), (19, 38)) == range(13, 45)
    assert exchange_blocks(Family("any", TEXT_FIRST), (1, 0)) == range(0, 1)
    assert exchange_blocks(Family("Wan", CROSS), (30, 0)) == range(30)
