"""Pictures in models whose latents have frames: Wan's, Qwen-Image's and Cosmos' are [batch, channels, 1, height, width]."""

import comfy.supported_models
import comfy_extras.nodes_custom_sampler as core
import pytest
import torch
from palimpsest.nodes.inversion.nodes import DDIMInvert, PreviewTrajectory, SampleTrajectory, TrajectoryStart
from support.fixtures import tiny_models
from support.fixtures.inversions import relative, sample_back, schedule

pytestmark = pytest.mark.model

WAN = {
    "image_model": "wan2.1", "model_type": "t2v", "dim": 48, "ffn_dim": 64, "freq_dim": 32, "text_dim": 64, "num_heads": 4,
    "num_layers": 1, "in_dim": 16, "out_dim": 16, "patch_size": (1, 2, 2), "text_len": 512, "window_size": (-1, -1),
    "qk_norm": True, "cross_attn_norm": True, "eps": 1e-6,
}  # fmt: skip


@pytest.fixture(scope="module")
def wan():
    return tiny_models._patcher(comfy.supported_models.WAN21_T2V(WAN), 0, torch.float32)


@pytest.mark.parametrize("shape", [(2, 16, 1, 8, 12), (2, 16, 8, 12)])
@torch.inference_mode()
def test_a_picture_is_inverted_as_one_frame(wan, shape: tuple[int, ...]):
    """VAE Encode gives a frame axis; samplers of core add it where it is missing, and so does the inversion."""
    positive = [[torch.randn(1, 20, 64, generator=torch.Generator().manual_seed(1)), {}]]
    picture = {"samples": torch.randn(shape, generator=torch.Generator().manual_seed(2))}
    trajectory, noise, latent, sigmas = DDIMInvert.execute(
        wan, positive, picture, schedule(wan, 4, "simple"), "fixed_point", 40
    ).args
    assert trajectory.latents.shape == (5, 2, 16, 1, 8, 12) and trajectory.model.text_width == 64
    back = sample_back(wan, trajectory, picture["samples"])
    assert relative(back.latents, trajectory.latents) < 1e-3
    guider, euler = core.BasicGuider.execute(wan, positive)[0], core.KSamplerSelect.execute("euler")[0]
    out = core.SamplerCustomAdvanced.execute(noise, guider, euler, sigmas, picture)[0]["samples"]
    expected = picture["samples"].reshape(2, 16, 1, 8, 12)
    assert relative(out, expected) < 1e-2
    lower = TrajectoryStart.execute(wan, trajectory, sigmas[1:]).args[1]["samples"]
    assert lower.shape == latent["samples"].shape == expected.shape
    assert PreviewTrajectory.execute(trajectory, 3)[0].shape == (2, 64, 3 * 96, 3)
    decoded = PreviewTrajectory.execute(trajectory, 3, FrameVAE())[0]
    assert decoded.shape == (2, 8, 3 * 12, 3)


class FrameVAE:
    """As core's: a frame axis in, a frame axis out."""

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        return latents[:, :3].movedim(1, -1)


@torch.inference_mode()
def test_a_video_is_refused(wan):
    positive = [[torch.randn(1, 20, 64), {}]]
    video, sigmas = {"samples": torch.randn(1, 16, 3, 8, 12)}, schedule(wan, 2, "simple")
    expected = r"latent_image: expected a picture's latent of this model, \[batch, 16, 1, height, width\], got \(1, 16, 3, 8, 12\)"
    with pytest.raises(ValueError, match=expected):
        DDIMInvert.execute(wan, positive, video, sigmas, "ddim", 1)
    guider, euler = core.BasicGuider.execute(wan, positive)[0], core.KSamplerSelect.execute("euler")[0]
    with pytest.raises(ValueError, match=expected):
        SampleTrajectory.execute(core.RandomNoise.execute(1)[0], guider, euler, sigmas, video)
