"""Core's MultiGPU CFG Split evaluates the prompt and the negative prompt on two devices at once, each in a thread of its own."""

from __future__ import annotations

import gc
import threading
from itertools import product

import pytest
import torch
from comfy.patcher_extension import WrappersMP
from palimpsest.nodes.attention.calls import is_source_pass
from support.cases import cases
from support.fixtures.inversions import relative
from support.fixtures.tiny_transformers import KINDS
from support.fixtures.transformer_edits import EDITS, Pictured
from support.fixtures.two_gpus import two_gpus

pytestmark = [pytest.mark.model, pytest.mark.newest]  # the oldest ComfyUI has no MultiGPU


OF_ONE_LENGTH = ("flux2",)  # whose texts are padded, so that two prompts always go together on one device
ROUNDING = 3e-6  # of float32, where rows that went together go apart


class Calls:
    """Every call of the network: its thread, the prompts of its rows, and whether it reads the source."""

    def __init__(self):
        self.seen: list[tuple[threading.Thread, tuple[int, ...], bool]] = []

    def watched(self, model):
        model = model.clone()
        model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "calls", self.apply_model)
        return model

    def apply_model(self, executor, x, t, c_concat=None, c_crossattn=None, control=None, options={}, **kwargs):  # noqa: B006
        self.seen.append((threading.current_thread(), tuple(options["cond_or_uncond"]), is_source_pass(options)))
        return executor(x, t, c_concat, c_crossattn, control, options, **kwargs)

    def threads(self, *prompts: int) -> set[threading.Thread]:
        return {thread for thread, rows, source in self.seen if rows == prompts and not source}


@pytest.fixture(autouse=True)
def no_models_left():
    """Core goes through its list of loaded models while the garbage collector may take some out."""
    gc.collect()


@pytest.mark.parametrize(
    ("name", "edit"),
    cases(product(KINDS, EDITS), *product(("flux", "sd3"), EDITS)),
    ids=lambda value: getattr(value, "__name__", value),
)
@torch.inference_mode()
def test_rows_in_threads_of_their_own_give_what_they_give_together(name, edit):
    alike, own, apart, here = Calls(), Calls(), Calls(), {threading.current_thread()}
    together, separate = edit(Pictured(name, alike.watched, negative=None)), edit(Pictured(name, own.watched))
    assert alike.threads(0, 1) | alike.threads(1, 0) == here
    assert own.threads(0) == own.threads(1) == (set() if name in OF_ONE_LENGTH else here)
    split = edit(Pictured(name, lambda model: two_gpus(apart.watched(model)), negative=None))
    assert relative(split, together) < ROUNDING
    assert relative(edit(Pictured(name, two_gpus)), separate) <= (ROUNDING if name in OF_ONE_LENGTH else 0.0)
    positive, negative = apart.threads(0), apart.threads(1)
    assert len(positive) == len(negative) == 1 and positive.isdisjoint(negative)
    assert threading.current_thread() not in positive | negative
    assert {thread for thread, _, source in apart.seen if source} <= {threading.current_thread()}
    assert not any(
        thread.is_alive() for thread in positive | negative
    )  # else core waits for each of them for 5 seconds


@pytest.mark.parametrize("name", cases(KINDS, "flux", "sd3"))
@torch.inference_mode()
def test_maps_of_words_are_read_on_one_device(name):
    assert torch.equal(Pictured(name, two_gpus).attention_mask(), Pictured(name).attention_mask())
