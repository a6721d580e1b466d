"""Gradients through the model: right, with weights of every kind, and with checkpointing at a fraction of the memory."""

import gc
import weakref
from itertools import product

import comfy.model_management
import comfy.sampler_helpers
import comfy.samplers
import pytest
import torch
from palimpsest.nodes.null_text.checkpointing import BLOCKS, _Call
from palimpsest.nodes.null_text.gradients import Denoiser, differentiable
from palimpsest.nodes.null_text.optimize import optimize
from palimpsest.nodes.null_text.solvers import Effort
from support.cases import cases
from support.fixtures import tiny_models
from support.fixtures.inversions import relative
from support.fixtures.sampling import random_trajectory

pytestmark = pytest.mark.model


def loaded(model, checkpoint):
    clone = differentiable(model)
    comfy.sampler_helpers.prepare_sampling(clone, (1, 4, 32, 32), {}, clone.model_options, force_full_load=True)
    options = clone.model_options
    return Denoiser(clone.model, options, checkpoint), clone


def conds(model, x, seed=3):
    return comfy.samplers.encode_model_conds(
        model.model.extra_conds,
        comfy.sampler_helpers.convert_cond(tiny_models.conditioning(model, seed)),
        x,
        x.device,
        "negative",
    )


def gradient(model, checkpoint, size=16):
    denoiser, clone = loaded(model, checkpoint)
    generator = torch.Generator().manual_seed(4)
    x = 3.0 * torch.randn(1, 4, size, size, generator=generator)
    embedding = tiny_models.conditioning(model, 3)[0][0]
    clone.model.current_patcher = clone
    denoised, pullback = denoiser.predict_with_pullback(x, torch.full((1,), 2.0), conds(model, x)[0], embedding)
    return denoised, pullback(torch.randn(denoised.shape, generator=generator))


@pytest.mark.parametrize(
    "build", cases([tiny_models.two_level, tiny_models.two_level_v, tiny_models.small_sdxl], tiny_models.small_sdxl)
)
def test_checkpointing_changes_no_gradient(build):
    model = build()
    kept, again = gradient(model, False), gradient(model, True)
    assert torch.equal(kept[0], again[0])
    assert float(again[1].norm()) > 0
    assert relative(again[1], kept[1]) < 1e-6


def test_weights_loaded_in_inference_mode_give_the_same_gradient():
    wanted = gradient(tiny_models.two_level(), False)[1]
    with torch.inference_mode():
        model = tiny_models.two_level()
        for module in model.model.modules():
            for name, weight in module.named_parameters(recurse=False):
                setattr(module, name, torch.nn.Parameter(weight.clone(), requires_grad=False))
        assert all(weight.is_inference() for weight in model.model.diffusion_model.parameters())
        for checkpoint in (False, True):
            assert relative(gradient(model, checkpoint)[1], wanted) < 1e-6


def test_the_gradient_is_the_derivative():
    model = tiny_models.two_level()
    denoiser, clone = loaded(model, True)
    clone.model.current_patcher = clone
    x = 3.0 * torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(4))
    sigma, cond = torch.full((1,), 2.0), conds(model, x)[0]
    embedding = tiny_models.conditioning(model, 3)[0][0]
    denoised, pullback = denoiser.predict_with_pullback(x, sigma, cond, embedding)
    slope = pullback(denoised)
    moved = [
        denoiser.predict_with_pullback(x, sigma, cond, embedding + h * slope / slope.norm())[0].square().sum() / 2
        for h in (0.5, -0.5)
    ]
    assert float(moved[0] - moved[1]) == pytest.approx(float(slope.norm()), rel=0.02)


def test_checkpointing_holds_a_fraction_of_the_activations():
    held = {checkpoint: bytes_held(checkpoint) for checkpoint in (False, True)}
    assert held[True] < 0.25 * held[False], held  # 0.19; PyTorch's attention itself keeps none of its weights


def bytes_held(checkpoint):
    """Storages that the graph of one prediction keeps until its backward pass, the blocks' inputs among them."""
    sizes: dict[int, int] = {}
    alive = []

    def remember(tensor):
        storage = tensor.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
        alive.append(storage)  # so that no address is used again
        return tensor.detach()  # an output that its own node kept would never be freed

    def remember_inputs(module, args):
        for value in args:
            remember(value)

    model = tiny_models.two_level()
    denoiser, clone = loaded(model, checkpoint)
    clone.model.current_patcher = clone
    for module in model.model.diffusion_model.modules():
        if isinstance(module, BLOCKS):
            module.register_forward_pre_hook(remember_inputs)
    x = torch.randn(1, 4, 32, 32)
    with torch.autograd.graph.saved_tensors_hooks(remember, lambda tensor: tensor):
        denoiser.predict_with_pullback(x, torch.full((1,), 2.0), conds(model, x)[0], torch.randn(1, 77, 64))
    return sum(sizes.values())


@pytest.mark.parametrize(
    ("method", "end"),
    cases(
        product(("null_text", "fast"), ("result", "error", "interrupt")),
        ("null_text", "result"),
        ("null_text", "error"),
        ("fast", "interrupt"),
    ),
)
@torch.inference_mode()
def test_however_it_ends_the_clone_is_released_and_nothing_of_the_graph_is_left(method, end):
    model = tiny_models.two_level()
    clones = []

    def at_call(*_):
        clones.append(weakref.ref(comfy.model_management.current_loaded_models[0].model))
        if len(clones) == 3 and end == "error":  # of null_text: the block's second run, in the backward pass
            raise RuntimeError("broken off")
        if len(clones) == 3 and end == "interrupt":
            comfy.model_management.interrupt_current_processing()

    handle = model.model.diffusion_model.middle_block[0].register_forward_pre_hook(at_call)
    positive, negative = (tiny_models.conditioning(model, seed) for seed in (1, 3))
    ending = None
    try:
        optimize(
            model, positive, negative, random_trajectory(model, positive, 2), 7.5, Effort(2, tolerance=0.0), method
        )
    except (RuntimeError, comfy.model_management.InterruptProcessingException) as stop:
        ending = type(stop)
    handle.remove()
    expected = {"error": RuntimeError, "interrupt": comfy.model_management.InterruptProcessingException}.get(end)
    assert ending is expected
    assert len(clones) >= 3 and clones[0]() is not model
    gc.collect()
    loaded = [entry.model for entry in comfy.model_management.current_loaded_models if entry.model is not None]
    assert loaded[0] is model
    assert not any(clone() is not None for clone in clones)
    assert not any(type(value) is _Call for value in gc.get_objects())
    assert not any(getattr(module, "weight_function", ()) for module in model.model.modules())
