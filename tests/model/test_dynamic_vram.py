"""Loading with ComfyUI's dynamic VRAM on: its layers have no weights before a file is read, and take weights of any shape and type."""

from __future__ import annotations

import comfy.hooks
import comfy.memory_management
import comfy.model_patcher
import comfy.ops
import comfy.samplers
import pytest
import torch
from comfy.model_patcher import ModelPatcher, ModelPatcherDynamic
from lab.benchmarks.live_bytes import LiveBytes
from palimpsest.nodes.files.weight_file import assign
from palimpsest.nodes.subject.encoder import subject_encoder
from palimpsest.nodes.unclip.decoder.conditioning import unclip_conditioning
from palimpsest.nodes.unclip.decoder.loading import load_decoder, load_upsampler, pixel_vae
from palimpsest.nodes.unclip.prior.checkpoint import prior
from support.cases import cases
from support.fixtures import tiny_clip, twin_unclip, unclip
from support.fixtures.sampling import schedule
from support.fixtures.twin_prior import TINY, karlo_layout, twin
from support.fixtures.twin_subject import tiny

pytestmark = pytest.mark.model


class Dynamic(ModelPatcher):
    """Core's own class of this kind becomes a plain one on the CPU. This one answers as it does on a GPU."""

    non_dynamic_delegate_model = None
    get_non_dynamic_delegate = ModelPatcherDynamic.get_non_dynamic_delegate

    def is_dynamic(self) -> bool:
        return True


@pytest.fixture
def dynamic(monkeypatch: pytest.MonkeyPatch):
    """ComfyUI's own switches, which it turns on at start where there is a GPU."""

    def turn(on: bool) -> None:
        monkeypatch.setattr(comfy.memory_management, "aimdo_enabled", on)
        monkeypatch.setattr(comfy.model_patcher, "CoreModelPatcher", Dynamic if on else ModelPatcher)

    return turn


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The decoder in both layouts, and an upsampler of two networks."""
    folder, made = tmp_path_factory.mktemp("files"), twin_unclip.decoder()
    both = twin_unclip.karlo_upsampler(twin_unclip.upsampler(1), twin_unclip.upsampler(2))
    unet, text_proj = made.diffusers()
    parts = {"karlo": made.karlo(), "unet": unet, "text_proj": text_proj, "upsampler": both}
    return {name: twin_unclip.write(folder, f"{name}.ckpt", weights) for name, weights in parts.items()}


@pytest.fixture(scope="module")
def loaders(files):
    """Each network that the pack loads, by a function of the precision that is asked for."""
    weights, subject = dict(twin(**TINY).state_dict()), tiny(tiny_clip.sd1())[0].patcher.model.state_dict()
    karlo, stats = karlo_layout(weights)
    karlo |= dict(zip(("clip_mean", "clip_std"), stats, strict=True))
    return {
        "prior": lambda dtype=None: prior(dict(weights), "prior", None, dtype).model,
        "prior of Karlo": lambda dtype=None: prior(dict(karlo), "prior", None, dtype).model,
        "decoder": lambda dtype=None: load_decoder(files["unet"], files["text_proj"], dtype).model.diffusion_model,
        "decoder of Karlo": lambda dtype=None: load_decoder(files["karlo"], None, dtype).model.diffusion_model,
        "upsampler": lambda dtype=None: load_upsampler(files["upsampler"], None, dtype).first.model,
        "last upsampler": lambda dtype=None: load_upsampler(files["upsampler"], None, dtype).last.model,
        "subject encoder": lambda dtype=None: subject_encoder(dict(subject), dtype).patcher.model,
    }


NETWORKS = [
    *("prior", "prior of Karlo", "decoder", "decoder of Karlo", "upsampler", "last upsampler", "subject encoder"),
]


@pytest.mark.newest
def test_layers_are_empty_at_first(dynamic):
    dynamic(True)
    assert comfy.ops.manual_cast.Linear(2, 2).weight is None


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("dtype", cases([None, torch.float16, torch.bfloat16], None, torch.bfloat16))
def test_F14_every_weight_is_in_the_chosen_precision_with_dynamic_vram_or_without(dynamic, loaders, network, dtype):
    """Fault F14: under dynamic VRAM the upsampler's convolutions stayed as the file had them."""
    dynamic(False)
    expected = loaders[network](dtype).state_dict()
    dynamic(True)
    found = loaders[network](dtype).state_dict()
    assert found.keys() == expected.keys()
    assert dtype is None or {value.dtype for value in found.values()} == {dtype}
    assert all(value.dtype == expected[name].dtype for name, value in found.items())
    assert all(torch.equal(value, expected[name]) for name, value in found.items())


