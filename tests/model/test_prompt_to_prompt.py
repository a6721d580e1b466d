import dataclasses

import comfy.model_management
import pytest
import torch
from palimpsest.nodes.attention.unet_layers import attention_layers
from palimpsest.nodes.prompt_to_prompt.nodes import EncodePromptEdit
from palimpsest.nodes.prompt_to_prompt.word_layers import blend_layers
from support.cases import cases
from support.fixtures.sampling import random_trajectory, sample, schedule
from support.fixtures.tiny_models import conditioning, flow_dit, sd15, sd21_v, sdxl
from support.fixtures.unet_probe import UNetProbe, fingerprint, rows_equal, same
from support.fixtures.word_edits import CFG, SIZE, STEPS, edit_of, prompt_to_prompt, run
from torch.utils._python_dispatch import TorchDispatchMode

from nodes import CLIPTextEncode

pytestmark = pytest.mark.model
UNET = sd15


@pytest.fixture(scope="module")
def trajectory(model):
    return random_trajectory(model, conditioning(model, 1), STEPS, size=SIZE)


def predictions(model, trajectory, **options):
    """cond and uncond predictions of the first step."""
    kept = []
    watched = model.clone()
    watched.set_model_sampler_post_cfg_function(lambda args: kept.append(args) or args["denoised"])
    run(watched, trajectory, **options)
    return kept[0]["cond_denoised"], kept[0]["uncond_denoised"]


def test_identical_prompts_and_latents_give_the_source_row(model, clip):
    prompt = conditioning(model, 2)
    grid = random_trajectory(model, prompt, STEPS)
    path = sample(model, grid.start, prompt, prompt, 1.0, grid.sigmas)
    trajectory = dataclasses.replace(grid, latents=torch.stack(path))
    edit = edit_of(clip, "a red cat", "a red cat")
    with UNetProbe(model) as probe:
        patched = prompt_to_prompt(model, trajectory, edit)
        again = sample(patched, grid.start, prompt, prompt, CFG, grid.sigmas)
    assert all(same(ours, source) for ours, source in zip(again, path, strict=True))
    for source, target in zip(probe.calls[::2], probe.calls[1::2], strict=True):
        assert rows_equal(target.query, source.query) and rows_equal(target.block, source.block)


def test_nothing_to_do_is_no_node_at_all(model, clip, trajectory):
    for edit, start in ((edit_of(clip), 0.0), (edit_of(clip, blend="cat"), 1.0)):
        neutral = prompt_to_prompt(model, trajectory, edit, 0.0, 0.0, start)
        assert neutral.wrappers == model.wrappers
        assert torch.equal(run(neutral, trajectory)[-1], run(model, trajectory)[-1])


def test_only_rows_of_the_positive_are_edited(model, clip, trajectory):
    plain, patched = (predictions(m, trajectory) for m in (model, prompt_to_prompt(model, trajectory, edit_of(clip))))
    assert torch.equal(patched[1], plain[1])
    assert not same(patched[0], plain[0], 1e-2)
    with UNetProbe(model) as probe:
        run(prompt_to_prompt(model, trajectory, edit_of(clip)), trajectory)
    source, target = probe.calls[:2]
    assert [rows_equal(row[None], source.query) for row in target.query] == [False, True]  # core runs uncond first


@pytest.mark.parametrize("repeats", [2, 5])
def test_batched_split_and_repeated_prompts_agree(model, clip, trajectory, repeats):
    """Core repeats a prompt to the length of one twice as long, and does not join one five times as long at all."""
    patched = prompt_to_prompt(model, trajectory, edit_of(clip))
    negative = conditioning(model, 3)
    with UNetProbe(model) as probe:
        long = run(patched, trajectory, negative=[[negative[0][0].repeat(1, repeats, 1), {}]])
    assert [len(call.x) for call in probe.calls] == ([1, 2] if repeats == 2 else [1, 1, 1]) * STEPS
    assert same(long[-1], run(patched, trajectory)[-1])


