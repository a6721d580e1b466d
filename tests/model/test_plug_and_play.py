import dataclasses

import comfy.model_management
import pytest
import torch
from palimpsest.nodes.attention.unet_sites import decoder_depths
from palimpsest.nodes.plug_and_play.nodes import PlugAndPlay
from support.cases import cases
from support.fixtures.sampling import random_trajectory, sample, schedule
from support.fixtures.tiny_models import conditioning, flow_dit, sd15, sd21_v, sdxl
from support.fixtures.unet_probe import UNetProbe, fingerprint, rows_equal, same

pytestmark = pytest.mark.model
UNET = sd15

CFG = 7.5


def plug_and_play(model, trajectory, feature_end=1.0, attention_end=1.0, blocks="auto", **optional):
    return PlugAndPlay.execute(model, trajectory, feature_end, attention_end, blocks, **optional)[0]


def prompts(model):
    return conditioning(model, 2), conditioning(model, 3)


def test_same_prompt_and_latent_give_the_source_row(model):
    prompt, _ = prompts(model)
    grid = random_trajectory(model, prompt, steps=6)
    path = sample(model, grid.start, prompt, prompt, 1.0, grid.sigmas)
    trajectory = dataclasses.replace(grid, latents=torch.stack(path))
    with UNetProbe(model) as probe:
        again = sample(plug_and_play(model, trajectory), grid.start, prompt, prompt, CFG, grid.sigmas)
    assert all(same(ours, source) for ours, source in zip(again, path, strict=True))
    for source, target in zip(probe.calls[::2], probe.calls[1::2], strict=True):
        for name in ("query", "key", "value", "feature", "block"):
            assert rows_equal(getattr(target, name), getattr(source, name))


def test_windows_of_zero_are_no_node_at_all(model):
    positive, negative = prompts(model)
    trajectory = random_trajectory(model, conditioning(model, 1), steps=4)
    neutral = plug_and_play(model, trajectory, feature_end=0.0, attention_end=0.0)
    assert neutral.wrappers == model.wrappers
    args = trajectory.start, positive, negative, CFG, trajectory.sigmas
    assert torch.equal(sample(neutral, *args)[-1], sample(model, *args)[-1])


def test_injects_eight_and_five_of_ten_steps(model):
    positive, negative = prompts(model)
    trajectory = random_trajectory(model, conditioning(model, 1), steps=10, size=(8, 8))
    patched = plug_and_play(model, trajectory, 0.8, 0.5)
    with UNetProbe(model) as probe:
        sample(patched, trajectory.start, positive, negative, CFG, trajectory.sigmas)
    sources = probe.source_calls(trajectory.latents, trajectory.sigmas)
    assert len(sources) == 8
    assert len(probe.calls) == 18
    pairs = [(probe.calls[i], probe.calls[i + 1]) for i in sources]
    assert [rows_equal(target.feature, source.feature) for source, target in pairs] == [True] * 8
    for source, target in pairs[:5]:
        assert rows_equal(target.query, source.query) and rows_equal(target.key, source.key)
    for source, target in pairs[5:]:
        assert source.block is source.query is None  # the source's call ends where its last value was read
        assert not rows_equal(target.query, target.query[:1]) and not rows_equal(target.key, target.key[:1])
    # Only the features are the source's: the skip connection and v stay the row's own.
    assert not any(rows_equal(target.block, source.block) for source, target in pairs[1:5])
    assert not any(rows_equal(target.value, source.value) for source, target in pairs[1:5])
    assert not any(rows_equal(target.block, target.block[:1]) for _, target in pairs)


def test_batched_and_split_calls_agree(model):
    positive, negative = prompts(model)
    trajectory = random_trajectory(model, conditioning(model, 1), steps=5)
    patched = plug_and_play(model, trajectory)
    # Core joins no prompts whose lengths differ five times; attention to repeated tokens is the same.
    long = [[positive[0][0].repeat(1, 5, 1), positive[0][1]]]
    with UNetProbe(model) as probe:
        split = sample(patched, trajectory.start, long, negative, CFG, trajectory.sigmas)
    assert [len(call.x) for call in probe.calls] == [1, 1, 1] * 5
    assert same(split[-1], sample(patched, trajectory.start, positive, negative, CFG, trajectory.sigmas)[-1])
    # Roles do not matter either: swapped prompts with guidance 1 - cfg are the same sum.
    swapped = sample(patched, trajectory.start, negative, positive, 1.0 - CFG, trajectory.sigmas)
    assert same(swapped[-1], split[-1])


