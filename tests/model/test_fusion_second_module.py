"""When a model of a fusion has weights of its own in memory, how often they are loaded, and on whose GPU."""

from itertools import product

import comfy.hooks
import comfy.model_management
import comfy.model_patcher
import pytest
import torch
from palimpsest.nodes.saliency_fusion.blending import Mask
from palimpsest.nodes.saliency_fusion.saliency_map import decide, under_noise
from support.cases import cases
from support.fixtures.fusion import expert, from_file, fuse, fuse_subject, general, plain, run, start_for
from support.fixtures.other_packs import lora, perturbed_attention
from support.fixtures.sampling import schedule
from support.fixtures.tiny_models import conditioning, two_level
from support.fixtures.two_gpus import two_gpus
from support.fixtures.unet_probe import same

pytestmark = pytest.mark.model

STEPS = 2
EVERYWHERE = Mask(torch.ones(1, 8, 8), "decide")


@pytest.fixture(scope="module")
def sigmas():
    return schedule(two_level(0), STEPS)


@pytest.fixture(scope="module")
def x(sigmas):
    return start_for(two_level(0), sigmas, 1, (8, 8))


def hooked(prompt, model):
    name = "diffusion_model.output_blocks.3.1.transformer_blocks.0.attn2.to_v.weight"
    weight = model.model.state_dict()[name]
    hooks = comfy.hooks.create_hook_model_as_lora({name: weight + 0.2}, None, 1.0, 1.0)
    return comfy.hooks.set_hooks_for_conditioning(prompt, hooks)


def with_hooks(side):
    return type(side)(**{**side.__dict__, "positive": hooked(side.positive, side.model)})


def modules(guider):
    return len({id(each.model_patcher.model) for each in (guider, *guider.experts)})


@pytest.mark.parametrize("dynamic", [False, True], ids=["plain", "dynamic VRAM"])
def test_the_checkpoint_is_loaded_a_second_time_once_for_all_guiders_F1(sigmas, x, dynamic):
    model, loads = from_file(dynamic=dynamic)
    variant = lora(model)
    for cfg in (5.0, 6.0, 7.0):
        guider = fuse(general(model, cfg), expert(variant))
        run(guider, x, sigmas)
    decide(guider, under_noise(guider, {"samples": x}, None, sigmas), 0)
    assert loads == [not dynamic]
    apart = fuse(general(two_level(0), cfg), expert(lora(two_level(0))))
    assert same(run(guider, x, sigmas).result, run(apart, x, sigmas).result, 1e-6)


def test_clones_of_a_variant_do_not_inherit_its_second_module_F1(sigmas, x):
    model, loads = from_file()
    first = lora(model)
    fuse(general(model), expert(first))
    guider = fuse(general(model), expert(first), expert(lora(first), seed=6))
    assert loads == [True, True] and modules(guider) == 3


def test_a_loader_that_cannot_load_again_is_refused_under_dynamic_vram_and_copied_without_F1(sigmas, x):
    model, _ = from_file(dynamic=True)
    model.cached_patcher_init = None
    with pytest.raises(ValueError, match="model_expert: expected a variant that can be loaded a second time"):
        fuse(general(model), expert(lora(model)))
    model = two_level(0)
    run(plain(general(lora(model))), x, sigmas)  # patches are in the module when it is to be copied
    apart = run(fuse(general(two_level(0)), expert(lora(two_level(0)))), x, sigmas).result
    assert same(run(fuse(general(model), expert(lora(model))), x, sigmas).result, apart, 1e-6)


@pytest.mark.parametrize("who", ["expert", "general", "both"])
def test_hooks_on_prompts_of_clones_under_dynamic_vram_F3(sigmas, x, who):
    model, _ = from_file(dynamic=True)
    one, second = general(model), expert(model.clone(), mask=EVERYWHERE)
    one = with_hooks(one) if who != "expert" else one
    second = with_hooks(second) if who != "general" else second
    loaded = two_level(0)
    alone = run(plain(with_hooks(expert(loaded)) if who != "general" else expert(loaded)), x, sigmas).result
    assert same(run(fuse(one, second), x, sigmas).result, alone, 1e-6)


