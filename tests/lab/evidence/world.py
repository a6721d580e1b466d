"""The toy model behind the very nodes an artist wires up, a batch of pictures at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import comfy.sd
import comfy.utils
import comfy_extras.nodes_custom_sampler as core
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from lab.toy.pack.general import load_general
from lab.toy.pack.transformer import load_transformer
from lab.toy.sampling import encode_prompts
from palimpsest.nodes.diffusion.conditioning import Conditioning
from palimpsest.nodes.diffusion.trajectory import Trajectory
from palimpsest.nodes.inversion.nodes import DDIMInvert, SampleTrajectory
from palimpsest.nodes.inversion.noise import TrajectoryNoise
from palimpsest.nodes.plug_and_play.nodes import PlugAndPlay
from palimpsest.nodes.prompt_to_prompt.nodes import PromptToPrompt
from palimpsest.nodes.prompt_to_prompt.prompt_edit import PromptEdit
from torch import Tensor


@dataclass(frozen=True)
class World:
    model: ModelPatcher
    clip: comfy.sd.CLIP
    vae: comfy.sd.VAE
    scheduler: str = "ddim_uniform"

    @classmethod
    def load(cls) -> World:
        comfy.utils.set_progress_bar_enabled(False)
        return cls(*load_general())

    @classmethod
    def load_transformer(cls) -> World:
        """The toy's flow model, on a schedule that begins with noise alone."""
        comfy.utils.set_progress_bar_enabled(False)
        return cls(*load_transformer(), "simple")

    def prompts(self, texts: Sequence[str]) -> Conditioning:
        """One row for each picture of the batch, or one for all of them."""
        return encode_prompts(self.clip, texts)

    def sigmas(self, steps: int) -> Tensor:
        return core.BasicScheduler.execute(self.model, self.scheduler, steps, 1.0)[0]

    def encode(self, images: Tensor) -> Tensor:
        """Pictures [B, 3, H, W] in 0..1 to latents [B, 16, H / 8, W / 8]."""
        return torch.cat([self.vae.encode(chunk.movedim(1, -1)) for chunk in images.split(16)])

    def decode(self, latents: Tensor) -> Tensor:
        return torch.cat([self.vae.decode(chunk) for chunk in latents.split(16)]).movedim(-1, 1)

    def invert(
        self,
        latent: Tensor,
        positive: Conditioning,
        sigmas: Tensor,
        method: str = "fixed_point",
        iterations: int = 5,
        cfg: float = 1.0,
    ) -> tuple[Trajectory, TrajectoryNoise]:
        """With the empty text as the negative."""
        trajectory, noise, *_ = DDIMInvert.execute(
            self.model, positive, {"samples": latent}, sigmas, method, iterations, cfg, self.prompts([""])
        ).args
        return trajectory, noise

    def retrace(self, noise: TrajectoryNoise, positive: Conditioning, sigmas: Tensor, latent: Tensor) -> Trajectory:
        """The path that euler takes from an inversion's noise at guidance 1."""
        guider = core.BasicGuider.execute(self.model, positive)[0]
        euler = core.KSamplerSelect.execute("euler")[0]
        return SampleTrajectory.execute(noise, guider, euler, sigmas, {"samples": latent})[1]

    def sample(
        self,
        noise,
        positive: Conditioning,
        cfg: float,
        sigmas: Tensor,
        latent: Tensor,
        negative: Conditioning | None = None,
    ) -> Tensor:
        """Latents that euler ends at, with classifier-free guidance against `negative`, else the empty prompt."""
        guider = core.CFGGuider.execute(self.model, positive, negative or self.prompts([""]), cfg)[0]
        euler = core.KSamplerSelect.execute("euler")[0]
        return core.SamplerCustomAdvanced.execute(noise, guider, euler, sigmas, {"samples": latent})[0]["samples"]

    def plug_and_play(self, trajectory: Trajectory, feature_end: float, attention_end: float, **optional) -> World:
        model = PlugAndPlay.execute(self.model, trajectory, feature_end, attention_end, "auto", **optional)[0]
        return self.with_model(model)

    def prompt_to_prompt(
        self,
        trajectory: Trajectory,
        source: Conditioning,
        edit: PromptEdit,
        cross_end: float,
        self_end: float,
        blend_start: float = 0.2,
        blend_threshold: float = 0.3,
        **optional,
    ) -> World:
        settings = (cross_end, self_end, blend_start, blend_threshold)
        return self.with_model(
            PromptToPrompt.execute(self.model, trajectory, edit, *settings, source=source, **optional)[0]
        )

    def with_model(self, model: ModelPatcher) -> World:
        return replace(self, model=model)

    def counting(self) -> tuple[World, list[int]]:
        """The same world, and a list to which every call of the network adds its number of rows."""
        calls: list[int] = []
        model = self.model.clone()

        def count(executor, x, *args, **kwargs):
            calls.append(len(x))
            return executor(x, *args, **kwargs)

        model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "evidence", count)
        return replace(self, model=model), calls


def relative_errors(a: Tensor, b: Tensor) -> Tensor:
    """|a - b| / |b| over the last three dimensions of latents [..., C, H, W]."""
    difference, size = ((x.flatten(-3)).norm(dim=-1) for x in (a - b, b))
    return difference / size


def psnr_each(a: Tensor, b: Tensor) -> Tensor:
    """PSNR in dB of each picture [B, 3, H, W] in 0..1."""
    return -10 * (a - b).square().flatten(1).mean(1).clamp_min(1e-12).log10()
