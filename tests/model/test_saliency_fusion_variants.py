"""Variants of one checkpoint, and what else artists put on a model: in a fusion each does what it does alone.

A mask that gives an expert the whole picture makes a fusion equal to sampling the expert alone, bit for bit.
"""

from dataclasses import replace
from itertools import cycle, product

import comfy.hooks
import comfy.lora
import comfy.model_management
import comfy.model_patcher
import comfy_extras.nodes_model_advanced as advanced
import pytest
import torch
from palimpsest.nodes.plug_and_play.nodes import PlugAndPlay
from palimpsest.nodes.saliency_fusion.blending import Mask
from support.cases import cases
from support.fixtures.fusion import expert, fuse, general, plain, run, start_for
from support.fixtures.other_packs import OTHERS, free_u, lora, with_control
from support.fixtures.sampling import random_trajectory, schedule
from support.fixtures.tiny_models import conditioning, control_net, sdxl, two_level
from support.fixtures.unet_probe import fingerprint, same

pytestmark = [pytest.mark.model, pytest.mark.compat]

STEPS = 2
EVERYWHERE = Mask(torch.ones(1, 8, 8), "decide")
LEFT = Mask(torch.cat([torch.ones(1, 8, 4), torch.zeros(1, 8, 4)], -1), "decide")


@pytest.fixture(scope="module")
def model():
    return two_level(0)


@pytest.fixture(scope="module")
def other():
    return two_level(1)


@pytest.fixture(scope="module")
def sigmas(model):
    return schedule(model, STEPS)


@pytest.fixture(scope="module")
def x(model, sigmas):
    return start_for(model, sigmas, 1, (8, 8))


def second_lora(model):
    patched = model.clone()
    name = "diffusion_model.input_blocks.3.1.transformer_blocks.0.attn2.to_k.weight"
    patch = 0.1 * torch.randn(model.model.state_dict()[name].shape, generator=torch.Generator().manual_seed(9))
    assert patched.add_patches({name: ("diff", (patch,))}, 0.7) == [name]
    return patched


VARIANTS = {
    "one": (lambda model: model, lora),
    "both": (second_lora, lora),
    "stacked": (lora, lambda model: second_lora(lora(model))),
    "the general one": (lora, lambda model: model),
}


@pytest.mark.parametrize(
    ("which", "kind"),
    cases([*((which, two_level) for which in VARIANTS), ("both", sdxl)], ("one", two_level), ("stacked", two_level)),
)
def test_variants_of_a_checkpoint_equal_two_loaded_ones(sigmas, x, which, kind):
    model = kind(0)
    before = fingerprint(model)
    first, second = VARIANTS[which]
    guider = fuse(general(first(model)), expert(second(model)))
    made = run(guider, x, sigmas)
    assert torch.equal(run(guider, x, sigmas).result, made.result)
    apart = run(fuse(general(first(kind(0))), expert(second(kind(0)))), x, sigmas)
    assert 0 < float(made.decisions[0].weights[1].mean()) < 1
    assert same(made.result, apart.result, 1e-6)
    comfy.model_management.unload_all_models()
    assert fingerprint(model) == before


def test_a_variant_s_weights_are_patched_once(model, x, monkeypatch):
    calculated = []
    original = comfy.lora.calculate_weight
    monkeypatch.setattr(comfy.lora, "calculate_weight", lambda *a, **k: calculated.append(a[2]) or original(*a, **k))
    run(fuse(general(model), expert(lora(model))), x, schedule(model, 4))
    assert len(calculated) == len(set(calculated)) == 2


def v_prediction(model):
    return advanced.ModelSamplingDiscrete().patch(model, "v_prediction", False)[0]


def test_a_variant_may_have_another_sampling(model, sigmas, x):
    step = sigmas[[0, -1]]
    one, second = general(model), expert(v_prediction(model), mask=LEFT)
    alone = [run(plain(side), x, step).result for side in (one, second)]
    made = run(fuse(one, second), x, step).result
    assert torch.equal(made, torch.cat([alone[1][..., :4], alone[0][..., 4:]], -1))


def patched_expert(patch, model, other, shared):
    return patch(lora(model)) if shared else patch(other)


