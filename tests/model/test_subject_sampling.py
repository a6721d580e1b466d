"""Delayed subject conditioning (FastComposer) wired from core's nodes, and what sampling does with the conditioning."""

from __future__ import annotations

import pytest
import torch
from palimpsest.nodes.subject.nodes import SubjectConditioning
from support.fixtures.sampling import sample, schedule
from support.fixtures.twin_subject import MARKER, tiny

from nodes import CLIPTextEncode, ConditioningCombine, ConditioningSetTimestepRange

pytestmark = [pytest.mark.model, pytest.mark.compat]

STEPS = 6
CFG = 5.0


@pytest.fixture(scope="module")
def conditionings(clip):
    encoder, _ = tiny(clip)
    pictures = torch.rand(2, 60, 80, 3, generator=torch.Generator().manual_seed(3))
    text = f"a man {MARKER} and a dog {MARKER} on grass"
    positive_subject, positive = SubjectConditioning.execute(clip, encoder, pictures, text).args
    [negative] = CLIPTextEncode().encode(clip, "")
    return positive_subject, positive, negative


def start(model, batch: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    sigmas = schedule(model, STEPS)
    noise = torch.randn(batch, 4, 16, 16, generator=torch.Generator().manual_seed(4))
    return noise * (1 + sigmas[0] ** 2) ** 0.5, sigmas


def delayed(positive_subject, positive, percent: float):
    """Core's nodes as the help page wires them."""
    within = ConditioningSetTimestepRange().set_range
    [first], [second] = within(positive, 0.0, percent), within(positive_subject, percent, 1.0)
    [both] = ConditioningCombine().combine(first, second)
    return both


@pytest.mark.parametrize("batch", [1, 2])
def test_delayed_conditioning_is_the_prompt_first_and_the_subjects_then(model, conditionings, batch):
    positive_subject, positive, negative = conditionings
    x, sigmas = start(model, batch)
    percent = 0.3
    border = model.get_model_object("model_sampling").percent_to_sigma(percent)
    change = int((sigmas > border).sum())
    assert 0 < change < STEPS
    wired = sample(model, x, delayed(positive_subject, positive, percent), negative, CFG, sigmas)
    first = sample(model, x, positive, negative, CFG, sigmas)
    assert all(torch.equal(a, b) for a, b in zip(wired[: change + 1], first[: change + 1], strict=True))
    second = sample(model, first[change], positive_subject, negative, CFG, sigmas[change:])
    assert (wired[-1] - second[-1]).abs().max() < 1e-5 * second[-1].abs().max()
    assert (wired[-1] - first[-1]).abs().max() > 1e-3


def test_the_ends_of_the_range_are_the_plain_prompt_and_the_subjects_alone(model, conditionings):
    positive_subject, positive, negative = conditionings
    x, sigmas = start(model)
    for percent, alone in ((1.0, positive), (0.0, positive_subject)):
        wired = sample(model, x, delayed(positive_subject, positive, percent), negative, CFG, sigmas)
        assert torch.equal(wired[-1], sample(model, x, alone, negative, CFG, sigmas)[-1])


def test_subjects_against_the_plain_prompt_change_the_picture(model, conditionings):
    """The subject response, augmented minus plain text: what Face-diffuser's later stages guide by."""
    positive_subject, positive, _ = conditionings
    x, sigmas = start(model)
    response = sample(model, x, positive_subject, positive, CFG, sigmas)
    plain = sample(model, x, positive, positive, CFG, sigmas)
    assert (response[-1] - plain[-1]).abs().max() > 1e-3


@pytest.mark.parametrize(("percent", "start_merge_step"), [(0.22, 10), (0.32, 15)])
def test_the_help_page_s_ranges_are_the_published_steps(model, percent, start_merge_step):
    """Published: step i of 50 is plain while i <= start_merge_step."""
    border = model.get_model_object("model_sampling").percent_to_sigma(percent)
    assert int((schedule(model, 50)[:-1] >= border).sum()) == start_merge_step + 1
