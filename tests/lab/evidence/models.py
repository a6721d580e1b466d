"""The toy world's models behind the very nodes an artist wires up, a batch of pictures at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import comfy.sd
import comfy.utils
import comfy_extras.nodes_custom_sampler as core
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from lab.world.evaluate import encoded
from lab.world.pack.general import WEIGHTS, load_general
from lab.world.pack.transformer import load_transformer
from palimpsest.nodes.diffusion.conditioning import Conditioning
from palimpsest.nodes.diffusion.trajectory import Trajectory
from palimpsest.nodes.inversion.nodes import DDIMInvert
from palimpsest.nodes.inversion.noise import TrajectoryNoise
from palimpsest.nodes.retracing.nodes import ExactRetracing
from torch import Tensor

# The published ones, but for those that have no attention here, where there are most pixels.
BLOCKS = "features 4; attention 4-8"
CHUNK = 16  # pictures that the autoencoder takes at once


@dataclass(frozen=True)
class World:
    model: ModelPatcher
    clip: comfy.sd.CLIP
    vae: comfy.sd.VAE
    scheduler: str
    blocks: str  # of Plug-and-Play

    @classmethod
    def load(cls, weights: Path = WEIGHTS) -> World:
        comfy.utils.set_progress_bar_enabled(False)
        return cls(*load_general(weights), "ddim_uniform", BLOCKS)

    @classmethod
    def load_transformer(cls, weights: Path = WEIGHTS) -> World:
        """The flow model, on a schedule that begins with noise alone."""
        comfy.utils.set_progress_bar_enabled(False)
        return cls(*load_transformer(weights), "simple", "auto")

    def prompts(self, texts: Sequence[str]) -> Conditioning:
        """One row for each picture of the batch, or one for all of them."""
        return encoded(self.clip, texts)

    def sigmas(self, steps: int) -> Tensor:
        return core.BasicScheduler.execute(self.model, self.scheduler, steps, 1.0)[0]

    def encode(self, pictures: Tensor) -> Tensor:
        """Pictures [B, 3, H, W] in 0..1 to latents [B, 4, H / 4, W / 4]."""
        return torch.cat([self.vae.encode(chunk.movedim(1, -1)) for chunk in pictures.split(CHUNK)])

    def decode(self, latents: Tensor) -> Tensor:
        return torch.cat([self.vae.decode(chunk) for chunk in latents.split(CHUNK)]).movedim(-1, 1).float()

    def invert(
        self,
        latent: Tensor,
        positive: Conditioning,
        sigmas: Tensor,
        method: str = "ddim",
        iterations: int = 5,
        cfg: float = 1.0,
    ) -> tuple[Trajectory, TrajectoryNoise]:
        """With the empty text as the negative."""
        trajectory, noise, *_ = DDIMInvert.execute(
            self.model, positive, {"samples": latent}, sigmas, method, iterations, cfg, self.prompts([""])
        ).args
        return trajectory, noise

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

    def sdedit(self, latent: Tensor, positive: Conditioning, cfg: float, strength: float, sigmas: Tensor) -> Tensor:
        """2108.01073: the last `strength` of the steps, from the latents under fresh noise."""
        last = sigmas[-round(strength * (len(sigmas) - 1)) - 1 :]
        return self.sample(core.RandomNoise.execute(1)[0], positive, cfg, last, latent)

    def retracing(self, trajectory: Trajectory) -> World:
        """With the node Exact Retracing; `trajectory` is an inversion by ddim."""
        return self.with_model(ExactRetracing.execute(self.model, trajectory)[0])

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
        return self.with_model(model), calls


NETWORKS: dict[str, Callable[[Path], World]] = {"UNet": World.load, "transformer": World.load_transformer}
