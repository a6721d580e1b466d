"""The decoder's conditioning: a text and an image embedding (2204.06125, section 2.1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from ...diffusion.conditioning import Conditioning
from ...text.image_embedding import image_embeds
from ...text.text_states import text_states
from .decoder_model import UnCLIPDecoder
from .decoder_network import DecoderNetwork

if TYPE_CHECKING:
    from comfy.clip_vision import Output
    from comfy.model_patcher import ModelPatcher
    from comfy.sd import CLIP


@dataclass(frozen=True)
class Guidance:
    """positive: the text with the embedding; negative: the empty text without one, for which the decoder has learned a substitute.

    unread: how many tokens at the end of the text the decoder does not read.
    """

    positive: Conditioning
    negative: Conditioning
    unread: int


def unclip_conditioning(
    clip: CLIP, model: ModelPatcher | None, text: str, clip_vision_output: Output | None
) -> Guidance:
    """model: the decoder, if it is known which: then text and embedding must have its widths."""
    network = None if model is None else _network(model)
    embedding = {}
    if clip_vision_output is not None:
        embeds = image_embeds(clip_vision_output, "clip_vision_output")
        if network is not None:
            _require_width(embeds, network.image_width)
        entry = {"clip_vision_output": clip_vision_output, "strength": 1.0, "noise_augmentation": 0.0}
        embedding = {"unclip_conditioning": [entry]}
    states = text_states(clip, [text, ""], None if network is None else network.text_width, "the decoder")
    given, empty = (
        {"pooled_output": states.pooled[i : i + 1], "attention_mask": states.mask[i : i + 1]} for i in range(2)
    )
    return Guidance(
        [[states.states[:1], given | embedding]],
        [[states.states[1:], empty]],
        states.unread[0],
    )


def _network(model: ModelPatcher) -> DecoderNetwork:
    if not isinstance(model.model, UnCLIPDecoder):
        raise ValueError(
            f"model: expected an unCLIP decoder, got {type(model.model).__name__}. Connect the model of unCLIP Load Decoder; for SD2.1 "
            "unCLIP use the core node unCLIPConditioning."
        )
    return model.model.diffusion_model


def _require_width(embeds: torch.Tensor, width: int) -> None:
    if embeds.shape[1] != width:
        usual = " of CLIP ViT-L/14" if width == 768 else ""
        raise ValueError(
            f"clip_vision_output: expected image embeddings{usual}, [batch, {width}], which the decoder was trained with, got {list(embeds.shape)}. "
            "Encode the picture with the CLIP vision model that belongs to the decoder, or sample the prior that does."
        )
