"""Transformers with weights of 8 bits: an edit reads and overwrites activations, which have the usual precision."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from support.fixtures.inversions import relative
from support.fixtures.quantised_transformers import PackedPatcher, gguf_like, scaled_fp8
from support.fixtures.tiny_transformers import KINDS
from support.fixtures.transformer_edits import EDITS, Pictured

pytestmark = [pytest.mark.model, pytest.mark.newest]  # the oldest ComfyUI loads scaled fp8 in another way

ROUNDING = {scaled_fp8: 0.3, gguf_like: 0.1}


@pytest.mark.parametrize("quantised", ROUNDING)
@pytest.mark.parametrize("name", ["flux", "sd3"])
@torch.inference_mode()
def test_every_edit_and_the_maps_are_those_of_the_whole_weights_but_for_rounding(name: str, quantised: Callable):
    kind = KINDS[name]
    whole, coarse = Pictured(name), Pictured(name, lambda _: quantised(kind))
    kept = {value.dtype for value in coarse.model.model.diffusion_model.state_dict().values()}
    layers = [layer for layer in coarse.model.model.diffusion_model.modules() if hasattr(layer, "packed")]
    assert torch.float8_e4m3fn in kept or (layers and type(coarse.model) is PackedPatcher)
    for edit in (*EDITS, Pictured.attention_mask):
        made = edit(coarse)
        assert 1e-4 < relative(made, edit(whole)) < ROUNDING[quantised]
        if edit is not Pictured.attention_mask:
            assert relative(made, coarse.guided(coarse.model)) > 1e-3
