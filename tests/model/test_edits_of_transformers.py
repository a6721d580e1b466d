"""What holds for every edit of a transformer, and for its maps of words, whatever shares its calls, its precision and its patches."""

from __future__ import annotations

from itertools import product

import comfy.model_patcher
import pytest
import torch
from comfy.patcher_extension import WrappersMP
from support.cases import cases
from support.fixtures.inversions import relative
from support.fixtures.tiny_transformers import KINDS
from support.fixtures.transformer_edits import EDITS, Pictured

pytestmark = pytest.mark.model

MADE = (*EDITS, Pictured.attention_mask)
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}
ROUNDING = {"fp16": 1e-2, "bf16": 6e-2}


def spelled(value: object) -> str:
    return value if isinstance(value, str) else value.__name__


def of_families(made, *daily: str) -> pytest.MarkDecorator:
    """Each of `made` on each family, daily on the families named, one for each."""
    every = cases(product(KINDS, made), *zip(daily, made, strict=True))
    return pytest.mark.parametrize(("name", "make"), every, ids=spelled)


@of_families(MADE, "flux", "sd3", "qwen_image", "cosmos")
@torch.inference_mode()
def test_another_packs_override_changes_nothing_and_is_called_as_often_before_as_after(name, make):
    def overriding(calls: list):
        def attend(func, q, k, v, *args, **kwargs):
            calls.append(1)
            return func(q, k, v, *args, **kwargs)

        def patched(model):
            model = model.clone()
            model.model_options["transformer_options"]["optimized_attention_override"] = attend
            return model

        return patched

    plain, before, after = make(Pictured(name)), [], []
    assert torch.equal(make(Pictured(name, overriding(before))), plain)
    assert len(before) > 0
    if make is not Pictured.attention_mask:  # behind it no model is sampled
        assert torch.equal(make(Pictured(name, after=overriding(after))), plain)
        assert len(after) == len(before)


@of_families(EDITS, "flux", "sd3", "qwen_image")
@torch.inference_mode()
def test_rows_in_one_call_and_in_calls_of_their_own_agree(name, make, monkeypatch):
    """The negative prompt is as long as the target's, which has another length than the source's."""
    calls = []

    def counted(model):
        model = model.clone()
        model.add_wrapper_with_key(
            WrappersMP.APPLY_MODEL,
            "count",
            lambda executor, *args, **kwargs: calls.append(1) or executor(*args, **kwargs),
        )
        return model

    together = make(Pictured(name, counted, negative=None))
    few, calls[:] = len(calls), []
    monkeypatch.setattr(comfy.model_patcher.ModelPatcher, "get_free_memory", lambda *args: 0)
    assert relative(make(Pictured(name, counted, negative=None)), together) < 1e-5
    assert few < len(calls)


@pytest.mark.parametrize(
    ("name", "make", "precision"),
    cases(
        [
            *product(("chroma", "sd3"), MADE, DTYPES),
            *product(("flux",), MADE, ("fp16",)),
            ("qwen_image", Pictured.flow_edit, "bf16"),
        ],
        *zip(("flux", "sd3", "qwen_image", "flux"), MADE, ("fp16", "bf16", "bf16", "fp16"), strict=True),
    ),
    ids=spelled,
)
@torch.inference_mode()
def test_half_precision_is_close(name, make, precision):
    half, whole = (make(Pictured(name, dtype=dtype)) for dtype in (DTYPES[precision], torch.float32))
    assert bool(torch.isfinite(half).all())
    assert 0.0 < relative(half, whole) < ROUNDING[precision]
