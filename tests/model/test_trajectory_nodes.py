from dataclasses import replace

import comfy.latent_formats
import comfy.supported_models
import comfy_extras.nodes_custom_sampler as core
import comfy_extras.nodes_model_advanced as core_advanced
import pytest
import torch
from palimpsest.nodes.diffusion.trajectory import ModelFingerprint
from palimpsest.nodes.inversion.ddim import invert
from palimpsest.nodes.inversion.nodes import (
    DDIMInvert,
    LoadTrajectory,
    PreviewTrajectory,
    SampleTrajectory,
    TrajectoryStart,
)
from palimpsest.nodes.plug_and_play.nodes import PlugAndPlay
from support.fixtures import tiny_models
from support.fixtures.inversions import KINDS, relative, sample_back, schedule

import nodes as core_nodes

pytestmark = [pytest.mark.model, pytest.mark.compat]


@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_stock_samplers_retrace_the_trajectory_from_noise_and_from_latent(kind: str):
    build, scheduler = KINDS[kind]
    model = build()
    steps = 6
    # A flow model's first level is sigma 1, where a latent counts nothing: its latent output starts one level lower.
    sigmas = schedule(model, steps, scheduler)[1 if kind == "flow" else 0 :]
    positive, picture = tiny_models.conditioning(model, 1), tiny_models.latent(model, 2, batch=2, height=8, width=16)
    trajectory, noise, latent, _ = DDIMInvert.execute(model, positive, picture, sigmas, "ddim", 1).args
    guider = core.BasicGuider.execute(model, positive)[0]
    euler = core.KSamplerSelect.execute("euler")[0]
    fmt = model.get_model_object("latent_format")
    expected = sample_back(model, trajectory, picture["samples"]).latents

    # The start is exact whatever latent is wired beside the noise: the picture, an empty one, the inverted latent.
    for beside in (picture, {"samples": torch.zeros_like(picture["samples"])}, latent):
        out = core.SamplerCustomAdvanced.execute(noise, guider, euler, sigmas, beside)[0]["samples"]
        assert relative(fmt.process_in(out), expected[-1]) < 2e-5
    assert relative(expected[0], trajectory.latents[0]) < 1e-6

    out = core_nodes.KSamplerAdvanced().sample(
        model, "disable", 0, steps, 1.0, "euler", scheduler, positive, positive, latent,
        1 if kind == "flow" else 0, 1000, "disable",
    )[0]["samples"]  # fmt: skip
    assert relative(fmt.process_in(out), expected[-1]) < 2e-5


@torch.inference_mode()
def test_the_start_is_exact_at_the_models_maximum_sigma():
    """There ComfyUI scales noise by sqrt(1 + sigma^2) instead of sigma."""
    model = tiny_models.two_level()
    sigmas = schedule(model, 5, "normal")
    assert float(sigmas[0]) == pytest.approx(float(model.get_model_object("model_sampling").sigma_max))
    latent = tiny_models.latent(model, 2)["samples"]
    trajectory = invert(model, tiny_models.conditioning(model, 1), latent, sigmas, "ddim")
    assert relative(sample_back(model, trajectory, latent).latents[0], trajectory.latents[0]) < 1e-6


@torch.inference_mode()
def test_sample_trajectory_gives_the_samples_of_stock_sampling_bit_for_bit():
    model = tiny_models.two_level()
    sigmas, empty = schedule(model, 6, "normal"), {"samples": torch.zeros(2, 4, 8, 8)}
    positive, negative = tiny_models.conditioning(model, 1), tiny_models.conditioning(model, 3)
    guider = core.CFGGuider.execute(model, positive, negative, 4.0)[0]
    noise = core.RandomNoise.execute(5)[0]
    for name in ("euler", "heun", "dpmpp_2m", "lms"):
        sampler = core.KSamplerSelect.execute(name)[0]
        stock = core.SamplerCustomAdvanced.execute(noise, guider, sampler, sigmas, empty)[0]["samples"]
        latent, trajectory = SampleTrajectory.execute(noise, guider, sampler, sigmas, empty).args
        assert torch.equal(latent["samples"], stock)
        fmt = model.get_model_object("latent_format")
        assert relative(trajectory.latents[-1], fmt.process_in(stock)) < 1e-6
        assert trajectory.latents.shape == (7, 2, 4, 8, 8)
        assert torch.equal(trajectory.positive[0][0], positive[0][0])
    assert trajectory.method == "sampled"


@torch.inference_mode()
def test_trajectory_start_gives_the_same_start_as_the_inversion():
    model = tiny_models.two_level()
    picture = tiny_models.latent(model, 2)
    trajectory, noise, latent, _ = DDIMInvert.execute(
        model, tiny_models.conditioning(model, 1), picture, schedule(model, 4), "ddim", 1
    ).args
    again, start, sigmas = TrajectoryStart.execute(model, trajectory).args
    assert torch.equal(again.generate_noise(picture), noise.generate_noise(picture))
    assert torch.equal(start["samples"], latent["samples"]) and torch.equal(sigmas, trajectory.sigmas)
    with pytest.raises(ValueError, match=r"model: expected the kind of model the trajectory was made with, BaseModel"):
        TrajectoryStart.execute(tiny_models.small_sdxl(), trajectory)
    with pytest.raises(ValueError, match=r"noise: this trajectory starts from latents of shape \(1, 4, 8, 8\)"):
        noise.generate_noise({"samples": torch.zeros(1, 4, 16, 16)})