def test_guidance_of_one_edits_the_positive_row(model, clip, trajectory):
    patched = prompt_to_prompt(model, trajectory, edit_of(clip))
    assert not same(run(patched, trajectory, cfg=1.0)[-1], run(model, trajectory, cfg=1.0)[-1], 1e-2)


def test_rows_of_a_batch_are_edited_alike_and_follow_their_own_source(model, clip):
    edit = edit_of(clip, blend="cat, dog")
    trajectory = random_trajectory(model, conditioning(model, 1), STEPS, batch=2, size=SIZE)
    both = run(prompt_to_prompt(model, trajectory, edit), trajectory)[-1]
    for i in range(2):
        one = dataclasses.replace(trajectory, latents=trajectory.latents[:, i : i + 1])
        assert same(both[i : i + 1], run(prompt_to_prompt(model, one, edit), one)[-1])
    one = dataclasses.replace(trajectory, latents=trajectory.latents[:, :1])
    shared = prompt_to_prompt(model, one, edit)
    positive, negative = conditioning(model, 2), conditioning(model, 3)
    rows = sample(shared, trajectory.start, positive, negative, CFG, trajectory.sigmas)[-1]
    for row, start in zip(rows, trajectory.start, strict=True):
        assert same(row[None], sample(shared, start[None], positive, negative, CFG, trajectory.sigmas)[-1])


def test_an_area_takes_the_source_of_the_same_area(model, clip, trajectory):
    patched = prompt_to_prompt(model, trajectory, edit_of(clip))
    embedding = conditioning(model, 2)[0][0]
    whole = run(patched, trajectory, positive=[[embedding, {"area": (*SIZE, 0, 0), "strength": 1.0}]])
    assert same(whole[-1], run(patched, trajectory)[-1])
    corner = [[embedding, {"area": (4, 4, 4, 0), "strength": 1.0}]]
    with UNetProbe(model) as probe:
        run(patched, trajectory, positive=conditioning(model, 2) + corner)
    crop = trajectory.latents[..., 4:8, 0:4]
    sources = probe.source_calls(crop, trajectory.sigmas)
    assert len(sources) == STEPS
    assert all(
        rows_equal(target.query, probe.calls[i].query)
        for i in sources
        for target in probe.calls[i : i + 4]
        if len(target.x) == 1 and target.x.shape[2:] == (4, 4)
    )


def test_masks_and_several_positives_are_edited_too(model, clip, trajectory):
    mask = torch.ones(1, *SIZE)
    masked = [[conditioning(model, 2)[0][0], {"mask": mask, "set_area_to_bounds": False, "mask_strength": 1.0}]]
    patched = prompt_to_prompt(model, trajectory, edit_of(clip, blend="cat, dog"))
    twice = run(patched, trajectory, positive=conditioning(model, 2) + masked)
    assert same(twice[-1], run(patched, trajectory)[-1])


def test_a_positive_that_rests_at_some_levels(model, clip, trajectory):
    patched = prompt_to_prompt(model, trajectory, edit_of(clip, blend="cat, dog"))
    embedding, middle = conditioning(model, 2)[0][0], float(trajectory.sigmas[2]) + 1e-3
    early = [embedding, {"timestep_start": 1e3, "timestep_end": middle}]
    late = [embedding, {"timestep_start": middle, "timestep_end": 0.0}]
    assert same(run(patched, trajectory, positive=[early, late])[-1], run(patched, trajectory)[-1])
    assert bool(torch.isfinite(run(patched, trajectory, positive=[late])[-1]).all())


def test_windows_count_steps_and_the_source_is_evaluated_once_in_each(model, clip, trajectory):
    for options, sources in (((0.5, 0.25), 2), ((0.0, 0.75), 3), ((1.0, 0.0), 4), ((0.1, 0.1), 1)):
        with UNetProbe(model) as probe:
            run(prompt_to_prompt(model, trajectory, edit_of(clip), *options), trajectory)
        assert len(probe.source_calls(trajectory.latents, trajectory.sigmas)) == sources
        assert len(probe.calls) == STEPS + sources
    with UNetProbe(model) as probe:
        run(prompt_to_prompt(model, trajectory, edit_of(clip, blend="cat"), 0.5, 0.25), trajectory, sampler="heun")
    assert len(probe.source_calls(trajectory.latents, trajectory.sigmas)) == STEPS
    assert len(probe.calls) == STEPS + 2 * STEPS - 1