def test_guidance_of_one_runs_the_positive_row_only(model):
    positive, negative = prompts(model)
    trajectory = random_trajectory(model, conditioning(model, 1), steps=3)
    with UNetProbe(model) as probe:
        sample(plug_and_play(model, trajectory), trajectory.start, positive, negative, 1.0, trajectory.sigmas)
    assert [len(call.x) for call in probe.calls] == [1, 1] * 3
    assert all(rows_equal(probe.calls[i + 1].query, probe.calls[i].query) for i in (0, 2, 4))


def test_one_source_for_a_batch_equals_single_runs(model):
    positive, negative = prompts(model)
    trajectory = random_trajectory(model, conditioning(model, 1), steps=4)
    patched = plug_and_play(model, trajectory)
    starts = torch.cat([trajectory.start, random_trajectory(model, positive, steps=4, seed=9).start])
    both = sample(patched, starts, positive, negative, CFG, trajectory.sigmas)[-1]
    for row, start in zip(both, starts, strict=True):
        assert same(row[None], sample(patched, start[None], positive, negative, CFG, trajectory.sigmas)[-1])


def test_every_row_of_a_source_batch_follows_its_own(model):
    positive, negative = prompts(model)
    trajectory = random_trajectory(model, conditioning(model, 1), steps=4, batch=2)
    both = sample(plug_and_play(model, trajectory), trajectory.start, positive, negative, CFG, trajectory.sigmas)[-1]
    for i in range(2):
        one = dataclasses.replace(trajectory, latents=trajectory.latents[:, i : i + 1])
        alone = sample(plug_and_play(model, one), one.start, positive, negative, CFG, one.sigmas)[-1]
        assert same(both[i : i + 1], alone)


def test_areas_take_the_source_of_the_same_area(model):
    positive, negative = prompts(model)
    corner = [[conditioning(model, 4)[0][0], {"area": (8, 8, 4, 2), "strength": 1.0}]]
    trajectory = random_trajectory(model, conditioning(model, 1), steps=2)
    with UNetProbe(model) as probe:
        sample(plug_and_play(model, trajectory), trajectory.start, positive + corner, negative, CFG, trajectory.sigmas)
    crop = trajectory.latents[..., 4:12, 2:10]
    for latents, rows in ((trajectory.latents, 2), (crop, 2)):
        sources = [probe.calls[i] for i in probe.source_calls(latents, trajectory.sigmas)]
        targets = [c for c in probe.calls if len(c.x) == rows and c.x.shape[2:] == latents.shape[3:]]
        assert len(sources) == len(targets) == 2
        for source, target in zip(sources, targets, strict=True):
            assert rows_equal(target.query, source.query)
            assert rows_equal(target.feature, source.feature)


def test_two_areas_of_one_size_share_a_call_but_not_a_source(model):
    positive, negative = prompts(model)
    left, right = ([[conditioning(model, s)[0][0], {"area": (16, 8, 0, x)}]] for s, x in ((4, 0), (5, 8)))
    trajectory = random_trajectory(model, conditioning(model, 1), steps=1)
    with UNetProbe(model) as probe:
        sample(plug_and_play(model, trajectory), trajectory.start, left + right, negative, 1.0, trajectory.sigmas)
    halves = {
        x: next(probe.calls[i] for i in probe.source_calls(trajectory.latents[..., x : x + 8], trajectory.sigmas))
        for x in (0, 8)
    }
    target = next(call for call in probe.calls if len(call.x) == 2)
    assert any(
        same(target.query, torch.cat([halves[a].query, halves[b].query])) for a, b in ((0, 8), (8, 0))
    ) and not same(halves[0].query, halves[8].query)


