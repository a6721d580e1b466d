"""A UNet decoder's residual features, read and replaced: what out_layers of an output block gives, before the skip addition."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack

import torch

from .calls import Chunk, ModelOptions, Record, chunks_of, inject_rows, is_source_pass
from .unet_layers import add_unet_wrapper, feature_module, hooked


def record_features(model_options: ModelOptions, blocks: Sequence[int], record: Record) -> None:
    """Keep ("feature", "output", block): [B, C, H, W]."""

    def keep(block: int, output: torch.Tensor, transformer_options: dict) -> None:
        record["feature", "output", block] = output

    _on_features(model_options, blocks, keep)


def inject_features(model_options: ModelOptions, blocks: Sequence[int], records: dict[Chunk, Record]) -> None:
    """Overwrite the features of these blocks, in the rows of chunks that have a record."""

    def replace(block: int, output: torch.Tensor, transformer_options: dict) -> torch.Tensor | None:
        if is_source_pass(transformer_options):
            return None
        return inject_rows(output, records, ("feature", "output", block), chunks_of(transformer_options))

    _on_features(model_options, blocks, replace)


def _on_features(
    model_options: ModelOptions, blocks: Sequence[int], use: Callable[[int, torch.Tensor, dict], torch.Tensor | None]
) -> None:
    """In each call of the UNet, call use(block, output, transformer_options); what it returns, if anything, is the output instead."""

    def diffusion_model(executor, x, timesteps, context, y, control, transformer_options, **kwargs):
        with ExitStack() as stack:
            for block in blocks:
                module = feature_module(executor.class_obj, block)
                stack.enter_context(hooked(module, lambda output, block=block: use(block, output, transformer_options)))
            return executor(x, timesteps, context, y, control, transformer_options, **kwargs)

    if blocks:
        add_unet_wrapper(model_options, diffusion_model)
