"""Plug-and-Play on transformers: q, k of image tokens as attention, v as features."""

from __future__ import annotations

import comfy.model_management
import comfy.samplers
import comfy_extras.nodes_custom_sampler as core
import pytest
import torch
from palimpsest.nodes.attention.families import FAMILIES as FAMILIES_BY_CLASS
from palimpsest.nodes.attention.structure import TransformerStructure, structure_of
from palimpsest.nodes.inversion.nodes import DDIMInvert, SampleTrajectory
from palimpsest.nodes.plug_and_play.features import capture
from palimpsest.nodes.plug_and_play.nodes import CaptureFeatures, PlugAndPlay
from palimpsest.nodes.plug_and_play.windows import Windows
from support.fixtures.tiny_transformers import KINDS, families
from support.fixtures.transformer_edits import path
from support.fixtures.twin_transformers import TWINS, PublishedInjection, plug_and_play

pytestmark = pytest.mark.model

EULER = comfy.samplers.sampler_object("euler")
FAMILIES = families("flux", "sd3", "qwen_image", "wan")


def schedule(model, steps):
    return comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "simple", steps)


def guider(model, positive, negative, cfg):
    return core.CFGGuider.execute(model, positive, negative, cfg)[0]


def sample(model, noise, positive, negative, cfg, sigmas, latent):
    return core.SamplerCustomAdvanced.execute(noise, guider(model, positive, negative, cfg), EULER, sigmas, latent)[0][
        "samples"
    ]


def relative(a, b):
    return float((a - b).norm() / b.norm())


def generated(kind, model, steps=4):
    """A recorded generation: noise, prompt, empty latent, samples and trajectory."""
    prompt = kind.conditioning(2)
    latent = {"samples": torch.zeros_like(kind.latent(1))}
    noise = core.Noise_RandomNoise(5)
    made = SampleTrajectory.execute(noise, guider(model, prompt, prompt, 1.0), EULER, schedule(model, steps), latent)
    return noise, prompt, latent, made[0]["samples"], made[1]


@FAMILIES
@torch.inference_mode()
def test_the_same_prompt_and_noise_give_the_source_bit_for_bit(name):
    kind = KINDS[name]
    model = kind.model()
    noise, prompt, latent, samples, trajectory = generated(kind, model)
    edited = PlugAndPlay.execute(model, trajectory, 1.0, 1.0, "auto")[0]
    assert torch.equal(sample(edited, noise, prompt, prompt, 1.0, trajectory.sigmas, latent), samples)
    other = kind.conditioning(7)
    free = sample(model, noise, other, prompt, 3.0, trajectory.sigmas, latent)
    kept = sample(edited, noise, other, prompt, 3.0, trajectory.sigmas, latent)
    assert relative(kept, free) > 1e-3
    off = PlugAndPlay.execute(model, trajectory, 0.0, 0.0, "auto")[0]
    assert torch.equal(sample(off, noise, other, prompt, 3.0, trajectory.sigmas, latent), free)
    assert torch.equal(sample(model, noise, other, prompt, 3.0, trajectory.sigmas, latent), free)


@FAMILIES
@torch.inference_mode()
def test_captured_features_and_batches_agree_with_live_ones_and_single_pictures(name):
    kind = KINDS[name]
    model = kind.model()
    noise, prompt, latent, _, trajectory = generated(kind, model)
    features = CaptureFeatures.execute(model, trajectory, 0.5, 0.5, "auto", "fp32")[0]
    live = PlugAndPlay.execute(model, trajectory, 0.5, 0.5, "auto")[0]
    captured = PlugAndPlay.execute(model, trajectory, 0.5, 0.5, "auto", features=features)[0]
    negative = kind.conditioning(8, 33)
    args = kind.conditioning(7), negative, 3.0, trajectory.sigmas
    one = sample(live, noise, *args, latent)
    torch.testing.assert_close(sample(captured, noise, *args, latent), one, rtol=0, atol=1e-5)
    two = {"samples": latent["samples"].repeat(2, *[1] * (latent["samples"].ndim - 1))}

    class Twice:
        seed = 5

        def generate_noise(self, latent):
            row = noise.generate_noise({"samples": latent["samples"][:1]})
            return torch.cat([row, row])

    torch.testing.assert_close(sample(live, Twice(), *args, two), torch.cat([one, one]), rtol=0, atol=1e-4)


@families("sd3")
@pytest.mark.parametrize("dtype", [pytest.param(torch.float16, marks=pytest.mark.long), torch.bfloat16])
@torch.inference_mode()
def test_in_half_precision_the_same_prompt_and_noise_give_the_source_too(name, dtype):
    if name in ("hidream", "lumina2") and dtype == torch.float16:
        dtype = torch.bfloat16  # core does not list fp16 for them
    kind = KINDS[name]
    model = kind.model(dtype=dtype)
    noise, prompt, latent, samples, trajectory = generated(kind, model, steps=2)
    edited = PlugAndPlay.execute(model, trajectory, 1.0, 1.0, "auto")[0]
    assert torch.equal(sample(edited, noise, prompt, prompt, 1.0, trajectory.sigmas, latent), samples)


