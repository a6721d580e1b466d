"""A subject fusion under all that ComfyUI and an artist do to a run: batches, precisions, cancel, second runs, patches."""

from itertools import cycle, product

import comfy.model_management
import pytest
import torch
from palimpsest.nodes.plug_and_play.nodes import PlugAndPlay
from palimpsest.nodes.saliency_fusion.expert import Prompted
from support.cases import cases
from support.fixtures.fusion import PUBLISHED, fuse_subject, plain, run, start_for
from support.fixtures.other_packs import OTHERS, free_u, lora, with_control
from support.fixtures.sampling import random_trajectory, schedule
from support.fixtures.tiny_models import conditioning, control_net, two_level
from support.fixtures.unet_probe import fingerprint, same

pytestmark = pytest.mark.model

CFG = 5.0
STAGES = (0.3, 0.6)
STEPS = 6
WHICH = ("scene", "subject", "both")
BLOCKS = "features 0; attention 0-3"  # of a UNet with two levels


@pytest.fixture(scope="module")
def models():
    return two_level(0), two_level(1)


@pytest.fixture(scope="module")
def prompts(models):
    """null, plain text, text with the subject in it."""
    return [conditioning(models[0], seed) for seed in (1, 2, 3)]


@pytest.fixture(scope="module")
def sigmas(models):
    return schedule(models[0], STEPS)


@pytest.fixture(scope="module")
def x(models, sigmas):
    return start_for(models[0], sigmas, 1, (8, 8))


def test_a_batch_of_two_is_two_of_one(models, prompts, sigmas):
    x = start_for(models[0], sigmas, 2, (8, 8))
    both = run(fuse_subject(models, prompts, STAGES), x, sigmas)
    apart = [run(fuse_subject(models, prompts, STAGES), row[None], sigmas) for row in x]
    assert same(both.result, torch.cat([made.result for made in apart]))
    for i, decision in enumerate(both.decisions):
        for row, made in enumerate(apart):
            assert (decision is None) == (made.decisions[i] is None)
            assert decision is None or torch.equal(decision.weights[:, row], made.decisions[i].weights[:, 0])


def test_batched_and_split_calls_agree(models, prompts, sigmas, x):
    """A prompt so much longer than the others goes through the UNet on its own; repeated tokens are attended to alike."""
    null, text, augmented = prompts
    apart = [null, text, [[augmented[0][0].repeat(1, 5, 1), {}]]]
    rows = []
    hook = models[1].model.diffusion_model.register_forward_pre_hook(lambda module, args: rows.append(len(args[0])))
    try:
        split = run(fuse_subject(models, apart, STAGES), x, sigmas).result
    finally:
        hook.remove()
    assert set(rows) == {1}
    assert same(split, run(fuse_subject(models, prompts, STAGES), x, sigmas).result)


@pytest.mark.parametrize(
    ("stage", "end"),
    cases(product((0, 1, 2), ("error", "interrupt")), (0, "error"), (1, "interrupt"), (2, "interrupt")),
)
def test_a_run_that_ends_in_any_stage_leaves_models_and_guider_as_they_were(models, prompts, sigmas, x, stage, end):
    before = [fingerprint(model) for model in models]
    expected = run(fuse_subject(models, prompts, STAGES), x, sigmas).result
    guider = fuse_subject(models, prompts, STAGES)
    stopped = []

    def stop(step):
        if guider.stage_of(float(sigmas[step])) == stage:
            stopped.append(step)
            if end == "error":
                raise RuntimeError("the callback failed")
            comfy.model_management.interrupt_current_processing()

    with pytest.raises(comfy.model_management.InterruptProcessingException if end == "interrupt" else RuntimeError):
        run(guider, x, sigmas, on_step=stop)
    assert len(stopped) == 1
    assert [fingerprint(model) for model in models] == before
    assert guider.decision is None and guider.active == []
    assert all(model.model.current_patcher is None for model in models)
    assert torch.equal(run(guider, x, sigmas).result, expected)  # queued again
    assert torch.equal(run(guider, x, sigmas).result, expected)