def test_masks_and_several_positives_are_injected_too(model):
    positive, negative = prompts(model)
    mask = torch.zeros(1, 16, 16)
    mask[:, :8] = 1.0
    masked = [[conditioning(model, 4)[0][0], {"mask": mask, "set_area_to_bounds": False, "mask_strength": 1.0}]]
    trajectory = random_trajectory(model, conditioning(model, 1), steps=2)
    with UNetProbe(model) as probe:
        sample(plug_and_play(model, trajectory), trajectory.start, positive + masked, negative, CFG, trajectory.sigmas)
    assert [len(call.x) for call in probe.calls] == [1, 3] * 2
    assert all(rows_equal(probe.calls[i + 1].query, probe.calls[i].query) for i in (0, 2))


def test_source_prompt_is_the_inversion_s_unless_connected(model):
    positive, negative = prompts(model)
    empty, described = conditioning(model, 1), conditioning(model, 5)
    trajectory = random_trajectory(model, described, steps=2)
    args = trajectory.start, positive, negative, CFG, trajectory.sigmas
    default = sample(plug_and_play(model, trajectory), *args)[-1]
    assert torch.equal(default, sample(plug_and_play(model, trajectory, source=described), *args)[-1])
    assert not same(sample(plug_and_play(model, trajectory, source=empty), *args)[-1], default)


def test_part_of_the_schedule_uses_the_steps_it_meets(model):
    positive, negative = prompts(model)
    trajectory = random_trajectory(model, conditioning(model, 1), steps=6)
    patched = plug_and_play(model, trajectory, 0.5, 0.5)
    whole = sample(patched, trajectory.start, positive, negative, CFG, trajectory.sigmas)
    with UNetProbe(model) as probe:
        rest = sample(patched, whole[2], positive, negative, CFG, trajectory.sigmas[2:])
    assert same(rest[-1], whole[-1])
    assert len(probe.source_calls(trajectory.latents, trajectory.sigmas)) == 1


def test_heun_evaluates_each_source_step_once(model):
    positive, negative = prompts(model)
    trajectory = random_trajectory(model, conditioning(model, 1), steps=4)
    with UNetProbe(model) as probe:
        sample(plug_and_play(model, trajectory), trajectory.start, positive, negative, CFG, trajectory.sigmas, "heun")
    assert len(probe.source_calls(trajectory.latents, trajectory.sigmas)) == 4
    assert len(probe.calls) == 4 + 4 + 3


@pytest.mark.parametrize("end", ["result", "error", "interrupt"])
def test_model_is_untouched_afterwards(model, end):
    positive, negative = prompts(model)
    trajectory = random_trajectory(model, conditioning(model, 1), steps=4)
    args = trajectory.start, positive, negative, CFG, trajectory.sigmas
    plain = sample(model, *args)
    before = fingerprint(model)
    patched = plug_and_play(model, trajectory)
    own = fingerprint(patched)

    def on_step(step):
        if step == 1 and end == "error":
            raise RuntimeError("half-way")
        if step == 1 and end == "interrupt":
            comfy.model_management.interrupt_current_processing()

    if end == "result":
        first = sample(patched, *args, on_step=on_step)
    else:
        expected = RuntimeError if end == "error" else comfy.model_management.InterruptProcessingException
        with pytest.raises(expected):
            sample(patched, *args, on_step=on_step)
        first = sample(patched, *args)
    assert fingerprint(patched) == own
    assert torch.equal(sample(patched, *args)[-1], first[-1])
    assert fingerprint(model) == before
    assert all(torch.equal(a, b) for a, b in zip(sample(model, *args), plain, strict=True))