def test_F17_no_more_than_one_tensor_is_held_twice_while_weights_are_given_to_a_network():
    """Fault F17: networks were made with memory of their own, and the file's tensors copied into it."""
    shapes = [(200, 100)] * 20
    with LiveBytes() as live:
        weights = {str(i): torch.zeros(shape) for i, shape in enumerate(shapes)}
        size = live.now
        network = torch.nn.ParameterDict(
            {name: torch.empty(value.shape, device="meta") for name, value in weights.items()}
        )
        before = live.now - size  # of the meta device, which takes none
        assign(network, weights, torch.float32, torch.device("cpu"))
        assert live.peak - before <= size + size / len(shapes)
    assert weights == {} and not any(value.is_meta or value.requires_grad for value in network.values())


def test_F17_what_is_read_of_a_file_is_let_go(monkeypatch, files):
    """Only then is a tensor in memory once."""
    empty: list[bool] = []

    def watched(network, weights, dtype, device):
        assign(network, weights, dtype, device)
        empty.append(not weights)

    for module in ("decoder.decoder_model", "decoder.loading", "prior.checkpoint"):
        monkeypatch.setattr(f"palimpsest.nodes.unclip.{module}.assign", watched)
    load_decoder(files["karlo"], None)
    load_upsampler(files["upsampler"], None)
    weights = dict(twin(**TINY).state_dict())
    prior(weights, "prior", None)
    assert empty == [True] * 4 and weights == {}


@pytest.mark.parametrize("sources", [("karlo", None), ("unet", "text_proj")])
@torch.inference_mode()
def test_F2_lora_hooks_work_on_a_decoder_under_dynamic_vram(dynamic, files, sources):
    """Fault F2: core loads the model again for them, and the pack's loaders did not tell it how."""
    clip = tiny_clip.sd1()
    dynamic(True)
    model = load_decoder(files[sources[0]], files.get(sources[1]), torch.float32)
    assert model.is_dynamic() and model.clone().cached_patcher_init is model.cached_patcher_init
    guidance = unclip_conditioning(clip, model, "a cat", unclip.embedding())
    name = "diffusion_model.output_blocks.0.1.qkv.weight"
    hook = comfy.hooks.WeightHook(1.0, 1.0)
    hook.need_weight_init = False
    hook.weights = {name: ("diff", (torch.ones_like(model.model.state_dict()[name]),))}
    group = comfy.hooks.HookGroup()
    group.add(hook)
    sigmas = schedule(model, 2, "normal")

    def drawn(positive) -> torch.Tensor:
        guider = comfy.samplers.CFGGuider(model)
        guider.set_conds(positive, guidance.negative)
        guider.set_cfg(2.0)
        euler = comfy.samplers.sampler_object("euler")
        return guider.sample(unclip.noise(), torch.zeros(1, 3, 8, 8), euler, sigmas, seed=0)

    plain, hooked = drawn(guidance.positive), drawn([[c, {**extra, "hooks": group}] for c, extra in guidance.positive])
    assert bool(torch.isfinite(hooked).all()) and not torch.equal(plain, hooked)
    other = model.clone(disable_dynamic=True)
    assert not other.is_dynamic() and other.model is not model.model
    expected = model.model.state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in other.model.state_dict().items())


@pytest.mark.newest
def test_F2_the_pixel_vae_can_go_to_another_device():
    """Core's Select VAE Device loads a VAE again for that."""
    patcher = pixel_vae().patcher
    other = patcher.deepclone_multigpu(new_load_device=torch.device("cpu"))
    assert type(other.model) is type(patcher.model) and other.model is not patcher.model


def test_a_decoder_of_another_shape_is_refused_all_the_same(dynamic, tmp_path):
    weights = twin_unclip.decoder().karlo()
    weights["model.time_embed.2.weight"] = weights["model.time_embed.2.weight"][:, :-1].clone()
    file = twin_unclip.write(tmp_path, "odd.ckpt", weights)
    for on in (False, True):
        dynamic(on)
        with pytest.raises(ValueError, match=r"it has time_embed\.2\.weight as \["):
            load_decoder(file, None)


def test_a_subject_encoder_of_another_shape_is_refused_all_the_same(dynamic):
    own = tiny(tiny_clip.sd1())[0].patcher.model.state_dict()
    odd = own | {"postfuse_module.mlp1.fc2.weight": torch.zeros(3, 3)}
    for on in (False, True):
        dynamic(on)
        with pytest.raises(ValueError, match=r"postfuse_module\.mlp1\.fc2\.weight as \[3, 3\]"):
            subject_encoder(dict(odd))
