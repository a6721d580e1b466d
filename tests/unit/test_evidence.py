"""What the pages of the toy's evidence share: edits, scores, intervals."""

import pytest
import torch
from lab.evidence.edits import CHANGES, held_out_edits
from lab.evidence.intervals import differ, difference, mean
from lab.evidence.scores import psnr, things_iou
from lab.world.judge import judge
from lab.world.render import render

pytestmark = pytest.mark.unit


def test_an_edit_is_done_in_its_target_s_render_and_not_in_its_source_s() -> None:
    edits = held_out_edits(5, 3, tuple(CHANGES))
    assert [edit.change for edit in edits] == list(CHANGES)
    drawn = render([edit.source for edit in edits] + [edit.target for edit in edits])
    readings = judge(drawn.pictures)
    for edit, before, after in zip(edits, readings[:5], readings[5:], strict=True):
        assert not edit.is_done(before), edit.words
        assert edit.is_done(after) == (edit.change != "weaken"), edit.words  # it names no other colour
        assert (edit.source_text == edit.target_text) == (edit.change == "weaken")
        if edit.number is not None:
            text, words = (edit.source_text, edit.target_text), edit.phrases
            assert all(phrase in whole for phrase, whole in zip(words, text, strict=True))
    assert things_iou(readings[:5], drawn.visible[:5]).median() > 0.9


def test_psnr_counts_where_it_is_asked_to() -> None:
    a, b, left = torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 4, 4), torch.zeros(1, 4, 4)
    b[..., 2:], left[..., :2] = 0.1, 1.0
    assert psnr(a, b, left) == pytest.approx(120) and psnr(a, b, 1 - left) == pytest.approx(20)


def test_a_difference_of_pairs_is_surer_than_its_parts() -> None:
    values = torch.rand(60, generator=torch.Generator().manual_seed(0)) * 10
    better = values + 0.1 + 0.1 * torch.rand(60, generator=torch.Generator().manual_seed(1))
    assert differ(better, values) and not differ(values, values.flip(0))
    assert difference(values, values) == "+0.00 (+0.00 to +0.00)"
    assert mean(torch.tensor([1.0, 3.0]), 1) == "2.0 (1.0 to 3.0)"