@pytest.mark.parametrize("build", cases([sd21_v, sdxl], sdxl))
def test_other_topologies_inject_at_their_own_sites(build):
    model = build()
    positive, negative = prompts(model)
    trajectory = random_trajectory(model, conditioning(model, 1), steps=3)
    places = {"attention": 1, "feature": 1} if build is sdxl else {}
    with UNetProbe(model, **places) as probe:
        path = sample(plug_and_play(model, trajectory), trajectory.start, positive, negative, CFG, trajectory.sigmas)
    assert len(probe.calls) == 6
    for source, target in zip(probe.calls[::2], probe.calls[1::2], strict=True):
        assert rows_equal(target.query, source.query) and rows_equal(target.feature, source.feature)
    assert bool(torch.isfinite(path[-1]).all())


@pytest.mark.parametrize("dtype", cases([torch.bfloat16, torch.float16], torch.float16))
def test_half_precision_weights(dtype):
    model = sd15(dtype=dtype)
    positive, negative = prompts(model)
    trajectory = random_trajectory(model, conditioning(model, 1), steps=2)
    with UNetProbe(model) as probe:
        path = sample(plug_and_play(model, trajectory), trajectory.start, positive, negative, CFG, trajectory.sigmas)
    assert probe.calls[1].query.dtype == probe.calls[0].query.dtype == dtype
    assert torch.equal(probe.calls[1].query, torch.cat([probe.calls[0].query] * 2))
    assert bool(torch.isfinite(path[-1]).all())


@pytest.mark.parametrize(
    ("options", "sampler", "says"),
    [
        ({}, "dpm_2", "sampler: expected .* got dpm_2, which also needs sigma"),
        ({"sigmas": "karras"}, "euler", "sigmas: expected noise levels of the trajectory"),
        ({"size": (24, 16)}, "euler", r"latent_image: expected the trajectory's 4 x 16 x 16 .* got 4 x 24 x 16"),
        ({"batch": 3}, "euler", "latent_image: expected .* batch of 2, got .* batch of 3"),
    ],
)
def test_refuses_a_run_that_does_not_fit(model, options, sampler, says):
    positive, negative = prompts(model)
    trajectory = random_trajectory(model, conditioning(model, 1), steps=4, batch=2)
    start = torch.zeros(options.get("batch", 2), 4, *options.get("size", (16, 16)))
    sigmas = schedule(model, 4, options.get("sigmas", "ddim_uniform"))
    with pytest.raises(ValueError, match=f"^{says}"):
        sample(plug_and_play(model, trajectory), start, positive, negative, CFG, sigmas, sampler)


def test_dpm_2_may_finish_after_the_windows(model):
    positive, negative = prompts(model)
    trajectory = random_trajectory(model, conditioning(model, 1), steps=6)
    patched = plug_and_play(model, trajectory, 0.5, 0.5)
    args = trajectory.latents[3], positive, negative, CFG, trajectory.sigmas[3:], "dpm_2"
    assert torch.equal(sample(patched, *args)[-1], sample(model, *args)[-1])


def test_refuses_models_it_cannot_edit(model):
    trajectory = random_trajectory(model, conditioning(model, 1), steps=2)
    with pytest.raises(ValueError, match=r"^model: expected the kind of model the trajectory was made with.* got SD3"):
        plug_and_play(flow_dit(), trajectory)
    with pytest.raises(ValueError, match=r"^model: expected the kind of model the trajectory was made with"):
        plug_and_play(sdxl(), trajectory)


def test_refuses_sources_that_are_no_single_prompt(model):
    positive, negative = prompts(model)
    trajectory = random_trajectory(model, conditioning(model, 1), steps=2)
    area = [[positive[0][0], {"area": (8, 8, 0, 0), "strength": 1.0}]]
    late = [[positive[0][0], {"start_percent": 0.9, "end_percent": 1.0}]]
    for source, says in ((positive + negative, "got 2 active"), (area, "got one with an area"), (late, "got 0 active")):
        patched = plug_and_play(model, trajectory, source=source)
        with pytest.raises(ValueError, match=rf"^source: expected .* {says}"):
            sample(patched, trajectory.start, positive, negative, CFG, trajectory.sigmas)


def test_depths_are_the_loaded_unet_s(model):
    assert decoder_depths(model) == (0, 0, 0) + (1,) * 9
    assert decoder_depths(sdxl()) == (3, 3, 3, 2, 2, 2, 0, 0, 0)
