"""With ComfyUI's dynamic VRAM on, its layers have no weights before a file is read, and take weights of any shape."""

from __future__ import annotations

import comfy.memory_management
import comfy.ops
import pytest
import torch
from palimpsest.nodes.subject.encoder import subject_encoder
from palimpsest.nodes.unclip.decoder.loading import load_decoder, load_upsampler
from palimpsest.nodes.unclip.prior.checkpoint import prior
from support.fixtures import tiny_clip, twin_unclip
from support.fixtures.twin_prior import TINY, karlo_layout, twin
from support.fixtures.twin_subject import tiny

pytestmark = pytest.mark.model


@pytest.fixture
def dynamic(monkeypatch: pytest.MonkeyPatch):
    """ComfyUI's own switch, which it turns on at start where there is a GPU."""
    return lambda on: monkeypatch.setattr(comfy.memory_management, "aimdo_enabled", on)


def both_ways(dynamic, load) -> None:
    """The same tensors, some of them still as the file has them: ComfyUI casts those when they are used."""
    dynamic(False)
    expected = load().state_dict()
    dynamic(True)
    found = load().state_dict()
    assert found.keys() == expected.keys()
    assert all(value.to(expected[name].dtype).equal(expected[name]) for name, value in found.items())


@pytest.mark.newest
def test_layers_are_empty_at_first(dynamic):
    dynamic(True)
    assert comfy.ops.manual_cast.Linear(2, 2).weight is None


def test_a_prior_loads_whole(dynamic):
    weights = dict(twin(**TINY).state_dict())
    karlo, stats = karlo_layout(weights)
    both_ways(dynamic, lambda: prior(dict(weights), "prior", None).model)
    karlo |= dict(zip(("clip_mean", "clip_std"), stats, strict=True))
    both_ways(dynamic, lambda: prior(dict(karlo), "prior", None).model)


def test_decoders_and_upsamplers_load_whole(dynamic, tmp_path):
    made = twin_unclip.decoder()
    unet, text_proj = made.diffusers()
    file = twin_unclip.write(tmp_path, "karlo.ckpt", made.karlo())
    parts = [twin_unclip.write(tmp_path, f"{i}.ckpt", part) for i, part in enumerate((unet, text_proj))]
    both_ways(dynamic, lambda: load_decoder(file, None).model.diffusion_model)
    both_ways(dynamic, lambda: load_decoder(*parts).model.diffusion_model)
    networks = twin_unclip.upsampler(1), twin_unclip.upsampler(2)
    both = twin_unclip.write(tmp_path, "upsampler.ckpt", twin_unclip.karlo_upsampler(*networks))
    both_ways(dynamic, lambda: load_upsampler(both, None).first.model)
    both_ways(dynamic, lambda: load_upsampler(both, None).last.model)


def test_a_decoder_of_another_shape_is_refused_all_the_same(dynamic, tmp_path):
    weights = twin_unclip.decoder().karlo()
    weights["model.time_embed.2.weight"] = weights["model.time_embed.2.weight"][:, :-1].clone()
    file = twin_unclip.write(tmp_path, "odd.ckpt", weights)
    for on in (False, True):
        dynamic(on)
        with pytest.raises(ValueError, match=r"it has time_embed\.2\.weight as \["):
            load_decoder(file, None)


def test_a_subject_encoder_loads_whole_and_of_another_shape_is_refused(dynamic):
    own = tiny(tiny_clip.sd1())[0].patcher.model.state_dict()
    both_ways(dynamic, lambda: subject_encoder(dict(own)).patcher.model)
    odd = own | {"postfuse_module.mlp1.fc2.weight": torch.zeros(3, 3)}
    for on in (False, True):
        dynamic(on)
        with pytest.raises(ValueError, match=r"postfuse_module\.mlp1\.fc2\.weight as \[3, 3\]"):
            subject_encoder(dict(odd))
