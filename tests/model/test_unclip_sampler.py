"""unCLIP Sampler: whose variance it takes, which steps it visits, and what it refuses."""

from __future__ import annotations

import math

import comfy.samplers
import pytest
import torch
from palimpsest.nodes.unclip.decoder.ancestral import LearnedVariance, levels_of
from palimpsest.nodes.unclip.decoder.conditioning import unclip_conditioning
from palimpsest.nodes.unclip.decoder.nodes import UnCLIPSampler
from support.fixtures import tiny_models, twin_unclip, unclip
from support.fixtures.sampling import sample, schedule

from nodes import ConditioningCombine, ConditioningSetArea

pytestmark = [pytest.mark.model, pytest.mark.newest]

CFG = 4.0


@pytest.fixture(scope="module")
def model():
    return unclip.decoder(twin_unclip.decoder(output=0.3))


@pytest.fixture(scope="module")
def guidance(model, clip):
    return unclip_conditioning(clip, model, "a red cube", unclip.embedding())


def start(model, steps: int) -> tuple[torch.Tensor, torch.Tensor]:
    sigmas = schedule(model, steps, "normal")
    return unclip.noise() * (1 + sigmas[0] ** 2) ** 0.5, sigmas


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


def test_a_whole_schedule_is_spaced_as_published_and_others_as_they_are(model):
    sampling = model.get_model_object("model_sampling")
    karras = schedule(model, 7, "karras")
    assert levels_of(karras, sampling, "published").timesteps.tolist() == [999, 832, 666, 500, 333, 166, 0]
    near = sampling.timestep(karras[:-1])
    assert near[0] == 979
    assert levels_of(karras, sampling, "sigmas").timesteps.tolist() == torch.unique_consecutive(near).tolist()
    assert (
        levels_of(karras[3:], sampling, "published").timesteps.tolist() == torch.unique_consecutive(near[3:]).tolist()
    )


def test_the_learned_variance_of_several_positive_conditions_is_joined_as_their_predictions_are():
    """By mask and strength where they have one; those that were not evaluated at this step have no part."""
    x, sigma = torch.zeros(2, 3, 8, 8), torch.ones(2)
    left = torch.zeros(1, 8, 8)
    left[..., :4] = 1.0
    conds = [
        {"uuid": "a", "model_conds": {}, "mask": left},
        {"uuid": "b", "model_conds": {}, "mask": 1 - left, "strength": 0.5},
        {"uuid": "c", "model_conds": {}, "mask": 1 - left, "strength": 1.5},
        {"uuid": "d", "model_conds": {}, "timestep_end": 5.0},
    ]
    rows = {name: torch.randn(2, 3, 8, 8) for name in ("negative", "a", "b", "c")}
    variance = LearnedVariance()
    variance(torch.cat([rows["a"], rows["negative"]]), {"uuids": ["a", "n"]})
    variance(torch.cat([rows["b"], rows["c"]]), {"uuids": ["b", "c"]})
    joined = variance.of(conds, x, sigma)
    torch.testing.assert_close(joined[..., :4], rows["a"][..., :4])
    torch.testing.assert_close(joined[..., 4:], (0.25 * rows["b"] + 0.75 * rows["c"])[..., 4:])


@torch.inference_mode()
def test_areas_and_combined_conditions_are_sampled(model, clip, guidance):
    other = unclip_conditioning(clip, model, "a dog", unclip.embedding(seed=8))
    [left] = ConditioningSetArea().append(guidance.positive, 4 * 8, 8 * 8, 0, 0, 1.0)
    [whole] = ConditioningCombine().combine(guidance.positive, guidance.positive)
    [areas] = ConditioningCombine().combine(left, other.positive)
    x, sigmas = start(model, 3)

    def once(positive) -> torch.Tensor:
        sampler = unclip.ancestral(noise_sampler=unclip.drawn(tuple(x.shape), 2))
        return sample(model, x, positive, other.negative, 1.0, sigmas, sampler)[-1]

    assert relative(once(whole), once(guidance.positive)) < 1e-5
    assert bool(torch.isfinite(once(areas)).all()) and relative(once(areas), once(other.positive)) > 1e-3


@torch.inference_mode()
def test_part_of_a_schedule_is_followed_as_it_is(model, guidance):
    """The first half and then the second of a schedule are the whole, at training steps next to its sigmas."""
    x, sigmas = start(model, 6)
    noises = [unclip.noise(seed=20 + i) for i in range(5)]

    def go(x, sigmas, noises) -> torch.Tensor:
        left = iter(noises)
        sampler = unclip.ancestral(spacing="sigmas", noise_sampler=lambda *_: next(left))
        return sample(model, x, guidance.positive, guidance.negative, CFG, sigmas, sampler)[-1]

    together = go(x, sigmas, noises)
    middle = go(x, sigmas[:4], noises[:3])
    assert relative(go(middle, sigmas[3:], noises[3:]), together) < 1e-3


def test_other_models_are_refused(guidance):
    model = tiny_models.sd15()
    sigmas = schedule(model, 2)
    with pytest.raises(ValueError, match=r"^sampler: expected an unCLIP decoder, .* got BaseModel\. Connect "):
        positive = tiny_models.conditioning(model, 1)
        sample(model, torch.randn(1, 4, 16, 16), positive, positive, 1.0, sigmas, UnCLIPSampler.execute("sigmas")[0])


@pytest.mark.parametrize(
    ("sigmas", "got"),
    [
        ([math.nan, 0.0], "nan, 0"),
        ([math.inf, 1.0, 0.0], "inf, 1, 0"),
        ([5.0, math.nan, 0.0], "5, nan, 0"),
        ([0.0, 1.0, 5.0], "0, 1, 5"),
        ([5.0, 1.0, 2.0, 0.0], "5, 1, 2, 0"),
        ([5.0, 1.0, -1.0], "5, 1, -1"),
        (list(range(1, 9)), r"1, 2, 3, 4, 5, 6, \.\.\."),
    ],
)
@torch.inference_mode()
def test_R12_sigmas_that_do_not_go_down_to_the_picture_are_refused(model, guidance, sigmas, got):
    """Fault R12: the picture was NaN, without a word."""
    for spacing in ("published", "sigmas"):
        with pytest.raises(
            ValueError, match=rf"^sigmas: expected noise levels from high to low, all finite, got {got}\. "
        ):
            sampler = unclip.ancestral(spacing=spacing)
            sample(
                model, unclip.noise(), guidance.positive, guidance.negative, CFG, torch.tensor(sigmas).float(), sampler
            )


@torch.inference_mode()
def test_R12_every_scheduler_of_core_gives_a_picture_or_is_refused_for_one_step_too(model, guidance):
    for name in comfy.samplers.SCHEDULER_NAMES:
        for steps in (1, 2, 3):
            sigmas = schedule(model, steps, name)
            x = unclip.noise() * (1 + sigmas[0] ** 2) ** 0.5
            try:
                out = sample(model, x, guidance.positive, guidance.negative, CFG, sigmas, unclip.ancestral())[-1]
            except ValueError as error:
                assert (name, steps) == ("kl_optimal", 1) and str(error).startswith("sigmas: "), error
            else:
                assert bool(torch.isfinite(out).all()), (name, steps)