def test_part_of_the_schedule_uses_the_steps_it_meets(model, clip, trajectory):
    patched = prompt_to_prompt(model, trajectory, edit_of(clip), 0.5, 0.5)
    positive, negative = conditioning(model, 2), conditioning(model, 3)
    whole = run(patched, trajectory)
    rest = sample(patched, whole[1], positive, negative, CFG, trajectory.sigmas[1:])
    assert same(rest[-1], whole[-1])
    late = sample(patched, whole[2], positive, negative, CFG, trajectory.sigmas[2:])
    assert torch.equal(late[-1], sample(model, whole[2], positive, negative, CFG, trajectory.sigmas[2:])[-1])


def test_the_source_is_read_with_source_text_whatever_the_picture_was_inverted_with(model, clip, trajectory):
    target, edit = EncodePromptEdit.execute(clip, "a red cat", "a blue dog", "auto", "", "cat, dog").args
    [[text, _]] = CLIPTextEncode().encode(clip, "a red cat")[0]
    mask = torch.zeros(1, *SIZE).index_fill(2, torch.arange(4), 1.0)
    own = {"mask": mask, "set_area_to_bounds": False, "mask_strength": 1.0}
    for options in ({}, own):
        named = prompt_to_prompt(model, trajectory, edit, source=[[text, options]])
        wanted = run(named, trajectory, positive=target)[-1]
        for inverted_with in (text, conditioning(model, 1)[0][0], conditioning(model, 1, tokens=154)[0][0], None):
            other = dataclasses.replace(trajectory, positive=[[inverted_with, options]])
            assert torch.equal(run(prompt_to_prompt(model, other, edit), other, positive=target)[-1], wanted)


def test_prompts_for_parts_of_a_picture_give_way_and_those_of_a_batch_stay(model, clip, trajectory):
    target, edit = EncodePromptEdit.execute(clip, "a red cat", "a blue dog", "auto", "", "").args
    parts = conditioning(model, 1, tokens=154) + conditioning(model, 4)
    rows = [[torch.cat([conditioning(model, seed)[0][0] for seed in (1, 4)]), {}]]
    for own, source, pictures in ((parts, edit.encoded_source, 1), (rows, rows, 2)):
        path = dataclasses.replace(trajectory, latents=trajectory.latents.repeat(1, pictures, 1, 1, 1), positive=own)
        named = run(prompt_to_prompt(model, path, edit, source=source), path, positive=target)[-1]
        assert torch.equal(run(prompt_to_prompt(model, path, edit), path, positive=target)[-1], named)
    long = dataclasses.replace(trajectory, positive=[[rows[0][0].repeat(1, 2, 1), {}]])
    with pytest.raises(ValueError, match=r"^trajectory: expected one inverted with `source_text`"):
        prompt_to_prompt(model, long, edit)


def test_a_step_that_is_all_of_the_schedule(model, clip):
    """Fault R2: with one step every window rounded to nothing, and the node did nothing."""
    one = random_trajectory(model, conditioning(model, 1), 1, size=SIZE, scheduler="sgm_uniform")
    edit = edit_of(clip, reweight="dog: 3")
    for cross, self_end in ((0.8, 0.0), (0.0, 0.4)):
        patched = prompt_to_prompt(model, one, edit, cross, self_end)
        assert not same(run(patched, one)[-1], run(model, one)[-1], 1e-3)


