"""The places of a UNet whose values are read and overwritten, on both of its sides and in the middle."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import Downsample, Upsample
from comfy.patcher_extension import WrappersMP, add_wrapper_with_key

from .calls import AllSeen, ModelOptions
from .unet_sites import decoder_depths

if TYPE_CHECKING:
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
    from comfy.model_patcher import ModelPatcher

KEY = "palimpsest.unet"
Layer = tuple[str, int, int]  # "input", "middle" or "output", number of the block, depth within it
SIDES = ("input", "middle", "output")


def attention_layers(model: ModelPatcher) -> dict[Layer, int]:
    """Every layer with self- and cross-attention, and how many times coarser than the latent it works.

    Raises ValueError for a model that is no image UNet.
    """
    decoder_depths(model)
    unet = model.get_model_object("diffusion_model")
    blocks = [("input", i, block) for i, block in enumerate(unet.input_blocks)]
    blocks += [("middle", 0, unet.middle_block or ())]
    blocks += [("output", i, block) for i, block in enumerate(unet.output_blocks)]
    layers: dict[Layer, int] = {}
    factor = 1
    for side, number, block in blocks:
        for module in block:
            if isinstance(module, Downsample):
                factor *= 2
            elif isinstance(module, Upsample):
                factor //= 2
            for depth, transformer in enumerate(getattr(module, "transformer_blocks", ())):
                if transformer.attn2 is not None and not transformer.disable_self_attn:
                    layers[side, number, depth] = factor
    return layers


def layer_of(options: dict) -> Layer:
    """The layer that an attention patch is called for."""
    return (*options["block"], options["block_index"])


def feature_module(unet: UNetModel, block: int) -> torch.nn.Module:
    """The module of an output block that gives its residual features."""
    # The last of out_layers, because a ResBlock with scale-shift norm does not call them as a whole.
    return unet.output_blocks[block][0].out_layers[-1]


def leave_behind(model_options: ModelOptions, layers: Iterable[Layer], features: Iterable[int] = ()) -> None:
    """End each call of the UNet, by AllSeen, behind the last of these layers and of these output blocks' features.

    Behind the whole module that a layer is part of: patches that prepared its attention wait for its output.
    """
    places = [(SIDES.index(side), block, 1) for side, block, _ in layers] + [(2, block, 0) for block in features]
    side, block, is_attention = max(places)

    def diffusion_model(executor, *args, **kwargs):
        unet = executor.class_obj
        if is_attention:
            modules = unet.middle_block if side == 1 else (unet.input_blocks, None, unet.output_blocks)[side][block]
            last = next(module for module in modules if hasattr(module, "transformer_blocks"))
        else:
            last = feature_module(unet, block)
        with hooked(last, _leave):
            return executor(*args, **kwargs)

    add_unet_wrapper(model_options, diffusion_model)


def _leave(output: torch.Tensor) -> None:
    raise AllSeen


def add_unet_wrapper(model_options: ModelOptions, wrapper: Callable) -> None:
    """Add a wrapper of the network, after all others, to options the caller owns."""
    transformer_options = model_options.setdefault("transformer_options", {})
    add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, KEY, wrapper, transformer_options)


@contextmanager
def hooked(module: torch.nn.Module, use: Callable[[torch.Tensor], torch.Tensor | None]) -> Iterator[None]:
    """While this context lasts, call use(output) behind the module; what it returns, if anything, is the output instead."""
    handle = module.register_forward_hook(lambda _, args, output: use(output))
    try:
        yield
    finally:
        handle.remove()
