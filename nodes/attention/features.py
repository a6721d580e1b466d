"""Reading and replacing a UNet's decoder features and self-attention."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from comfy.patcher_extension import WrappersMP, add_wrapper_with_key

from ..diffusion.source_pass import AllSeen, ModelOptions, Record
from .self_attention import QueryRecorder, add_attn1_patch
from .unet_sites import Sites

if TYPE_CHECKING:
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel


class SiteRecorder:
    """Keeps ("feature", "output", block): [B, C, H, W] that out_layers gave, and the queries of the sites' attention.

    to_the_end: run the whole UNet; otherwise one whose last site is a feature is left right there.
    """

    def __init__(self, sites: Sites, *, to_the_end: bool = False):
        self.sites = sites
        self.to_the_end = to_the_end
        self.record: Record = {}

    def attach(self, model_options: ModelOptions) -> None:
        add_attn1_patch(model_options, QueryRecorder(self.sites.layers, self.record))
        add_diffusion_model_wrapper(model_options, self.diffusion_model)

    def diffusion_model(self, executor, x, timesteps, context, y, control, transformer_options, **kwargs):
        with on_features(executor.class_obj, self.sites.features, self._keep_feature):
            return executor(x, timesteps, context, y, control, transformer_options, **kwargs)

    def _keep_feature(self, block: int, output: torch.Tensor) -> None:
        self.record["feature", "output", block] = output
        sites = {key for key in self.record if key[0] != "key"}
        # Not behind an attention site: a patch that prepared the attention may wait for its output.
        if len(sites) == len(self.sites.attention) + len(self.sites.features) and not self.to_the_end:
            raise AllSeen


def add_diffusion_model_wrapper(model_options: ModelOptions, wrapper: Callable) -> None:
    """Add the wrapper, after all others, to options the caller owns."""
    transformer_options = model_options.setdefault("transformer_options", {})
    add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "palimpsest.plug_and_play", wrapper, transformer_options)


@contextmanager
def on_features(
    unet: UNetModel, blocks: tuple[int, ...], use: Callable[[int, torch.Tensor], torch.Tensor | None]
) -> Iterator[None]:
    """While this context lasts, call use(block, out_layers output) in `unet`; what it returns, if anything, replaces it."""
    handles = []
    try:
        for block in blocks:
            # The last layer, because a ResBlock with scale-shift norm does not call out_layers as a whole.
            last = unet.output_blocks[block][0].out_layers[-1]
            handles.append(last.register_forward_hook(lambda module, args, output, block=block: use(block, output)))
        yield
    finally:
        for handle in handles:
            handle.remove()
