"""Each expert runs as it would alone: what it is given and what hangs on it have the same effect as with core's own guider.

A mask that gives an expert the whole picture makes a fusion equal to sampling the expert alone.
"""

from dataclasses import replace
from itertools import product

import comfy.hooks
import comfy.samplers
import comfy_extras.nodes_model_advanced as advanced
import pytest
import torch
from comfy.patcher_extension import CallbacksMP
from comfy_extras.nodes_apg import APG
from comfy_extras.nodes_easycache import EasyCacheNode, LazyCacheNode
from comfy_extras.nodes_pag import PerturbedAttentionGuidance
from comfy_extras.nodes_sag import SelfAttentionGuidance
from palimpsest.nodes.saliency_fusion.blending import Mask
from support.cases import cases
from support.fixtures.fusion import expert, fuse, general, plain, run, start_for
from support.fixtures.other_packs import lora
from support.fixtures.sampling import schedule
from support.fixtures.tiny_models import two_level
from support.fixtures.unet_probe import same

pytestmark = pytest.mark.model

STEPS = 3
SIZE = 16  # self-attention guidance leaves smaller latents alone
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


def start(model, sigmas, batch=1):
    return start_for(model, sigmas, batch, (SIZE, SIZE))


CFG_PP = [
    "euler_cfg_pp",
    "dpmpp_2m_cfg_pp",
    "res_multistep_cfg_pp",
    "gradient_estimation_cfg_pp",
    "euler_ancestral_cfg_pp",
]


@pytest.mark.parametrize(
    ("sampler", "cfg"),
    cases(
        product(CFG_PP, (7.5, 1.0)), ("euler_cfg_pp", 7.5), ("dpmpp_2m_cfg_pp", 1.0), ("euler_ancestral_cfg_pp", 7.5)
    ),
)
def test_samplers_that_read_the_unconditional_prediction_F6(model, other, sigmas, sampler, cfg):
    second, x = expert(other, cfg, mask=EVERYWHERE), start(model, sigmas)
    made = run(fuse(general(model), second), x, sigmas, sampler).result
    assert same(made, run(plain(second), x, sigmas, sampler).result, 1e-6)


def test_each_place_steps_along_its_own_model_s_unconditional_prediction_F6(model, other, sigmas):
    one, second = general(model), expert(other, mask=LEFT)
    x, step = start(model, sigmas), sigmas[:2]
    alone = [run(plain(side), x, step, "euler_cfg_pp").result for side in (one, second)]
    made = run(fuse(one, second), x, step, "euler_cfg_pp").result
    half = SIZE // 2
    assert same(made, torch.cat([alone[1][..., :half], alone[0][..., half:]], -1), 1e-6)


def test_a_soft_blend_has_blended_predictions_for_the_sampler_F6(model, other, sigmas):
    one, second = general(model), expert(other, mask=Mask(torch.full((1, 8, 8), 0.25), "decide"))
    seen = {}

    def reading(name):
        def sampler(guider, x, sigmas, extra_args=None, callback=None, disable=None):
            def look(args):
                seen[name] = [args[key] for key in ("denoised", "cond_denoised", "uncond_denoised")]
                return 2.0 * args["denoised"]

            options = comfy.model_patcher.set_model_options_post_cfg_function(extra_args["model_options"], look, True)
            return guider(x, sigmas[0] * x.new_ones(len(x)), **{**extra_args, "model_options": options})

        return comfy.samplers.KSAMPLER(sampler)

    x = start(model, sigmas)
    for name, guider in (("one", plain(one)), ("two", plain(second)), ("both", fuse(one, second, temperature=1.0))):
        doubled = run(guider, x, sigmas[:2], reading(name)).result
        assert same(doubled, 2.0 * seen[name][0])
    for both, one, two in zip(seen["both"], seen["one"], seen["two"], strict=True):
        assert same(both, 0.75 * one + 0.25 * two)


