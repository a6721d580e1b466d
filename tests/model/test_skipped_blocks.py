"""Caches of other packs, which leave out some of a transformer's blocks, or all of them, at some of the steps."""

from __future__ import annotations

import pytest
import torch
from comfy_extras.nodes_easycache import EasyCacheNode, LazyCacheNode
from comfy_extras.nodes_slg import SkipLayerGuidanceDiT
from palimpsest.nodes.attention.calls import OTHER_BLOCKS, is_source_pass
from support.cases import cases
from support.fixtures import other_nodes
from support.fixtures.inversions import relative
from support.fixtures.other_nodes import When, every_second
from support.fixtures.transformer_edits import Pictured

pytestmark = pytest.mark.model

EDITS = (Pictured.plug_and_play, Pictured.prompt_to_prompt)
READERS = (*EDITS, Pictured.attention_mask)
LISTS = {"flux": {"double_block": 2, "single_block": 3}, "sd3": {"double_block": 3}}
EDIT = pytest.mark.parametrize("edit", EDITS, ids=lambda edit: edit.__name__)
READER = pytest.mark.parametrize("edit", READERS, ids=lambda edit: edit.__name__)


def skipping(name: str, first: int, when: When):
    return lambda model: other_nodes.skipping(model, LISTS[name], first, when)


def of_source(number: int, options: dict) -> bool:
    return is_source_pass(options)


def of_edit(number: int, options: dict) -> bool:
    return not is_source_pass(options)


@pytest.mark.parametrize("name", LISTS)
@EDIT
@pytest.mark.parametrize("when", [of_source, of_edit])
@torch.inference_mode()
def test_a_first_block_cache_is_refused(name, edit, when):
    """The first block always runs; the others run for the source only, or for the edit only."""
    with pytest.raises(ValueError) as error:
        edit(Pictured(name, skipping(name, 1, when)))
    assert str(error.value) == OTHER_BLOCKS


@pytest.mark.parametrize("name", cases(LISTS, "flux"))
@READER
@torch.inference_mode()
def test_a_cache_that_skips_all_blocks_is_refused(name, edit):
    """As TeaCache does."""
    with pytest.raises(
        ValueError,
        match=r"^model: expected a transformer whose attention can be read, got .*, none of whose blocks ran",
    ):
        edit(Pictured(name, skipping(name, 0, every_second)))


@torch.inference_mode()
def test_maps_are_of_blocks_that_run_at_every_step():
    with pytest.raises(ValueError) as error:
        Pictured("flux", skipping("flux", 1, every_second)).attention_mask()
    assert str(error.value) == OTHER_BLOCKS


@EDIT
@torch.inference_mode()
def test_core_s_caches_are_refused_where_they_answer_in_the_network_s_place(edit):
    with pytest.raises(ValueError, match=r"^model: expected a transformer whose attention can be read"):
        edit(Pictured("flux", lambda model: EasyCacheNode.execute(model, 50.0, 0.0, 1.0, False)[0], steps=10))


@EDIT
@torch.inference_mode()
def test_a_cache_of_whole_predictions_hands_on_edited_ones(edit):
    cached = Pictured("flux", lambda model: LazyCacheNode.execute(model, 50.0, 0.0, 1.0, False)[0], steps=10)
    edited = edit(cached)
    assert bool(torch.isfinite(edited).all()) and relative(edited, cached.guided(cached.model)) > 1e-3


@pytest.mark.parametrize("name", LISTS)
@EDIT
@torch.inference_mode()
def test_guidance_by_skipped_layers_reads_the_source_without_them_too(name, edit):
    """It asks a question of its own about the same latent, in which both leave out the same blocks."""
    guided = edit(Pictured(name, lambda model: SkipLayerGuidanceDiT.execute(model, 3.0, 0.0, 1.0, "1", "1")[0]))
    assert bool(torch.isfinite(guided).all()) and relative(guided, edit(Pictured(name))) > 1e-3
