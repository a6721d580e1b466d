"""The toy's CLIP pair in ComfyUI's own classes, in the layout of a published CLIP: both encoders in one file.

Prior, decoder and upsamplers are files in the published layouts, which the pack's own loaders read.
"""

import json
from pathlib import Path

import comfy.clip_vision
import comfy.ops
import comfy.sd
import torch
from comfy.clip_model import CLIPTextModel, CLIPVisionModelProjection
from safetensors.torch import load_file

from .general import TEXT_CONFIG as GENERAL_TEXT_CONFIG
from .general import WEIGHTS, assembled_clip

WIDTH = 64  # of text states and of both embeddings
VISION_CONFIG = Path(__file__).parent / "clip_vision.json"
TEXT_CONFIG = {**GENERAL_TEXT_CONFIG, "hidden_size": WIDTH, "intermediate_size": 4 * WIDTH}
FILES = {
    part: WEIGHTS / f"unclip_{part}.safetensors"
    for part in ("clip", "prior", "decoder", "upsampler_64", "upsampler_128")
}


def new_text_encoder() -> CLIPTextModel:
    return CLIPTextModel(TEXT_CONFIG, torch.float32, "cpu", comfy.ops.disable_weight_init)


def new_image_encoder() -> CLIPVisionModelProjection:
    config = json.loads(VISION_CONFIG.read_text())
    return CLIPVisionModelProjection(config, torch.float32, "cpu", comfy.ops.disable_weight_init)


def load_clip(file: Path = FILES["clip"]) -> tuple[comfy.sd.CLIP, comfy.clip_vision.ClipVisionModel]:
    """As Load CLIP and Load CLIP Vision give the two halves of a published CLIP."""
    weights = {name: value.float() for name, value in load_file(file).items()}
    ids = weights.pop("toy.token_ids")
    text = {name: weights.pop(name) for name in list(weights) if name.startswith("text_")}
    vision = comfy.clip_vision.ClipVisionModel(str(VISION_CONFIG))
    vision.load_sd(weights)
    return assembled_clip(text, ids, TEXT_CONFIG), vision
