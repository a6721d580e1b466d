"""The UNet of unCLIP's decoder and upsamplers: ADM (2105.05233) with GLIDE's context tokens in its attention (2112.10741).

Tensors are named and ordered as in Karlo's published files. The projections of attention are linear layers here; in the files
they are 1x1 convolutions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from comfy.ldm.common_dit import pad_to_patch_size
from comfy.ldm.modules.attention import optimized_attention
from comfy.ldm.modules.diffusionmodules.openaimodel import ResBlock
from comfy.ldm.modules.diffusionmodules.util import timestep_embedding

HEAD_WIDTH = 64
HIDDEN = -10000.0  # added to the scores of masked tokens: its exponential is 0 in every precision


@dataclass(frozen=True)
class Context:
    """Tokens that every attention layer sees beside the picture's own.

    tokens: [B, L, width]; scores: [B, 1, L], added to the tokens' attention scores.
    """

    tokens: torch.Tensor
    scores: torch.Tensor


class ContextAttention(torch.nn.Module):
    """Every position of the picture attends to the context's tokens and to all positions, in one softmax."""

    def __init__(self, channels: int, context_width: int, dtype: torch.dtype, device: torch.device, operations: Any):
        super().__init__()
        shell = {"dtype": dtype, "device": device}
        self.heads = channels // HEAD_WIDTH
        self.norm = operations.GroupNorm(32, channels, **shell)
        self.qkv = operations.Linear(channels, 3 * channels, **shell)  # rows by head: its q, k and v
        self.encoder_kv = operations.Linear(context_width, 2 * channels, **shell)  # rows by head: its k and v
        self.proj_out = operations.Linear(channels, channels, **shell)

    def forward(self, x: torch.Tensor, context: Context, transformer_options: Mapping[str, Any]) -> torch.Tensor:
        places = self.norm(x).flatten(2).transpose(1, 2)
        q, k, v = self._by_head(self.qkv(places), 3).unbind(2)
        context_k, context_v = self._by_head(self.encoder_kv(context.tokens), 2).unbind(2)
        out = optimized_attention(
            q,
            torch.cat([context_k, k], dim=2),
            torch.cat([context_v, v], dim=2),
            self.heads,
            mask=torch.nn.functional.pad(context.scores, (0, k.shape[2])),
            skip_reshape=True,
            transformer_options=transformer_options,
        )
        return x + self.proj_out(out).transpose(1, 2).reshape(x.shape)

    def _by_head(self, x: torch.Tensor, parts: int) -> torch.Tensor:
        """[B, L, heads * parts * HEAD_WIDTH] -> [B, heads, parts, L, HEAD_WIDTH]."""
        return x.unflatten(2, (self.heads, parts, HEAD_WIDTH)).permute(0, 2, 3, 1, 4)


class AdmUNet(torch.nn.Module):
    """Predicts eps, and a learned variance if out_channels has room for it, from x [B, in_channels, H, W] at timesteps [B].

    widths: channels of each level, from the full resolution down. attention: whether each level has attention; the middle block
    has it if any level has.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        model_channels: int,
        time_width: int,
        widths: tuple[int, ...],
        blocks_per_level: int,
        attention: tuple[bool, ...],
        context_width: int,
        scale_shift: bool,
        dtype: torch.dtype,
        device: torch.device,
        operations: Any,
    ):
        super().__init__()
        shell = {"dtype": dtype, "device": device, "operations": operations}
        own = {"dtype": dtype, "device": device}
        self.dtype = dtype
        self.model_channels = model_channels
        self.halvings = len(widths) - 1

        def residual(channels: int, out: int, **resample: bool) -> ResBlock:
            return ResBlock(channels, time_width, 0.0, out, use_scale_shift_norm=scale_shift, **resample, **shell)

        def attending(level: int) -> list[ContextAttention]:
            return [ContextAttention(widths[level], context_width, **shell)] if attention[level] else []

        self.time_embed = torch.nn.Sequential(
            operations.Linear(model_channels, time_width, **own),
            torch.nn.SiLU(),
            operations.Linear(time_width, time_width, **own),
        )
        channels, skips = widths[0], [widths[0]]
        down: list[list[torch.nn.Module]] = [[operations.Conv2d(in_channels, channels, 3, padding=1, **own)]]
        for level, width in enumerate(widths):
            for _ in range(blocks_per_level):
                down.append([residual(channels, width), *attending(level)])
                channels = width
                skips.append(channels)
            if level < len(widths) - 1:
                down.append([residual(channels, channels, down=True)])
                skips.append(channels)
        middle = [
            residual(channels, channels),
            *([ContextAttention(channels, context_width, **shell)] if any(attention) else []),
            residual(channels, channels),
        ]
        up: list[list[torch.nn.Module]] = []
        for level, width in reversed(list(enumerate(widths))):
            for i in range(blocks_per_level + 1):
                block = [residual(channels + skips.pop(), width), *attending(level)]
                channels = width
                if level > 0 and i == blocks_per_level:
                    block.append(residual(channels, channels, up=True))
                up.append(block)
        self.input_blocks = torch.nn.ModuleList(map(torch.nn.ModuleList, down))
        self.middle_block = torch.nn.ModuleList(middle)
        self.output_blocks = torch.nn.ModuleList(map(torch.nn.ModuleList, up))
        self.out = torch.nn.Sequential(
            operations.GroupNorm(32, channels, **own),
            torch.nn.SiLU(),
            operations.Conv2d(channels, out_channels, 3, padding=1, **own),
        )

    def predict(
        self,
        x: torch.Tensor,
        timesteps: torch.Tensor,
        embedding: torch.Tensor | None = None,
        context: Context | None = None,
        transformer_options: Mapping[str, Any] | None = None,
    ) -> torch.Tensor:
        """embedding: [B, time_width], added to the embedding of the timesteps."""
        emb = self.time_embed(timestep_embedding(timesteps, self.model_channels).to(x.dtype))
        if embedding is not None:
            emb = emb + embedding

        def through(block: torch.nn.ModuleList, h: torch.Tensor) -> torch.Tensor:
            for layer in block:
                if isinstance(layer, ResBlock):
                    h = layer(h, emb)
                elif isinstance(layer, ContextAttention):
                    h = layer(h, context, transformer_options or {})
                else:
                    h = layer(h)
            return h

        height, width = x.shape[2:]
        x = pad_to_patch_size(x, (2**self.halvings, 2**self.halvings), padding_mode="replicate")
        skips = []
        for block in self.input_blocks:
            x = through(block, x)
            skips.append(x)
        x = through(self.middle_block, x)
        for block in self.output_blocks:
            x = through(block, torch.cat([x, skips.pop()], dim=1))
        return self.out(x)[:, :, :height, :width]


class UpsamplerNetwork(AdmUNet):
    """Predicts eps from the noisy picture and the small picture resized to its size, joined along the channels."""

    def forward(self, x: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        return self.predict(x, timesteps)[:, :3]