GUIDANCES = {
    "RescaleCFG": lambda model: advanced.RescaleCFG().patch(model, 0.7)[0],
    "PAG": lambda model: PerturbedAttentionGuidance.execute(model, 3.0)[0],
    "SAG": lambda model: SelfAttentionGuidance.execute(model, 0.5, 2.0)[0],
    "APG": lambda model: APG.execute(model, 1.0, 5.0, 0.5)[0],
    "none": lambda model: model,
}


@pytest.mark.parametrize(
    ("guidance", "cfg", "sampler"),
    cases(
        product(GUIDANCES, (7.5, 1.0), ("euler", "euler_cfg_pp")),
        ("RescaleCFG", 7.5, "euler"),
        ("PAG", 1.0, "euler_cfg_pp"),
        ("SAG", 7.5, "euler_cfg_pp"),
        ("APG", 7.5, "euler"),
        ("none", 1.0, "euler"),
    ),
)
def test_what_changes_an_expert_s_guidance_F6(model, other, sigmas, guidance, cfg, sampler):
    second = expert(GUIDANCES[guidance](other), cfg, mask=EVERYWHERE)
    x = start(model, sigmas)
    for one in (general(model), general(GUIDANCES[guidance](model))):
        made = run(fuse(one, second), x, sigmas, sampler).result
        assert same(made, run(plain(second), x, sigmas, sampler).result, 1e-6)


