"""Plug-and-Play beside core's own model patches: each keeps its effect, in either order."""

import dataclasses
from itertools import product

import pytest
import torch
from palimpsest.nodes.attention.unet_sites import decoder_depths, parse_sites
from palimpsest.nodes.plug_and_play.features import capture
from palimpsest.nodes.plug_and_play.nodes import PlugAndPlay
from palimpsest.nodes.plug_and_play.windows import Windows
from support.cases import cases
from support.fixtures.other_packs import (
    OTHERS,
    hyper_tile,
    perturbed_attention,
    random_tiles,
    reference_tokens,
    self_attention_guidance,
    token_merging,
    with_control,
)
from support.fixtures.sampling import random_trajectory, sample
from support.fixtures.tiny_models import SD1_UNET, conditioning, sd15
from support.fixtures.tiny_models import control_net as tiny_control_net
from support.fixtures.unet_probe import UNetProbe, rows_equal, same

pytestmark = [pytest.mark.model, pytest.mark.compat]
UNET = sd15

CFG = 7.5
STEPS = 2


@pytest.fixture(scope="module")
def trajectory(model):
    return random_trajectory(model, conditioning(model, 1), STEPS)


def plug_and_play(model, trajectory, blocks="auto", **optional):
    return PlugAndPlay.execute(model, trajectory, 1.0, 1.0, blocks, **optional)[0]


def capture_all(model, trajectory, **optional):
    sites = parse_sites("auto", decoder_depths(model))
    return capture(model, trajectory, Windows(sites, STEPS, STEPS), torch.float32, **optional)


def run(model, trajectory, positive=None, negative=None):
    """Away from the source's own start, so that the source's calls are known by their input."""
    positive, negative = positive or conditioning(model, 2), negative or conditioning(model, 3)
    return sample(model, trajectory.start.flip(-1), positive, negative, CFG, trajectory.sigmas)[-1]


@pytest.mark.parametrize("other", OTHERS)
def test_keeps_its_effect_and_ours_in_either_order(model, trajectory, other):
    with UNetProbe(model, attention=7) as probe:
        after = run(plug_and_play(other(model), trajectory), trajectory)
    calls = iter(probe.calls[: 4 if other is perturbed_attention else 2])
    for source, target in zip(calls, calls, strict=True):
        assert rows_equal(target.query, source.query)
        assert rows_equal(target.key, source.key)
        assert rows_equal(target.feature, source.feature)
    assert torch.equal(after, run(other(plug_and_play(model, trajectory)), trajectory))
    assert not same(after, run(plug_and_play(model, trajectory), trajectory), 1e-3)
    assert not same(after, run(other(model), trajectory), 1e-3)


@pytest.mark.parametrize(
    ("other", "sampler"),
    cases(product((random_tiles, token_merging), ("euler", "heun")), (random_tiles, "euler"), (token_merging, "euler")),
)
def test_patches_that_choose_tokens_anew_at_each_call(model, other, sampler):
    """Faults R4 and R5: the source's tokens, tiled or merged in one way, landed among tokens chosen in another.

    With the source's prompt, latent and guidance 1 the source comes back as exactly as that patch alone lets it.
    """
    prompt = conditioning(model, 2)
    grid = random_trajectory(model, prompt, 4)
    path = sample(model, grid.start, prompt, prompt, 1.0, grid.sigmas)
    trajectory = dataclasses.replace(grid, latents=torch.stack(path))

    def missed(patched):
        torch.manual_seed(3)
        result = sample(patched, grid.start, prompt, prompt, 1.0, grid.sigmas, sampler)[-1]
        return float((result - path[-1]).norm() / path[-1].norm())

    own = missed(other(model)) if sampler == "euler" else 1.0
    for both in (plug_and_play(other(model), trajectory), other(plug_and_play(model, trajectory))):
        assert missed(both) <= 1.5 * own


@pytest.mark.parametrize("seed", cases(range(6), 0))
def test_random_tiles_beside_other_source_rows(model, trajectory, seed):
    """Fault R4: with other tiles than the source's the run failed."""
    torch.manual_seed(seed)
    live = run(plug_and_play(random_tiles(model), trajectory), trajectory)
    features = capture_all(random_tiles(model), trajectory)
    kept = run(plug_and_play(random_tiles(model), trajectory, features=features), trajectory)
    assert bool(torch.isfinite(live).all()) and bool(torch.isfinite(kept).all())