@torch.inference_mode()
def test_auto_windows_are_short_on_transformers_and_at_least_one_step():
    kind = KINDS["flux"]
    model = kind.model()
    *_, trajectory = generated(kind, model, steps=10)
    auto = PlugAndPlay.execute(model, trajectory, -1.0, -1.0, "auto")[0]
    shares = PlugAndPlay.execute(model, trajectory, 0.1, 0.2, "auto")[0]
    noise, prompt, latent = (
        core.Noise_RandomNoise(5),
        kind.conditioning(7),
        {"samples": torch.zeros_like(kind.latent(1))},
    )
    results = [sample(m, noise, prompt, prompt, 2.0, trajectory.sigmas, latent) for m in (auto, shares)]
    assert torch.equal(*results)
    *_, few = generated(kind, model, steps=3)
    features = CaptureFeatures.execute(model, few, -1.0, -1.0, "auto", "fp32")[0]
    assert (features.windows.feature, features.windows.attention) == (1, 1)


@families("flux", "sd35_medium", "lumina2")
@torch.inference_mode()
def test_the_memory_of_a_capture_is_known_before_the_model_runs(name, monkeypatch):
    kind = KINDS[name]
    model = kind.model()
    trajectory = path(kind, model, kind.conditioning(2), 3, batch=2, height=9)
    windows = Windows.of(structure_of(model).sites("features 1; attention 0-2"), 0.4, 0.7, 3)
    calls, told = [], []
    model.model.diffusion_model.register_forward_pre_hook(lambda *args: calls.append(1))
    features = capture(model, trajectory, windows, torch.float16, tell=lambda size: told.append((size, len(calls))))
    lengths = 8 * len(features.records)  # each record has the number of text tokens beside its values
    assert told == [(features.nbytes - lengths, 0)] and len(calls) == 2

    def little(device=None, torch_free_too=False):
        return (2**40, 2**40) if torch_free_too else features.nbytes // 2  # kernels ask for both

    monkeypatch.setattr(comfy.model_management, "get_free_memory", little)
    with pytest.raises(ValueError, match=r"^features: expected memory for .* GB of captured values, got .* GB free"):
        capture(model, trajectory, windows, torch.float16)
    assert len(calls) == 2


@pytest.mark.parametrize(
    ("family", "count", "width", "gigabytes"),
    [
        ("Flux", (19, 38), 3072, 2.9),
        ("Flux2", (8, 48), 6144, 5.6),
        ("SD3", (38, 0), 2432, 1.5),
        ("QwenImage", (60, 0), 3072, 3.0),
        ("Anima", (28, 0), 2048, 0.9),
    ],
)
def test_the_memory_of_published_sizes(family, count, width, gigabytes):
    """q and k of one step, of all blocks and a picture of 1024 x 1024 pixels, in 16 bits."""
    structure = TransformerStructure(FAMILIES_BY_CLASS[family], count, (width,) * sum(count))
    side = 128 // (2 if family == "Flux2" else 1)
    values = structure.values(structure.sites(f"attention 0-{sum(count) - 1}"), torch.empty(1, 16, side, side))
    assert 2 * values == pytest.approx(gigabytes * 1e9, rel=0.1)


@pytest.mark.parametrize("name", TWINS)
@torch.inference_mode()
def test_it_is_the_published_injection_on_diffusers_transformers(name):
    kind = KINDS[name]
    model = kind.model()
    velocity, injection = TWINS[name].velocity(model), TWINS[name].injection(PublishedInjection, tokens=16)
    source, positive, negative = [kind.conditioning(seed) for seed in (2, 3, 4)]
    picture = {"samples": kind.latent(1, height=8, width=8)}
    sigmas = schedule(model, 10)
    trajectory, noise, *_ = DDIMInvert.execute(model, source, picture, sigmas, "ddim", 1).args
    blocks = "features 1-2; attention 0-2"
    edited = PlugAndPlay.execute(model, trajectory, 0.3, 0.6, blocks)[0]
    result = sample(edited, noise, positive, negative, 3.0, sigmas, picture)

    def values_at(step: int) -> dict[str, set[int]]:
        attention = {0, 1, 2} if step < 6 else set()
        return {"query": attention, "key": attention, "value": {1, 2} if step < 3 else set()}

    with injection:
        wanted = plug_and_play(
            velocity,
            injection,
            trajectory.latents,
            trajectory.start,
            sigmas,
            trajectory.positive,
            positive,
            negative,
            3.0,
            values_at,
        )
    assert relative(model.model.process_latent_in(result), wanted) < 1e-5
    free = sample(model, noise, positive, negative, 3.0, sigmas, picture)
    assert relative(result, free) > 1e-3


@torch.inference_mode()
def test_wrong_blocks_are_refused_by_what_the_model_has():
    kind = KINDS["flux"]
    model = kind.model()
    *_, trajectory = generated(kind, model, steps=2)
    with pytest.raises(
        ValueError, match=r"blocks: expected block numbers 0-4 of this Flux\.1, which has 2 double and 3 single"
    ):
        PlugAndPlay.execute(model, trajectory, 0.5, 0.5, "attention 4-11")
