"""Models whose latents have frames, [batch, channels, frames, height, width]: pictures in Wan's, Qwen-Image's and Cosmos', and clips."""

from dataclasses import replace

import comfy.samplers
import comfy.supported_models
import comfy_extras.nodes_custom_sampler as core
import pytest
import torch
from palimpsest.nodes.flow_edit.nodes import FlowEdit
from palimpsest.nodes.inversion.nodes import DDIMInvert, PreviewTrajectory, SampleTrajectory, TrajectoryStart
from palimpsest.nodes.inversion.trajectory_io import load_trajectory, save_trajectory
from palimpsest.nodes.plug_and_play.nodes import PlugAndPlay
from palimpsest.nodes.prompt_to_prompt.nodes import AttentionMask, PromptToPrompt
from palimpsest.nodes.prompt_to_prompt.prompt_edit import prompt_edit
from palimpsest.nodes.retracing.nodes import ExactRetracing
from support.cases import cases
from support.fixtures import tiny_models
from support.fixtures.inversions import relative, sample_back, schedule
from support.fixtures.plain_words import in_template
from support.fixtures.tiny_transformers import KINDS, Kind
from support.fixtures.transformer_edits import SOURCE

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


def clip_of(name: str) -> Kind:
    """Three latent frames."""
    return replace(KINDS[name], frames=3)


@pytest.mark.parametrize("name", cases(["wan", "cosmos"], "wan"))
@torch.inference_mode()
def test_a_clip_is_inverted_saved_and_retraced(name: str, tmp_path):
    kind = clip_of(name)
    model, prompt, clip = kind.model(), kind.conditioning(2), {"samples": kind.latent(1, height=8, width=8)}
    trajectory, noise, latent, _ = DDIMInvert.execute(model, prompt, clip, schedule(model, 3, "simple"), "ddim", 1).args
    assert trajectory.latents.shape == (4, 1, 16, 3, 8, 8) and latent["samples"].shape == clip["samples"].shape
    save_trajectory(trajectory, tmp_path / "clip.trajectory.safetensors")
    loaded = load_trajectory(tmp_path / "clip.trajectory.safetensors")
    back = sample_back(ExactRetracing.execute(model, loaded)[0], loaded, clip["samples"])
    assert relative(back.latents, trajectory.latents) < 1e-5
    assert PreviewTrajectory.execute(trajectory, 3)[0].shape == (1, 64, 3 * 64, 3)
    assert PreviewTrajectory.execute(trajectory, 3, FrameVAE())[0].shape == (1, 8, 3 * 8, 3)


@pytest.mark.parametrize("name", cases(["wan", "cosmos"], "wan"))
@torch.inference_mode()
def test_clips_are_edited_as_pictures_are(name: str, monkeypatch):
    """From the noise it was recorded with, each edit of a clip by its own prompt is the clip; the frames have a map each."""
    kind = clip_of(name)
    model, edit = kind.model(), prompt_edit(in_template, SOURCE, SOURCE, "auto", "cat: 1", "")
    prompt, other = kind.conditioning(2, len(edit.source.ids)), kind.conditioning(7, len(edit.source.ids))
    empty = {"samples": torch.zeros_like(kind.latent(1, height=8, width=8))}
    noise, euler = core.Noise_RandomNoise(5), comfy.samplers.sampler_object("euler")

    def sampled(model, positive, node=core.SamplerCustomAdvanced):
        guider = core.CFGGuider.execute(model, positive, prompt, 1.0)[0]
        return node.execute(noise, guider, euler, schedule(model, 3, "simple"), empty)

    made, trajectory = sampled(model, prompt, SampleTrajectory).args
    free = sampled(model, other)[0]["samples"]
    for edited in (
        PlugAndPlay.execute(model, trajectory, 1.0, 1.0, "auto")[0],
        PromptToPrompt.execute(model, trajectory, edit, 1.0, 1.0, 0.0, 0.3)[0],
    ):
        assert torch.equal(sampled(edited, prompt)[0]["samples"], made["samples"])
        assert relative(sampled(edited, other)[0]["samples"], free) > 1e-3
    monkeypatch.setattr("palimpsest.nodes.prompt_to_prompt.nodes.tokenize", lambda clip, text: in_template(text))
    mask, colours, *_ = AttentionMask.execute(
        model, None, trajectory, SOURCE, "cat", 0.0, 1.0, 0.0, positive=prompt
    ).args
    assert mask.shape == (3, 64, 64) and colours.shape == (3, 64, 64, 3)
    method = {"method": "flow_edit", "strength": 1.0}
    for target, same in ((prompt, True), (other, False)):
        guider = FlowEdit.execute(model, target, prompt, prompt, 3.0, 3.0, method)[0]
        flown = core.SamplerCustomAdvanced.execute(noise, guider, euler, trajectory.sigmas, made)[0]["samples"]
        assert torch.equal(flown, made["samples"]) == same
    only_last = torch.zeros_like(mask)
    only_last[2] = 1.0
    guider = FlowEdit.execute(model, other, prompt, prompt, 3.0, 3.0, method, mask=only_last)[0]
    flown = core.SamplerCustomAdvanced.execute(noise, guider, euler, trajectory.sigmas, made)[0]["samples"]
    assert [torch.equal(flown[:, :, i], made["samples"][:, :, i]) for i in range(3)] == [True, True, False]
