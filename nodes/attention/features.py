"""A UNet decoder's residual features, read and replaced: what out_layers of an output block gives, before the skip addition."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from comfy.patcher_extension import WrappersMP, add_wrapper_with_key

from .calls import AllSeen, Chunk, ModelOptions, Record, chunks_of, inject_rows, is_source_pass

if TYPE_CHECKING:
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel


def record_features(
    model_options: ModelOptions, blocks: Sequence[int], record: Record, all_seen: Callable[[], bool] = lambda: False
) -> None:
    """Keep ("feature", "output", block): [B, C, H, W]; leave the network at a block behind which all_seen() says nothing is read."""

    def keep(block: int, output: torch.Tensor) -> None:
        record["feature", "output", block] = output
        if all_seen():
            raise AllSeen

    def diffusion_model(executor, *args, **kwargs):
        with _on_features(executor.class_obj, blocks, keep):
            return executor(*args, **kwargs)

    _add_diffusion_model_wrapper(model_options, diffusion_model)


def inject_features(model_options: ModelOptions, blocks: Sequence[int], records: dict[Chunk, Record]) -> None:
    """Overwrite the features of these blocks, in the rows of chunks that have a record."""

    def diffusion_model(executor, x, timesteps, context, y, control, transformer_options, **kwargs):
        chunks = chunks_of(transformer_options)

        def replace(block: int, output: torch.Tensor) -> torch.Tensor:
            return inject_rows(output, records, ("feature", "output", block), chunks)

        with _on_features(executor.class_obj, () if is_source_pass(transformer_options) else blocks, replace):
            return executor(x, timesteps, context, y, control, transformer_options, **kwargs)

    _add_diffusion_model_wrapper(model_options, diffusion_model)


def _add_diffusion_model_wrapper(model_options: ModelOptions, wrapper: Callable) -> None:
    """Add the wrapper, after all others, to options the caller owns."""
    transformer_options = model_options.setdefault("transformer_options", {})
    add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "palimpsest.plug_and_play", wrapper, transformer_options)


@contextmanager
def _on_features(
    unet: UNetModel, blocks: Sequence[int], use: Callable[[int, torch.Tensor], torch.Tensor | None]
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
