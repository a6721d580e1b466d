"""One evaluation of a source picture's row, keeping what chosen UNet sites saw, and the same sites' replacement.

A source pass is marked in transformer_options, so that every injection, this pack's or a second one, leaves it alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import comfy.model_patcher
import comfy.samplers
import torch
from comfy.patcher_extension import WrappersMP, add_wrapper_with_key

from .unet_sites import Sites

if TYPE_CHECKING:
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
    from comfy.model_base import BaseModel

MARK = "palimpsest.source_pass"
WHAT_TO_DO = "Connect a plain or empty prompt to `source`."

# ("feature", block, 0): [B, C, H, W] that out_layers gave; ("query", block, depth): [B, N, C], the normalised input of
# to_q, and of to_k unless another pack's patch made that differ, which is then under "key".
Record = dict[tuple[str, int, int], torch.Tensor]
ModelOptions = dict[str, Any]
Area = tuple[int, ...] | None  # height, width, y, x in latent pixels, as core's conditions have it


def mark_source_pass(model_options: ModelOptions) -> ModelOptions:
    options = comfy.model_patcher.create_model_options_clone(model_options)
    options.setdefault("transformer_options", {})[MARK] = True
    return options


def is_source_pass(transformer_options: dict[str, Any]) -> bool:
    return MARK in transformer_options


def record_source(
    calc_cond_batch: Callable,
    model: BaseModel,
    conds: list[dict],
    x: torch.Tensor,
    sigma: torch.Tensor,
    model_options: ModelOptions,
    sites: Sites,
    area: Area = None,
    *,
    to_the_end: bool = False,
) -> tuple[Record, torch.Tensor | None]:
    """What `sites` see when the UNet evaluates x [B, C, H, W] at sigma [B] under conds.

    calc_cond_batch: comfy.samplers.calc_cond_batch, or the executor of a wrapper around it.
    area: the only part of x they are to see.
    to_the_end: also return the denoised prediction; otherwise a UNet whose last site is a feature is left right there.
    """
    if any("area" in cond for cond in conds):
        raise ValueError(f"source: expected one prompt for the whole picture, got one with an area. {WHAT_TO_DO}")
    if area is not None:
        conds = [{**cond, "area": area} for cond in conds]
    active = sum(comfy.samplers.get_area_and_mult(cond, x, sigma) is not None for cond in conds)
    if active != 1:
        raise ValueError(
            f"source: expected one prompt for the whole picture at every step, got {active} active ones at sigma "
            f"{float(sigma[0]):.4f}. {WHAT_TO_DO}"
        )
    recorder = _Recorder(sites, to_the_end)
    options = attach(mark_source_pass(model_options), recorder)
    denoised = None
    with suppress(_AllSeen):
        (denoised,) = calc_cond_batch(model, [conds], x, sigma, options)
    return recorder.record, denoised


class _AllSeen(Exception):
    """Leaves a UNet call: nothing behind this point is asked for."""


class _Recorder:
    def __init__(self, sites: Sites, to_the_end: bool):
        self.sites = sites
        self.to_the_end = to_the_end
        self.unseen = len(sites.attention) + len(sites.features)
        self.record: Record = {}

    def attn1_patch(self, n: torch.Tensor, context: torch.Tensor, value: torch.Tensor, options: dict) -> tuple:
        site = attention_site(options)
        if site in self.sites.attention:
            self.record[("query", *site)] = n
            if context is not n:
                self.record[("key", *site)] = context
            self.unseen -= 1
        return n, context, value

    def diffusion_model(self, executor, x, timesteps, context, y, control, transformer_options, **kwargs):
        with on_features(executor.class_obj, self.sites.features, self._keep_feature):
            return executor(x, timesteps, context, y, control, transformer_options, **kwargs)

    def _keep_feature(self, block: int, output: torch.Tensor) -> None:
        self.record["feature", block, 0] = output
        self.unseen -= 1
        # Not behind an attention site: a patch that prepared the attention may wait for its output.
        if self.unseen == 0 and not self.to_the_end:
            raise _AllSeen


def attach(model_options: ModelOptions, patch) -> ModelOptions:
    """Add `patch.attn1_patch` and `patch.diffusion_model`, after all others, to options the caller owns, and return them."""
    transformer_options = model_options.setdefault("transformer_options", {})
    transformer_options.setdefault("patches", {}).setdefault("attn1_patch", []).append(patch.attn1_patch)
    add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "palimpsest", patch.diffusion_model, transformer_options)
    return model_options


def attention_site(options: dict) -> tuple[int, int] | None:
    """(output block, depth) of the self-attention an attn1_patch is called for, None outside the decoder."""
    side, block = options["block"]
    return (block, options["block_index"]) if side == "output" else None


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