def test_longer_prompts_than_one_chunk(model, clip):
    source, target = "a red cat " + "and a dog " * 30, "a fluffy red cat " + "and a dog " * 50
    edit = edit_of(clip, source, target, reweight="fluffy: 2", blend="cat")
    assert edit.alignment.mapper.shape == (154, 231)
    trajectory = random_trajectory(model, conditioning(model, 1, tokens=154), STEPS, size=SIZE)
    patched = prompt_to_prompt(model, trajectory, edit)
    positive = conditioning(model, 2, tokens=231)
    assert not same(run(patched, trajectory, positive)[-1], run(model, trajectory, positive)[-1], 1e-2)


def test_no_constant_is_made_while_sampling(model, clip, trajectory):
    """Fault E19: lists of columns became tensors, and travelled to the device, in every layer of every step."""

    class Counting(TorchDispatchMode):
        made = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.made += func is torch.ops.aten.lift_fresh.default
            return func(*args, **(kwargs or {}))

    def made(steps):
        path = random_trajectory(model, conditioning(model, 1), steps, size=SIZE)
        edit = edit_of(clip, "a red cat", "a fluffy red dog", reweight="fluffy: 2", blend="cat, dog")
        with Counting() as edited:
            run(prompt_to_prompt(model, path, edit, blend_start=0.0), path)
        with Counting() as plain:
            run(model, path)
        return edited.made - plain.made

    assert made(2) == made(5)


def test_the_source_is_read_up_to_the_last_layer_only(model, clip, trajectory):
    """Fault E19: of a step that only blends, and of one that has no window at the decoder's end."""
    ran = []
    handles = [
        block[0].register_forward_hook(lambda *_, number=number: ran.append(number))
        for number, block in enumerate(model.model.diffusion_model.output_blocks)
    ]
    large = random_trajectory(model, conditioning(model, 1), 1, size=(32, 32))
    run(prompt_to_prompt(model, large, edit_of(clip, blend="cat, dog"), 0.0, 0.0, 0.0), large)
    for handle in handles:
        handle.remove()
    assert ran == [*range(9), *range(12)]  # the source, then the target


def test_reweighting_scales_the_words_and_ends_with_the_window(model, clip, trajectory):
    results = {}
    for reweight in ("", "cat: 1", "cat: 3", "cat: -2"):
        edit = edit_of(clip, "a red cat", "a red cat", reweight=reweight)
        results[reweight] = run(prompt_to_prompt(model, trajectory, edit), trajectory)[-1]
    assert torch.equal(results[""], results["cat: 1"])
    assert not same(results[""], results["cat: 3"], 1e-3) and not same(results["cat: 3"], results["cat: -2"], 1e-3)
    late = prompt_to_prompt(model, trajectory, edit_of(clip, "a cat", "a cat", reweight="cat: 3"), 0.0, 0.0)
    assert late.wrappers == model.wrappers


@pytest.mark.parametrize("end", ["result", "error", "interrupt"])
def test_model_is_untouched_afterwards(model, clip, trajectory, end):
    plain = run(model, trajectory)
    before = fingerprint(model)
    patched = prompt_to_prompt(model, trajectory, edit_of(clip, blend="cat"))
    own = fingerprint(patched)

    def on_step(step):
        if step == 1 and end == "error":
            raise RuntimeError("half-way")
        if step == 1 and end == "interrupt":
            comfy.model_management.interrupt_current_processing()

    if end == "result":
        first = run(patched, trajectory, on_step=on_step)
    else:
        expected = RuntimeError if end == "error" else comfy.model_management.InterruptProcessingException
        with pytest.raises(expected):
            run(patched, trajectory, on_step=on_step)
        first = run(patched, trajectory)
    assert fingerprint(patched) == own
    assert torch.equal(run(patched, trajectory)[-1], first[-1])
    assert fingerprint(model) == before
    assert torch.equal(run(model, trajectory)[-1], plain[-1])


