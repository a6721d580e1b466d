"""Plug-and-Play as pnp-diffusers publishes it, on ComfyUI's UNet: the recipe whose cost the pack's is set beside.

999 steps of DDIM inversion, then rows [source, negative, positive] in each of 50 steps, those after the windows included.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise

import comfy.model_management
import torch
from comfy.model_patcher import ModelPatcher
from palimpsest.nodes.diffusion.conditioning import Conditioning
from palimpsest.nodes.diffusion.trajectory import Trajectory
from palimpsest.nodes.inversion.solvers import Level, ddim_step
from palimpsest.nodes.plug_and_play.windows import Windows

INVERSION_STEPS = 999
EDIT_STEPS = 50
EDIT_ROWS = 3
FEATURE_BLOCK = 4
ATTENTION_BLOCKS = range(4, 12)


class PublishedRecipe:
    """Calls the loaded model without guider or conditions, so that nothing of ComfyUI's own counts against the recipe."""

    def __init__(
        self, model: ModelPatcher, source: Conditioning, positive: Conditioning, negative: Conditioning
    ) -> None:
        comfy.model_management.load_models_gpu([model])
        self.model = model.model
        self.text = torch.cat([conditioning[0][0] for conditioning in (source, negative, positive)])
        self.features = self.attention = False

    def invert(self, latent: torch.Tensor, steps: int) -> torch.Tensor:
        """The first `steps` of the 999."""
        sampling = self.model.model_sampling
        levels = sampling.sigmas.tolist()[: steps + 1]
        x = self.model.process_latent_in(latent) * (1 + levels[0] ** 2) ** 0.5

        def denoise(x: torch.Tensor, sigma: float) -> torch.Tensor:
            return self.model.apply_model(x, torch.full((len(x),), sigma), c_crossattn=self.text[:1])

        for low, high in pairwise(levels):
            x = ddim_step(denoise, x, Level(low, high), sampling)
        return x

    def edit(self, trajectory: Trajectory, windows: Windows, cfg: float) -> torch.Tensor:
        x = trajectory.start
        sigmas = trajectory.sigmas
        with self._overwriting():
            for i in range(trajectory.steps):
                self.features, self.attention = i < windows.feature, i < windows.attention
                rows = torch.cat([trajectory.latents[i], x, x])
                denoised = self.model.apply_model(rows, sigmas[i].expand(len(rows)), c_crossattn=self.text)
                _, negative, positive = denoised.chunk(EDIT_ROWS)
                d = (x - negative - cfg * (positive - negative)) / sigmas[i]
                x = x + d * (sigmas[i + 1] - sigmas[i])
        return x

    @contextmanager
    def _overwriting(self) -> Iterator[None]:
        blocks = self.model.diffusion_model.output_blocks
        handles = [blocks[FEATURE_BLOCK][0].out_layers[-1].register_forward_hook(self._feature)]
        for block in ATTENTION_BLOCKS:
            attention = blocks[block][1].transformer_blocks[0].attn1
            handles += [layer.register_forward_hook(self._attention) for layer in (attention.to_q, attention.to_k)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _feature(self, module: torch.nn.Module, args: tuple, output: torch.Tensor) -> torch.Tensor | None:
        return _source_everywhere(output) if self.features else None

    def _attention(self, module: torch.nn.Module, args: tuple, output: torch.Tensor) -> torch.Tensor | None:
        return _source_everywhere(output) if self.attention else None


def _source_everywhere(rows: torch.Tensor) -> torch.Tensor:
    return torch.cat([rows.chunk(EDIT_ROWS)[0]] * EDIT_ROWS)