@pytest.mark.parametrize(
    ("patch", "shared"), cases(product(OTHERS, (False, True)), *zip(OTHERS, cycle((False, True)), strict=False))
)
def test_patches_of_other_packs_keep_their_effect_on_either_model(model, other, sigmas, patch, shared):
    width = 16 if patch is free_u else 8  # FreeU divides by zero in a UNet whose middle is one pixel
    x, step = start_for(model, sigmas, 1, (width, width)), sigmas[[0, -1]]
    one, second = general(patch(model)), expert(patched_expert(patch, model, other, shared), mask=LEFT)
    alone = [run(plain(side), x, step).result for side in (one, second)]
    made = run(fuse(one, second), x, step).result
    half = width // 2
    assert same(made[..., :half], alone[1][..., :half], 1e-6)
    assert same(made[..., half:], alone[0][..., half:], 1e-6)


@pytest.mark.parametrize(
    ("which", "shared"), cases(product(("general", "expert", "both"), (False, True)), ("expert", True), ("both", False))
)
def test_plug_and_play_on_either_model(model, other, sigmas, which, shared):
    trajectory = random_trajectory(model, conditioning(model, 1), STEPS, size=(8, 8))

    def inject(target, wanted):
        return PlugAndPlay.execute(target, trajectory, 1.0, 1.0, "features 0; attention 0-3")[0] if wanted else target

    one = general(inject(model, which != "expert"))
    second = expert(inject(lora(model) if shared else other, which != "general"), mask=LEFT)
    x, step = trajectory.latents[1].flip(-1), trajectory.sigmas[1:]
    alone = [run(plain(side), x, step).result for side in (one, second)]
    made = run(fuse(one, second), x, step).result
    assert same(made[..., :4], alone[1][..., :4], 1e-6)
    assert same(made[..., 4:], alone[0][..., 4:], 1e-6)


def test_control_net_on_both_models_prompts(model, other, sigmas, x):
    control = control_net()
    one, second = general(model), expert(other, mask=LEFT)
    one, second = (
        replace(
            side,
            **dict(zip(("positive", "negative"), with_control(control, side.positive, side.negative), strict=True)),
        )
        for side in (one, second)
    )
    control_before = one.positive[0][1]["control"]
    alone = [run(plain(side), x, sigmas[[0, -1]]).result for side in (one, second)]
    guider = fuse(one, second)
    assert any(patcher.model is control.control_model for patcher in guider.experts[0].models())
    made = run(guider, x, sigmas[[0, -1]]).result
    assert torch.equal(made, torch.cat([alone[1][..., :4], alone[0][..., 4:]], -1))
    assert not same(made, run(fuse(general(model), expert(other, mask=LEFT)), x, sigmas[[0, -1]]).result, 1e-3)
    assert control_before.model_sampling_current is None


def hooked(prompt, model):
    name = "diffusion_model.output_blocks.3.1.transformer_blocks.0.attn2.to_v.weight"
    weight = model.model.state_dict()[name]
    hooks = comfy.hooks.create_hook_model_as_lora({name: weight + 0.2}, None, 1.0, 1.0)
    return comfy.hooks.set_hooks_for_conditioning(prompt, hooks)


@pytest.mark.parametrize("shared", cases([False, True], True))
def test_hooks_on_an_expert_s_prompt(model, other, sigmas, x, shared):
    target = lora(model) if shared else other
    bare = expert(target, mask=LEFT)
    second = replace(bare, positive=hooked(bare.positive, target))
    alone = [run(plain(side), x, sigmas[[0, -1]]).result for side in (general(model), second)]
    assert not same(alone[1], run(plain(bare), x, sigmas[[0, -1]]).result, 1e-3)
    made = run(fuse(general(model), second), x, sigmas[[0, -1]]).result
    assert same(made, torch.cat([alone[1][..., :4], alone[0][..., 4:]], -1), 1e-6)


def test_an_expert_with_the_whole_picture_is_the_expert_alone(model, other, sigmas, x):
    second = expert(other, mask=EVERYWHERE)
    assert torch.equal(run(fuse(general(model), second), x, sigmas).result, run(plain(second), x, sigmas).result)