@torch.inference_mode()
def test_preview_strip_has_one_row_a_picture():
    model = tiny_models.two_level()
    picture = tiny_models.latent(model, 2, batch=2, height=8, width=10)
    trajectory = invert(model, tiny_models.conditioning(model, 1), picture["samples"], schedule(model, 6), "ddim")
    strip = PreviewTrajectory.execute(trajectory, 4)[0]
    assert strip.shape == (2, 64, 4 * 80, 3) and float(strip.min()) >= 0 and float(strip.max()) <= 1
    assert strip[0].ne(strip[1]).any()


@torch.inference_mode()
def test_preview_strip_knows_the_latent_formats_of_other_packs():
    class OthersLatent(comfy.latent_formats.SD15):
        pass

    model = tiny_models.two_level()
    positive, picture = tiny_models.conditioning(model, 1), tiny_models.latent(model, 2, height=8, width=8)["samples"]
    trajectory = invert(model, positive, picture, schedule(model, 2), "ddim")
    other = replace(trajectory, model=replace(trajectory.model, latent_format=OthersLatent.__name__))
    assert torch.equal(PreviewTrajectory.execute(other, 3)[0], PreviewTrajectory.execute(trajectory, 3)[0])
    unknown = replace(trajectory, model=replace(trajectory.model, latent_format="NeverHeardOf"))
    with pytest.raises(
        ValueError, match="trajectory: expected a latent format that this ComfyUI knows, got 'NeverHeardOf'"
    ):
        PreviewTrajectory.execute(unknown, 3)


def test_load_trajectory_reads_nothing_outside_its_folders(tmp_path):
    for name in ("../secret.trajectory.safetensors [output]", "/etc/passwd", "secret.trajectory.safetensors"):
        assert "is not in the output or input folder" in LoadTrajectory.validate_inputs(name)
        with pytest.raises(ValueError, match="is not in the output or input folder"):
            LoadTrajectory.execute(name)


def test_a_fingerprint_tells_prediction_types_apart():
    model = tiny_models.two_level()
    v = core_advanced.ModelSamplingDiscrete().patch(model, "v_prediction", False)[0]
    ModelFingerprint.of(model).require_match(tiny_models.two_level(seed=1))
    with pytest.raises(ValueError, match="V_PREDICTION"):
        ModelFingerprint.of(model).require_match(v)


def test_a_fingerprint_tells_widths_of_text_apart_E10():
    """Fault E10: SD1.5 and SD2.1-base shared a fingerprint, and the wrong checkpoint gave a matrix error."""

    def lumina(model_class: type, width: int):
        unet = {
            "image_model": "lumina2", "patch_size": 2, "in_channels": 16, "dim": 72, "cap_feat_dim": width, "n_layers": 1,
            "qk_norm": True, "n_heads": 6, "n_kv_heads": 2, "axes_dims": [4, 4, 4], "axes_lens": [300, 512, 512],
            "rope_theta": 10000.0, "ffn_dim_multiplier": 4.0,
        }  # fmt: skip
        return tiny_models._patcher(model_class(unet), 0, torch.float32)

    class WiderText(comfy.supported_models.SD15):
        unet_extra_config = {"num_heads": 4, "num_head_channels": -1}

    sd21_base = tiny_models._patcher(WiderText({**tiny_models.SD1_UNET, "context_dim": 128}), 0, torch.float32)
    for one, other, widths in (
        (tiny_models.two_level(), sd21_base, (64, 128)),
        (lumina(comfy.supported_models.Lumina2, 64), lumina(comfy.supported_models.Lumina2, 96), (64, 96)),
    ):
        wanted = ModelFingerprint.of(one)
        with pytest.raises(ValueError, match=rf"text of width {widths[0]}\), got .*text of width {widths[1]}\)"):
            wanted.require_match(other)
        wanted.require_match(one)
        replace(wanted, text_width=None).require_match(other)  # a file of an earlier version


@torch.inference_mode()
def test_a_plug_and_play_edit_can_be_recorded():
    """The patched model asks which sampler runs; the recorder must not hide it."""
    model = tiny_models.two_level()
    positive, picture = tiny_models.conditioning(model, 1), tiny_models.latent(model, 2, height=8, width=8)
    trajectory, noise, *_ = DDIMInvert.execute(model, positive, picture, schedule(model, 4), "ddim", 1).args
    edited = PlugAndPlay.execute(model, trajectory, 0.8, 0.5, "features 1; attention 1-3")[0]
    guider = core.CFGGuider.execute(edited, tiny_models.conditioning(model, 3), positive, 4.0)[0]
    euler = core.KSamplerSelect.execute("euler")[0]
    recorded, path = SampleTrajectory.execute(noise, guider, euler, trajectory.sigmas, picture).args
    stock = core.SamplerCustomAdvanced.execute(noise, guider, euler, trajectory.sigmas, picture)[0]
    assert torch.equal(recorded["samples"], stock["samples"])
    assert path.steps == 4
