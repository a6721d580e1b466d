"""Whose memory the fused models' is: ComfyUI's, also when there is little of it."""

import gc

import comfy.model_management
import comfy.model_patcher
import pytest
import torch
from support.fixtures.fusion import expert, fuse, fuse_subject, general, run, start_for
from support.fixtures.other_packs import lora
from support.fixtures.sampling import schedule
from support.fixtures.tiny_models import conditioning, two_level
from support.fixtures.unet_probe import fingerprint, same

pytestmark = [pytest.mark.model, pytest.mark.newest]

STEPS = 3
RUNS = 4
TENSORS = (torch.Tensor, torch.nn.Parameter)


@pytest.fixture(scope="module")
def models():
    return two_level(0), two_level(1)


@pytest.fixture(scope="module")
def sigmas(models):
    return schedule(models[0], STEPS)


@pytest.fixture(scope="module")
def x(models, sigmas):
    return start_for(models[0], sigmas, 1, (8, 8))


def saliency(first, second):
    return fuse(general(first), expert(second))


def subject(first, second):
    prompts = [conditioning(first, seed) for seed in (1, 2, 3)]
    return fuse_subject((first, second), prompts, (0.3, 0.6))


GUIDERS = pytest.mark.parametrize("guider", [saliency, subject])
SHARED = pytest.mark.parametrize("shared", [False, True], ids=["two checkpoints", "a variant"])


def sides_of(models, shared):
    """A LoRA on both sides, so that there are patches to compute as well as weights to bring."""
    return lora(models[0]), lora(lora(models[0]) if shared else models[1])


@SHARED
@GUIDERS
def test_with_no_memory_for_weights_both_are_cast_call_by_call(models, sigmas, x, guider, shared, monkeypatch):
    """ComfyUI's --novram, with the CPU taken for a device that has no memory of its own to spare."""
    sides = sides_of(models, shared)
    expected = run(guider(*sides), x, sigmas).result
    comfy.model_management.unload_all_models()
    monkeypatch.setattr(comfy.model_management, "vram_state", comfy.model_management.VRAMState.NO_VRAM)
    monkeypatch.setattr(comfy.model_management, "is_device_cpu", lambda device: False)
    offloaded = []

    def on_step(step):
        offloaded.append([bool(side.model.model_lowvram) for side in sides])

    made = run(guider(*sides), x, sigmas, on_step=on_step).result
    assert offloaded == [[True, True]] * STEPS
    assert same(made, expected, 1e-5)
    monkeypatch.undo()
    comfy.model_management.unload_all_models()


@SHARED
@GUIDERS
def test_with_memory_for_a_part_of_the_weights_both_keep_a_part(models, sigmas, x, guider, shared, monkeypatch):
    """ComfyUI's --lowvram, on a device with 1.3 times one model's weights free beside what sampling needs."""
    sides = sides_of(models, shared)
    expected = run(guider(*sides), x, sigmas).result
    comfy.model_management.unload_all_models()
    management = comfy.model_management
    room = management.minimum_inference_memory() + 1.3 * models[0].model_size()

    def free(device=None, torch_free_too=False):
        taken = sum(loaded.model_loaded_memory() for loaded in management.current_loaded_models)
        return (room - taken, 0) if torch_free_too else room - taken

    monkeypatch.setattr(management, "vram_state", management.VRAMState.LOW_VRAM)
    monkeypatch.setattr(management, "lowvram_available", True)
    monkeypatch.setattr(management, "is_device_cpu", lambda device: False)
    monkeypatch.setattr(management, "get_free_memory", free)
    taken = []

    def on_step(step):
        modules = {id(side.model): side.model for side in sides}
        taken.append([module.model_loaded_weight_memory for module in modules.values()])

    made = run(guider(*sides), x, sigmas, on_step=on_step).result
    print("MB of weights loaded:", [round(value / 1e6, 1) for value in taken[0]], "of", models[0].model_size() / 1e6)
    assert len(taken) == STEPS and all(sum(each) <= 1.3 * models[0].model_size() for each in taken)
    assert len(taken[0]) == 1 or any(0 < value < models[0].model_size() for value in taken[0])
    assert same(made, expected, 1e-5)
    monkeypatch.undo()
    comfy.model_management.unload_all_models()


def everywhere(model):
    """A LoRA of all layers."""
    patched, weights = model.clone(), model.model.state_dict()
    names = [name for name, w in weights.items() if name.startswith("diffusion_model.") and w.ndim > 1]
    patched.add_patches({name: ("diff", (0.01 * torch.ones_like(weights[name]),)) for name in names})
    return patched


def bytes_alive() -> int:
    gc.collect()
    storages = {
        t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in gc.get_objects() if type(t) in TENSORS
    }
    return sum(storages.values())


def test_a_lora_of_all_layers_takes_the_memory_of_a_second_checkpoint_F13(sigmas, x):
    taken = []
    for second in (lambda model: two_level(1), lambda model: model):
        before, counts = bytes_alive(), []
        model = two_level(0)
        guider = fuse(general(model), expert(everywhere(second(model))))
        run(guider, x, sigmas, on_step=lambda step, counts=counts: counts.append(bytes_alive()))
        taken.append((max(counts) - before) / model.model_size())
        del guider, model
        comfy.model_management.unload_all_models()
    print("checkpoints' worth of memory, with a LoRA of all layers on the expert: two checkpoints, a variant:", taken)
    assert taken[1] <= 1.02 * taken[0]


def held() -> tuple[int, int, int]:
    """Patchers, bytes of parameters, and loaded models that are alive."""
    gc.collect()
    things = [(type(thing), thing) for thing in gc.get_objects()]
    patchers = sum(issubclass(kind, comfy.model_patcher.ModelPatcher) for kind, _ in things)
    weights = sum(thing.nbytes for kind, thing in things if kind is torch.nn.Parameter)
    return patchers, weights, len(comfy.model_management.current_loaded_models)


@SHARED
@GUIDERS
def test_many_runs_leave_nothing(models, sigmas, x, guider, shared):
    """Neither patchers nor weights: what a guider makes goes with it, and loading goes on from where it was."""
    before = [fingerprint(model) for model in models]
    sides = sides_of(models, shared)
    counts = []
    for i in range(RUNS):
        made = guider(*sides)

        def stop(step, i=i):
            if i == RUNS // 2:
                comfy.model_management.interrupt_current_processing()

        try:
            run(made, x, sigmas, on_step=stop)
        except comfy.model_management.InterruptProcessingException:
            assert i == RUNS // 2
        del made, stop
        if i in (1, RUNS - 1):
            counts.append(held())
    assert counts[0] == counts[1], counts
    comfy.model_management.unload_all_models()
    assert comfy.model_management.current_loaded_models == []
    assert [fingerprint(model) for model in models] == before
