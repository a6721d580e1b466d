"""unCLIP's decoder network (2204.06125, section 2.1, as Karlo published it): ADM's UNet conditioned on a text and an image embedding."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from comfy.patcher_extension import WrapperExecutor, WrappersMP, get_all_wrappers

from .adm_unet import HIDDEN, AdmUNet, Context

VARIANCE = "palimpsest.unclip_variance"  # in transformer_options: a VarianceReader


class VarianceReader(Protocol):
    """Gets the channels of learned variance, which core's samplers do not read."""

    def __call__(self, variance: torch.Tensor, transformer_options: Mapping[str, Any]) -> None:
        """variance: [rows, C, H, W], the raw output of one network call."""


class DecoderNetwork(AdmUNet):
    """text_width: of text states and text embedding; image_width: of the image embedding, which becomes extra_tokens tokens."""

    def __init__(
        self,
        text_width: int,
        image_width: int,
        extra_tokens: int,
        *,
        time_width: int,
        context_width: int,
        dtype: torch.dtype,
        device: torch.device,
        operations: Any,
        **unet: Any,
    ):
        own = {"dtype": dtype, "device": device}
        super().__init__(time_width=time_width, context_width=context_width, operations=operations, **own, **unet)
        self.in_channels, self.extra_tokens = unet["in_channels"], extra_tokens
        self.text_width, self.image_width = text_width, image_width
        self.learns_variance = unet["out_channels"] == 2 * self.in_channels
        # Learned: it takes the place of the image embedding in a conditioning that has none.
        self.cf_param = torch.nn.Parameter(torch.empty(image_width, **own))
        self.clip_emb = operations.Linear(image_width, time_width, **own)
        self.text_feat_proj = operations.Linear(text_width, time_width, **own)
        self.clip_tok_proj = operations.Linear(image_width, context_width * extra_tokens, **own)
        self.text_seq_proj = torch.nn.Sequential(
            operations.Linear(text_width, context_width, **own), operations.LayerNorm(context_width, **own)
        )

    def forward(
        self, x: torch.Tensor, timesteps: torch.Tensor, context=None, control=None, transformer_options=None, **conds
    ):
        options = transformer_options or {}
        return WrapperExecutor.new_class_executor(
            self._forward, self, get_all_wrappers(WrappersMP.DIFFUSION_MODEL, options)
        ).execute(x, timesteps, context, control, options, **conds)

    def _forward(
        self,
        x: torch.Tensor,
        timesteps: torch.Tensor,
        context: torch.Tensor,
        control: Any,
        transformer_options: Mapping[str, Any],
        *,
        text_mask: torch.Tensor,
        text_embed: torch.Tensor,
        image_embed: torch.Tensor,
        **_: Any,
    ) -> torch.Tensor:
        """eps [B, C, H, W] of x [B, C, H, W] at timesteps [B].

        context: text states [B, L, text_width]; text_mask: [B, L], 0 where they pad; text_embed: [B, text_width]; image_embed:
        [B, image_width].
        """
        embedding = self.clip_emb(image_embed) + self.text_feat_proj(text_embed)
        tokens = self._context(context, text_mask, image_embed)
        out = self.predict(x, timesteps, embedding, tokens, transformer_options)
        eps, variance = out[:, : self.in_channels], out[:, self.in_channels :]
        if VARIANCE in transformer_options:
            transformer_options[VARIANCE](variance, transformer_options)
        return eps

    def _context(self, states: torch.Tensor, mask: torch.Tensor, image_embed: torch.Tensor) -> Context:
        # The rows of the projection are ordered by channel first, then by token.
        extra = self.clip_tok_proj(image_embed).unflatten(1, (-1, self.extra_tokens)).transpose(1, 2)
        tokens = torch.cat([extra, self.text_seq_proj(states)], dim=1)
        scores = torch.nn.functional.pad((mask < 0.5).to(tokens.dtype) * HIDDEN, (self.extra_tokens, 0))
        return Context(tokens, scores[:, None])
