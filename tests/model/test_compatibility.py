"""A spread of the cells of docs/compatibility.md, and that a cell can fail. `make evidence PART=compatibility` runs them all."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from lab.evidence.compatibility.columns import COLUMNS
from lab.evidence.compatibility.graph import core
from lab.evidence.compatibility.rows import Row
from lab.evidence.compatibility.walk import Cell, cell, row_named
from support.cases import cases

pytestmark = [pytest.mark.model, pytest.mark.newest]

BY_NAME = {column.name: column for column in COLUMNS}
EVERY_COLUMN = "no other node"
SPREAD = [
    ("LoRA", "DDIM Invert"),
    ("FreeU_V2", "Plug-and-Play"),
    ("FreeU", "Prompt-to-Prompt"),
    ("TorchCompileModel, backend eager", "Plug-and-Play, captured"),
    ("attn2_replace, as IPAdapter, after the node", "Prompt-to-Prompt"),
    ("dpmpp_2m", "local blend"),
    ("UNetCrossAttentionMultiply", "Attention Mask"),
    ("euler_ancestral", "Saliency Fusion"),
    ("ConditioningSetMask, with a prompt for the whole picture", "Subject Fusion"),
    ("batch of 2", "Sample Trajectory"),
    ("lowvram, with a LoRA", "Null-Text Optimize"),
    ("dpmpp_3m_sde", "unCLIP decoder"),
]


def found(row: str | Row, column: str) -> Cell:
    return cell(row_named(row) if isinstance(row, str) else row, BY_NAME[column])


@pytest.mark.parametrize(
    "column", cases(BY_NAME, "DDIM Invert", "Plug-and-Play, captured", "local blend", "Subject Fusion")
)
def test_each_node_is_right_when_nothing_else_is_there(column):
    assert str(found(EVERY_COLUMN, column)) == "right"


@pytest.mark.parametrize(("row", "column"), cases(SPREAD, *SPREAD[:3], SPREAD[8]))
def test_a_spread_of_the_table_is_right(row, column):
    assert str(found(row, column)) == "right"


def test_what_cannot_be_is_refused_in_words():
    assert found("dpm_2", "Plug-and-Play").kind == "refused"
    assert found("euler_ancestral", "Sample Trajectory").kind == "refused"


def drifting(model):
    """Patches that answer otherwise at each evaluation: the source's row then differs from the sampler's."""
    patched = model.clone()
    count = iter(range(10**6))
    patched.set_model_unet_function_wrapper(
        lambda apply, args: (1.0 + 0.02 * next(count)) * apply(args["input"], args["timestep"], **args["c"])
    )
    return patched


@pytest.mark.parametrize(
    "column",
    cases(
        ["DDIM Invert", "Sample Trajectory", "Plug-and-Play", "Prompt-to-Prompt", "Saliency Fusion"],
        "Sample Trajectory",
        "Plug-and-Play",
    ),
)
def test_a_cell_that_is_wrong_is_called_wrong(column):
    row = Row("tests", "drifting", lambda graph: replace(graph, **graph.patched(drifting)))
    assert found(row, column).kind == "wrong"


def test_a_node_that_does_nothing_a_crash_and_core_s_own_failures_are_told_apart():
    def crash(model):
        patched = model.clone()
        state = {"calls": 0}

        def wrapper(apply, args):
            state["calls"] += 1
            if state["calls"] > 4:
                raise KeyError("gone")
            return apply(args["input"], args["timestep"], **args["c"])

        patched.set_model_unet_function_wrapper(wrapper)
        return patched

    dead = Row("tests", "dead", lambda graph: replace(graph, **graph.patched(crash)))
    assert str(found(dead, "Sample Trajectory")) == "crash: KeyError: 'gone'"
    wide = Row("tests", "wide", lambda graph: replace(graph, noise=torch.zeros(1, 5, 16, 16)))
    assert found(wide, "Plug-and-Play").kind == "-"
    same = Row("tests", "same", lambda graph: replace(graph, expert=core("nodes_mahiro.Mahiro", graph.model)))
    assert found(same, "Saliency Fusion").kind in ("right", "refused")
