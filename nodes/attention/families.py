"""Transformers whose attention can be read and overwritten, and what their tensors alone do not tell.

The layouts are those of ComfyUI's own model code, from 0.16.3 to 0.30.0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher

TEXT_FIRST, IMAGE_FIRST, CROSS = "text first", "image first", "cross"


@dataclass(frozen=True)
class Family:
    """name: as artists know it. order: of the tokens in one attention call; "cross" where text has a call of its own.

    patch: latent pixels along a side of an image token. multiple: image tokens are padded up to a multiple of it, at their end.
    refiners: attention calls without a block number come first and are none of the main blocks.
    caption_axis: channels of q and k, and the base of their frequencies, that turn with the number of text tokens, because the
    image's positions begin where the text's end.
    text_last: a prompt with fewer columns than the network reads stands at their end.
    pictures: what core calls further pictures of a prompt whose tokens would stand before or between the image's. Those of other
    families stand behind them.
    """

    name: str
    order: str
    patch: int = 2
    multiple: int = 1
    refiners: bool = False
    caption_axis: tuple[int, float] | None = None
    text_last: bool = False
    pictures: str = ""

    def grid(self, x: torch.Tensor) -> tuple[int, int, int]:
        """Frames, rows and columns of image tokens for a latent [B, C, H, W] or [B, C, T, H, W]."""
        frames = x.shape[2] if x.ndim == 5 else 1
        return frames, math.ceil(x.shape[-2] / self.patch), math.ceil(x.shape[-1] / self.patch)

    def text_tokens(self, columns: int) -> int:
        """Tokens that a prompt's columns take in an attention call."""
        return -(-columns // self.multiple) * self.multiple

    def turned(self, values: torch.Tensor, tokens: int) -> torch.Tensor:
        """q or k of image tokens [rows, heads, n, D] as they would be with `tokens` more text tokens before the image."""
        if self.caption_axis is None or tokens == 0:
            return values
        channels, base = self.caption_axis
        pairs = torch.arange(0, channels, 2, dtype=torch.float64) / channels
        angles = (tokens / base**pairs).to(torch.float32)
        cos, sin = (part.to(values.device) for part in (angles.cos(), angles.sin()))
        even, odd = values[..., 0:channels:2].float(), values[..., 1:channels:2].float()
        new = values.clone()
        new[..., 0:channels:2] = (even * cos - odd * sin).to(values)
        new[..., 1:channels:2] = (even * sin + odd * cos).to(values)
        return new


FLUX = Family("Flux.1", TEXT_FIRST)
# By the name of the class in comfy.model_base; a subclass counts as its nearest named ancestor.
FAMILIES = {
    "Flux": FLUX,
    "Flux2": Family("Flux.2", TEXT_FIRST, patch=1, text_last=True),
    "Chroma": Family("Chroma", TEXT_FIRST),
    "SD3": Family("SD3", TEXT_FIRST),
    "QwenImage": Family("Qwen-Image", TEXT_FIRST),
    "Lumina2": Family("Lumina 2", TEXT_FIRST, refiners=True, pictures="ref_latents"),
    "WAN21": Family("Wan", CROSS, pictures="reference_latent"),
    "CosmosPredict2": Family("Cosmos Predict2", CROSS),
    "Anima": Family("Anima", CROSS),
    "HiDream": Family("HiDream-I1", IMAGE_FIRST, pictures="image_cond"),
}
Z_IMAGE = Family("Z-Image", TEXT_FIRST, multiple=32, refiners=True, pictures="ref_latents")
# Their classes inherit from a family above, and their tokens are laid out in another way.
OTHER_LAYOUTS = frozenset(
    {
        "MageFlow",
        "ZImagePixelSpace",
        "ChromaRadiance",
        "WAN21_Vace",
        "WAN21_HuMo",
        "WAN21_SCAIL",
        "WAN22_S2V",
        "WAN22_Animate",
    }
)


def family_of(model: ModelPatcher) -> Family | None:
    """None for a model that is no transformer of a known layout."""
    names = [kind.__name__ for kind in type(model.model).__mro__]
    if names[0] in OTHER_LAYOUTS:
        return None
    name = next((name for name in names if name in FAMILIES), None)
    network = model.get_model_object("diffusion_model")
    if name == "WAN21" and getattr(network, "ref_conv", None) is None:
        return replace(FAMILIES[name], pictures="")  # it reads none
    if name == "SD3":
        return replace(FAMILIES[name], patch=network.patch_size)
    if name != "Lumina2":
        return FAMILIES.get(name)
    family = Z_IMAGE if getattr(network, "pad_tokens_multiple", None) else FAMILIES[name]
    return replace(family, caption_axis=(network.axes_dims[0], network.rope_embedder.theta))