@pytest.mark.parametrize(
    ("who", "shared"), cases(product(("general", "expert", "both"), (False, True)), ("expert", False), ("both", True))
)
def test_an_inpainting_checkpoint_reads_each_picture_s_own_mask_F4(sigmas, who, shared):
    one = general(two_level(0, in_channels=9) if who != "expert" else two_level(0))
    second = (
        lora(one.model)
        if shared and who != "expert"
        else (two_level(1, in_channels=9) if who != "general" else two_level(1))
    )
    masks = torch.zeros(2, 1, SIZE, SIZE)
    masks[0, :, : SIZE // 2], masks[1, :, SIZE // 2 :] = 1, 1
    x = start(one.model, sigmas, 2)
    for side, mask in ((expert(second), 1.0), (one, 0.0)):
        decided = expert(second, mask=Mask(torch.full((1, 8, 8), max(mask, 1e-9)), "decide"))
        made = run(fuse(one, decided, temperature=1.0), x, sigmas, denoise_mask=masks).result
        assert same(made, run(plain(side), x, sigmas, denoise_mask=masks).result, 1e-5)


def scheduled(strengths=((1.0, 0.0), (0.0, 0.5))):
    """A LoRA hook whose strength changes at half of the steps."""
    name = "diffusion_model.output_blocks.3.1.transformer_blocks.0.attn1.to_q.weight"
    shape = two_level(0).model.state_dict()[name].shape
    hook = comfy.hooks.WeightHook(1.0, 1.0)
    hook.need_weight_init = False
    hook.weights = {name: ("diff", (0.5 * torch.randn(shape, generator=torch.Generator().manual_seed(3)),))}
    group, keyframes = comfy.hooks.HookGroup(), comfy.hooks.HookKeyframeGroup()
    group.add(hook)
    for strength, percent in strengths:
        keyframes.add(comfy.hooks.HookKeyframe(strength, percent))
    group.set_keyframes_on_hooks(keyframes)
    return group


def hooked(side, hooks):
    prompts = {
        name: [[text, {**more, "hooks": hooks}] for text, more in getattr(side, name)]
        for name in ("positive", "negative")
    }
    return replace(side, **prompts)


@pytest.mark.parametrize(
    ("steps", "share", "variant"),
    cases(product((5, 6), (1.0, 1e-9), (False, True)), (5, 1.0, False), (6, 1e-9, True)),
)
def test_one_scheduled_hook_for_both_models_prompts_F7(model, other, steps, share, variant):
    sigmas = schedule(model, steps)
    x, hooks = start(model, sigmas), scheduled()
    one, second = hooked(general(model), hooks), expert(lora(model) if variant else other)
    second = hooked(replace(second, mask=Mask(torch.full((1, 8, 8), share), "decide")), hooks)
    made = run(fuse(one, second, temperature=1.0), x, sigmas).result
    alone = hooked(second if share == 1.0 else one, scheduled())
    assert same(made, run(plain(alone), x, sigmas).result, 1e-6)
    unscheduled = hooked(alone, scheduled(((1.0, 0.0),)))
    assert not same(made, run(plain(unscheduled), x, sigmas).result, 1e-4)


def rows_of(model, guider, *args):
    rows = []
    first = model.model.diffusion_model.input_blocks[0][0]  # inside of what a cache skips
    hook = first.register_forward_pre_hook(lambda module, args: rows.append(len(args[0])))
    try:
        return run(guider, *args).result, sum(rows)
    finally:
        hook.remove()


@pytest.mark.parametrize("node", [EasyCacheNode, LazyCacheNode])
def test_caches_that_skip_steps_F8(model, other, node):
    sigmas = schedule(model, 12)
    x = start(model, sigmas)
    cached = node.execute(other, 3.0, 0.0, 1.0, False)[0]
    second = expert(cached, mask=EVERYWHERE)
    alone, needed = rows_of(other, plain(second), x, sigmas)
    made, rows = rows_of(other, fuse(general(model), second), x, sigmas)
    assert same(made, alone, 1e-6) and 0 < rows == needed < 24
    free = run(fuse(general(node.execute(model, 3.0, 0.0, 1.0, False)[0]), expert(cached)), x, sigmas)
    assert bool(torch.isfinite(free.result).all())


KINDS = (CallbacksMP.ON_PRE_RUN, CallbacksMP.ON_PREPARE_STATE, CallbacksMP.ON_CLEANUP)


def counting(model):
    counts = dict.fromkeys(KINDS, 0)
    counted = model.clone()
    for kind in KINDS:
        counted.add_callback(kind, lambda *_, kind=kind: counts.__setitem__(kind, counts[kind] + 1))
    return counted, counts


@pytest.mark.parametrize(
    ("which", "side"),
    cases(
        product(("own checkpoint", "LoRA variant", "clone"), ("general", "expert")),
        ("own checkpoint", "expert"),
        ("LoRA variant", "general"),
        ("clone", "expert"),
    ),
)
def test_callbacks_are_called_as_alone_F9(model, other, sigmas, which, side):
    """A clone that shares the module too."""
    target = {"own checkpoint": other, "LoRA variant": lora(model), "clone": model.clone()}[which]
    counted, counts = counting(target)
    one, second = (general(counted), expert(model)) if side == "general" else (general(model), expert(counted))
    x = start(model, sigmas)
    run(plain(one if side == "general" else second), x, sigmas)
    alone = dict(counts)
    assert min(alone.values()) > 0
    run(fuse(one, second), x, sigmas)
    assert {kind: counts[kind] - alone[kind] for kind in KINDS} == alone


@pytest.mark.parametrize(
    ("use", "general_uncond", "sampler", "expected"),
    [
        ("decide", False, "euler", (1, 1)),
        ("decide", False, "euler_cfg_pp", (2, 2)),
        ("restrict", False, "euler", (2, 2)),
        ("restrict", True, "euler", (2, 1)),
    ],
)
def test_guidance_1_costs_one_row_where_nothing_reads_the_other_F17(
    model, other, sigmas, use, general_uncond, sampler, expected
):
    x = start(model, sigmas)
    guider = fuse(general(model, 1.0), expert(other, 1.0, mask=Mask(LEFT.values, use)), general_uncond=general_uncond)
    counts = [rows_of(each, guider, x, sigmas, sampler)[1] for each in (model, other)]
    assert counts == [rows * STEPS for rows in expected]


def test_a_full_size_mask_is_resized_once_a_run_F17(model, other, sigmas, monkeypatch):
    resized = []
    original = Mask.resized
    monkeypatch.setattr(Mask, "resized", lambda *args: resized.append(args) or original(*args))
    run(
        fuse(general(model), expert(other, mask=Mask(torch.ones(1, 512, 512), "restrict"))),
        start(model, sigmas),
        sigmas,
    )
    assert len(resized) == 1