def require_both_in_place(models, prompts, x, sigmas, tolerance=1e-6):
    """Scene and subject stages are their models alone, and each place of a fused step is one model's own prediction."""
    step = sigmas[[0, -1]]
    null, text, augmented = prompts
    sides = Prompted(models[0], text, null, CFG, PUBLISHED), Prompted(models[1], augmented, text, CFG, PUBLISHED)
    scene, subject = (run(plain(side), x, step).result for side in sides)
    for borders, expected in (((1.0, 1.0), scene), ((0.0, 0.0), subject)):
        assert same(run(fuse_subject(models, prompts, borders), x, step).result, expected, tolerance)
    made = run(fuse_subject(models, prompts, (0.0, 1.0)), x, step)
    chosen = made.decisions[0].weights[1][:, None].bool()
    assert 0 < float(chosen.float().mean()) < 1
    assert same(made.result, torch.where(chosen, subject, scene), tolerance)


def test_a_run_of_the_last_stage_does_not_load_the_scene_model_F17(models, prompts, x):
    comfy.model_management.unload_all_models()
    late = schedule(models[0], 10)[7:]
    null, text, augmented = prompts
    loaded = []

    def on_step(step):
        loaded.append([each.model.model for each in comfy.model_management.current_loaded_models])

    made = run(fuse_subject(models, prompts, STAGES), x, late, on_step=on_step).result
    assert loaded == [[models[1].model]] * 3
    subject = Prompted(models[1], augmented, text, CFG, PUBLISHED)
    assert torch.equal(made, run(plain(subject), x, late).result)


@pytest.mark.parametrize("dtype", cases([torch.float16, torch.bfloat16], torch.float16))
def test_low_precision_weights(prompts, sigmas, x, dtype):
    low, high = (tuple(two_level(seed, kind) for seed in (0, 1)) for kind in (dtype, torch.float32))
    require_both_in_place(low, prompts, x, sigmas)
    masks = [run(fuse_subject(m, prompts, (0.0, 1.0)), x, sigmas[:2]).decisions[0].weights[1] for m in (low, high)]
    assert float((masks[0] == masks[1]).float().mean()) > 0.9


@pytest.mark.parametrize(("patch", "which"), cases(product(OTHERS, WHICH), *zip(OTHERS, cycle(WHICH), strict=False)))
def test_patches_of_other_packs_keep_their_effect(models, prompts, sigmas, patch, which):
    width = 16 if patch is free_u else 8  # FreeU divides by zero in a UNet whose middle is one pixel
    scene, subject = models
    patched = (patch(scene) if which != "subject" else scene, patch(subject) if which != "scene" else subject)
    require_both_in_place(patched, prompts, start_for(scene, sigmas, 1, (width, width)), sigmas)


def test_the_scene_model_s_lora_can_be_the_subject_model(models, prompts, sigmas, x):
    require_both_in_place((models[0], lora(models[0])), prompts, x, sigmas)


@pytest.mark.parametrize("which", cases(WHICH, "subject"))
def test_plug_and_play_on_either_model(models, prompts, which):
    trajectory = random_trajectory(models[0], conditioning(models[0], 1), 2, size=(8, 8))
    wanted = (which != "subject", which != "scene")
    injected = tuple(
        PlugAndPlay.execute(model, trajectory, 1.0, 1.0, BLOCKS)[0] if inject else model
        for model, inject in zip(models, wanted, strict=True)
    )
    require_both_in_place(injected, prompts, trajectory.latents[1].flip(-1), trajectory.sigmas[1:])


def test_control_net_on_the_prompts(models, prompts, sigmas, x):
    null, text, augmented = prompts
    control = control_net()
    text, null = with_control(control, text, null)
    augmented, _ = with_control(control, augmented, null)
    controlled = [null, text, augmented]
    require_both_in_place(models, controlled, x, sigmas)
    free, held = (run(fuse_subject(models, p, STAGES), x, sigmas).result for p in (prompts, controlled))
    assert not same(held, free, 1e-3)