@pytest.mark.parametrize("other", cases([perturbed_attention, hyper_tile, reference_tokens], hyper_tile))
def test_captured_values_equal_the_live_source_s(model, trajectory, other):
    patched = other(model)
    features = capture_all(patched, trajectory)
    live = run(plug_and_play(patched, trajectory), trajectory)
    assert torch.equal(run(plug_and_play(patched, trajectory, features=features), trajectory), live)


@pytest.mark.parametrize("captured", [False, True])
@pytest.mark.parametrize("guidance", [perturbed_attention, self_attention_guidance])
def test_guidance_by_a_disturbed_evaluation_gives_the_source_back(model, guidance, captured):
    """The source is read in the same disturbed network, and about the same blurred latent."""
    prompt = conditioning(model, 2)
    patched = guidance(model)
    grid = random_trajectory(model, prompt, STEPS)
    path = sample(patched, grid.start, prompt, prompt, CFG, grid.sigmas)
    trajectory = dataclasses.replace(grid, latents=torch.stack(path))
    features = {"features": capture_all(patched, trajectory)} if captured else {}
    with UNetProbe(model) as probe:
        edited = sample(plug_and_play(patched, trajectory, **features), grid.start, prompt, prompt, CFG, grid.sigmas)
    assert same(edited[-1], path[-1])
    assert len(probe.calls) == (3 if captured else 4) * STEPS


def test_second_node_wins_where_both_inject(model, trajectory):
    other = random_trajectory(model, conditioning(model, 4), STEPS, seed=8)
    both = run(plug_and_play(plug_and_play(model, trajectory), other), trajectory)
    assert torch.equal(both, run(plug_and_play(model, other), trajectory))


@pytest.mark.parametrize("blocks", [("features 4", "attention 4-11"), ("attention 4-11", "features 4")])
def test_two_nodes_share_the_work_of_one(model, trajectory, blocks):
    first, second = blocks
    both = run(plug_and_play(plug_and_play(model, trajectory, first), trajectory, second), trajectory)
    assert torch.equal(both, run(plug_and_play(model, trajectory), trajectory))


def test_capture_from_a_patched_model_is_the_plain_source(model, trajectory):
    other = random_trajectory(model, conditioning(model, 4), STEPS, seed=8)
    plain, patched = (capture_all(m, trajectory) for m in (model, plug_and_play(model, other)))
    for ours, theirs in zip(patched.records, plain.records, strict=True):
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


@pytest.fixture(scope="module")
def control_net():
    return tiny_control_net(config=SD1_UNET)


@pytest.mark.parametrize("both", cases([True, False], False))
def test_control_net_on_the_target(model, trajectory, control_net, both):
    positive, negative = conditioning(model, 2), conditioning(model, 3)
    controlled, controlled_negative = with_control(control_net, positive, negative)
    patched = plug_and_play(model, trajectory)
    with UNetProbe(model) as probe:
        result = run(patched, trajectory, controlled, controlled_negative if both else negative)
    assert [len(call.x) for call in probe.calls] == ([1, 2] if both else [1, 1, 1]) * STEPS
    for i in probe.source_calls(trajectory.latents, trajectory.sigmas):
        assert rows_equal(probe.calls[i + 1].query, probe.calls[i].query)
        assert rows_equal(probe.calls[i + 1].feature, probe.calls[i].feature)
    assert not same(result, run(patched, trajectory, positive, negative), 1e-3)


def test_control_net_on_the_source(model, trajectory, control_net):
    source, _ = with_control(control_net, conditioning(model, 1), [])
    patched = plug_and_play(model, trajectory, source=source)
    assert [m.model for m in patched.get_nested_additional_models()] == [control_net.control_model]
    result = run(patched, trajectory)
    assert source[0][1]["control"].model_sampling_current is None
    assert torch.equal(run(patched, trajectory), result)
    assert not same(result, run(plug_and_play(model, trajectory), trajectory), 1e-3)
    features = capture_all(model, trajectory, source=source)
    assert torch.equal(run(plug_and_play(model, trajectory, features=features), trajectory), result)
