"""The toy world's CLIP pair in ComfyUI's own classes, in the layout of a published CLIP: both encoders in one file.

Prior, decoder and upsamplers are files in the published layouts, which the pack's own loaders read.
"""

from __future__ import annotations

import json
from pathlib import Path

import comfy.clip_vision
import comfy.ops
import comfy.sd
import torch
from comfy.clip_model import CLIPVisionModelProjection
from safetensors.torch import load_file

from .general import WEIGHTS, assembled_clip, under

DRAWN, SEEN = 32, 64  # pixels of what the decoder draws, and of what the image encoder sees
FILES = {part: f"unclip_{part}.safetensors" for part in ("clip", "prior", "decoder", "upsampler_64", "upsampler_128")}
VISION_CONFIG = Path(__file__).parent / "clip_vision.json"


def new_image_encoder() -> CLIPVisionModelProjection:
    config = json.loads(VISION_CONFIG.read_text())
    return CLIPVisionModelProjection(config, torch.float32, "cpu", comfy.ops.disable_weight_init)


def load_clip(folder: Path = WEIGHTS) -> tuple[comfy.sd.CLIP, comfy.clip_vision.ClipVisionModel]:
    """As Load CLIP and Load CLIP Vision give the two halves of a published CLIP."""
    weights = load_file(folder / FILES["clip"])
    ids = weights.pop("toy.token_ids")
    vision = comfy.clip_vision.ClipVisionModel(str(VISION_CONFIG))
    vision.load_sd({key: value.float() for key, value in weights.items() if key.startswith("vi")})
    text = {key: value for key, value in under("", weights).items() if key.startswith("text_")}
    return assembled_clip(text, ids), vision
