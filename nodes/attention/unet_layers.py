"""The transformer layers of a UNet, on both of its sides and in the middle."""

from __future__ import annotations

from typing import TYPE_CHECKING

from comfy.ldm.modules.diffusionmodules.openaimodel import Downsample, Upsample

from .unet_sites import decoder_depths

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher

Layer = tuple[str, int, int]  # "input", "middle" or "output", number of the block, depth within it


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