@pytest.mark.parametrize("build", cases([sd21_v, sdxl], sdxl))
def test_other_topologies(build, clip):
    model = build()
    trajectory = random_trajectory(model, conditioning(model, 1), 2, size=(16, 16))
    patched = prompt_to_prompt(model, trajectory, edit_of(clip, blend="cat, dog"), blend_start=0.5)
    with UNetProbe(model, attention=1 if build is sdxl else 5, feature=1) as probe:
        result = run(patched, trajectory)[-1]
    assert [rows_equal(row[None], probe.calls[0].query) for row in probe.calls[1].query] == [False, True]
    assert bool(torch.isfinite(result).all()) and not same(result, run(model, trajectory)[-1], 1e-2)


def test_layers_and_their_resolutions(model):
    layers = attention_layers(model)
    sides = {side: [(n, f) for (s, n, _), f in layers.items() if s == side] for side in ("input", "middle", "output")}
    assert sides["input"] == [(1, 1), (2, 1), (4, 2), (5, 2), (7, 4), (8, 4)]
    assert sides["middle"] == [(0, 8)]
    assert sides["output"] == [(3, 4), (4, 4), (5, 4), (6, 2), (7, 2), (8, 2), (9, 1), (10, 1), (11, 1)]
    published = {("input", 7, 0), ("input", 8, 0), ("output", 3, 0), ("output", 4, 0), ("output", 5, 0)}
    assert set(blend_layers(layers, (64, 64))) == set(blend_layers(layers, (96, 64))) == published
    assert {layers[layer] for layer in blend_layers(layers, (32, 24))} == {2}
    assert {layers[layer] for layer in blend_layers(layers, (16, 16))} == {1}
    big = attention_layers(sdxl())
    assert sorted(set(big.values())) == [2, 4]
    assert {big[layer] for layer in blend_layers(big, (128, 128))} == {4}
    assert {big[layer] for layer in blend_layers(big, (16, 16))} == {2}  # it has none at full resolution


@pytest.mark.parametrize("dtype", cases([torch.bfloat16, torch.float16], torch.float16))
def test_half_precision_weights(dtype, clip):
    model = sd15(dtype=dtype)
    trajectory = random_trajectory(model, conditioning(model, 1), 2, size=SIZE)
    result = run(prompt_to_prompt(model, trajectory, edit_of(clip, blend="cat")), trajectory)[-1]
    assert bool(torch.isfinite(result).all()) and not same(result, run(model, trajectory)[-1], 1e-2)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"sampler": "dpm_2"}, "^sampler: expected .* got dpm_2, which also needs sigma"),
        (
            {"positive": 154},
            "^positive: expected `target` of the connected Encode Prompt Edit, which has 77 tokens, got .* 154",
        ),
        ({"area": True}, "^blend_words: expected a positive prompt for the whole picture"),
        ({"sigmas": "karras"}, "^sigmas: expected noise levels of the trajectory"),
    ],
)
def test_refuses_a_run_that_does_not_fit(model, clip, trajectory, change, says):
    patched = prompt_to_prompt(model, trajectory, edit_of(clip, blend="cat"))
    positive = conditioning(model, 2, tokens=change.get("positive", 77))
    if "area" in change:
        positive[0][1]["area"] = (4, 4, 0, 0)
    sigmas = schedule(model, STEPS, change.get("sigmas", "ddim_uniform"))
    with pytest.raises(ValueError, match=says):
        sample(patched, trajectory.start, positive, positive, CFG, sigmas, change.get("sampler", "euler"))


def test_refuses_models_and_sources_that_do_not_fit(model, clip, trajectory):
    edit = edit_of(clip)
    for other in (flow_dit(), sdxl()):
        with pytest.raises(ValueError, match=r"^model: expected the kind of model the trajectory was made with"):
            prompt_to_prompt(other, trajectory, edit)
    with pytest.raises(
        ValueError,
        match=r"^source: expected an encoding of `source_text` of the connected Encode Prompt Edit, which has 77",
    ):
        prompt_to_prompt(model, trajectory, edit, source=conditioning(model, 1, tokens=154))
    with pytest.raises(ValueError, match=r"^model: expected one without a prompt-to-prompt edit"):
        prompt_to_prompt(prompt_to_prompt(model, trajectory, edit), trajectory, edit)