@pytest.mark.parametrize(
    ("stage", "dynamic"), cases(product(("scene", "subject"), (False, True)), ("scene", False), ("subject", True))
)
def test_hooks_with_one_model_in_both_places_F3(sigmas, x, dynamic, stage):
    model, loads = from_file(dynamic=dynamic)
    loaded = two_level(0)
    null, text, augmented = (conditioning(loaded, seed) for seed in (1, 2, 3))
    prompts = [null, hooked(text, loaded), hooked(augmented, loaded)]
    borders = (1.0, 1.0) if stage == "scene" else (0.0, 1.0)
    for _ in range(2):
        made = run(fuse_subject((model, model), prompts, borders), x, sigmas).result
    apart = run(fuse_subject((loaded, two_level(0)), prompts, borders), x, sigmas).result
    assert same(made, apart, 1e-6)
    assert len(loads) == (2 if dynamic else 1)


def test_clones_that_change_nothing_in_the_module_share_it(sigmas, x):
    model, loads = from_file()
    for first, second in ((model, model.clone()), (lora(model), None), (model, perturbed_attention(model))):
        guider = fuse(general(first), expert(second or first.clone()))
        assert modules(guider) == 1
    assert loads == []
    apart = run(fuse(general(two_level(0)), expert(perturbed_attention(two_level(0)))), x, sigmas).result
    assert same(run(guider, x, sigmas).result, apart, 1e-6)


class Loading:
    """Counts what ComfyUI does to weights: patching and moving them in, and taking all of them out."""

    def __init__(self, monkeypatch):
        self.loads = self.unloads = 0
        load, unpatch = comfy.model_patcher.ModelPatcher.load, comfy.model_patcher.ModelPatcher.unpatch_model

        def counted_load(patcher, *args, **kwargs):
            self.loads += 1
            return load(patcher, *args, **kwargs)

        def counted_unpatch(patcher, device_to=None, unpatch_weights=True):
            self.unloads += unpatch_weights
            return unpatch(patcher, device_to, unpatch_weights)

        monkeypatch.setattr(comfy.model_patcher.ModelPatcher, "load", counted_load)
        monkeypatch.setattr(comfy.model_patcher.ModelPatcher, "unpatch_model", counted_unpatch)


@pytest.mark.parametrize("who", ["expert", "general", "both"])
def test_another_guider_on_a_lora_variant_loads_nothing_F15(sigmas, x, who, monkeypatch):
    model = two_level(0)
    sides = {"expert": (model, lora(model)), "general": (lora(model), model), "both": (lora(model), lora(model))}[who]
    run(fuse(general(sides[0], 5.0), expert(sides[1])), x, sigmas)
    loading = Loading(monkeypatch)
    for cfg in (6.0, 7.0):
        run(fuse(general(sides[0], cfg, seed=8), expert(sides[1], cfg)), x, sigmas)
    assert (loading.loads, loading.unloads) == (0, 0)


@pytest.mark.newest
@pytest.mark.parametrize(
    ("who", "variant"), cases(product(("general", "expert", "both"), (False, True)), ("expert", False), ("both", True))
)
def test_a_model_split_over_gpus_F5(sigmas, x, who, variant, monkeypatch):
    model = two_level(0)
    sides = model, lora(model) if variant else two_level(1)
    monkeypatch.setattr(comfy.model_patcher.ModelPatcher, "get_free_memory", lambda *args: 0)  # a call for each row
    expected = run(fuse(general(sides[0]), expert(sides[1])), x, sigmas).result
    copied = []
    monkeypatch.setattr(comfy.model_patcher.ModelPatcher, "deepclone_multigpu", lambda *a, **k: copied.append(a))
    one = two_gpus(sides[0]) if who != "expert" else sides[0]
    second = two_gpus(sides[1]) if who != "general" else sides[1]
    made = run(fuse(general(one), expert(second)), x, sigmas).result
    assert same(made, expected, 1e-6)
    assert copied == [] and [len(m.get_additional_models_with_key("multigpu")) for m in (one, second)] == [
        int(who != "expert"),
        int(who != "general"),
    ]
