"""The subject encoder of a checkpoint: CLIP's image encoder and the postfuse network, in one model that ComfyUI manages."""

from __future__ import annotations

import re
from dataclasses import dataclass

import comfy.model_management
import comfy.model_patcher
import comfy.ops
import torch
from comfy.clip_model import CLIPVisionModelProjection
from comfy.model_patcher import ModelPatcher

from ..files.weight_file import assign, require_weights
from .postfuse import Postfuse

IMAGE_ENCODER, POSTFUSE = "image_encoder", "postfuse_module"
HEAD_WIDTH = 64  # of every attention head of CLIP ViT-L/14
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class SubjectModel(torch.nn.Module):
    """Both networks, named as in published files."""

    def __init__(self, vision: dict, dtype: torch.dtype, device: torch.device, operations: type):
        super().__init__()
        self.image_encoder = CLIPVisionModelProjection(vision, dtype, device, operations)
        self.postfuse_module = Postfuse(vision["projection_dim"], dtype, device, operations)


@dataclass(frozen=True)
class SubjectEncoder:
    """width: of the text states it takes and gives; image_size: of the square pictures it takes, in pixels."""

    patcher: ModelPatcher
    width: int
    image_size: int

    def embed(self, pictures: torch.Tensor) -> torch.Tensor:
        """[N, 3, image_size, image_size] in [0, 1] -> CLIP's projected embeddings [N, width], not normalised."""
        x = self._ready(pictures)
        mean, std = (torch.tensor(values, device=x.device).view(1, 3, 1, 1) for values in (MEAN, STD))
        return self._done(self.patcher.model.image_encoder(pixel_values=(x - mean) / std)[2])

    def fuse(self, text: torch.Tensor, pictures: torch.Tensor) -> torch.Tensor:
        """Text states [N, width] with embeddings [N, width] -> the states that take their place [N, width]."""
        return self._done(self.patcher.model.postfuse_module(self._ready(text), self._ready(pictures)))

    def _ready(self, x: torch.Tensor) -> torch.Tensor:
        comfy.model_management.load_models_gpu([self.patcher])
        return x.to(self.patcher.load_device, torch.float32)

    def _done(self, x: torch.Tensor) -> torch.Tensor:
        return x.to(comfy.model_management.intermediate_device(), torch.float32)


def subject_encoder(weights: dict[str, torch.Tensor], dtype: torch.dtype | None = None) -> SubjectEncoder:
    """Made of the tensors image_encoder.* and postfuse_module.*. ValueError if one is missing or has another shape."""
    vision = _vision_config(weights)
    load_device = comfy.model_management.text_encoder_device()
    offload_device = comfy.model_management.text_encoder_offload_device()
    dtype = dtype or comfy.model_management.text_encoder_dtype(load_device)
    meta = torch.device("meta")
    model = SubjectModel(vision, dtype, meta, comfy.ops.manual_cast).eval()
    # torch's layers tell the shapes: ComfyUI's have no weights before a file is read if dynamic VRAM is on.
    shell = SubjectModel(vision, dtype, meta, torch.nn)
    expected = {name: value.shape for name, value in shell.state_dict().items()}
    require_weights("the subject encoder", expected, weights)
    assign(model, {name: weights[name] for name in expected}, dtype, offload_device)
    patcher = comfy.model_patcher.CoreModelPatcher(model, load_device=load_device, offload_device=offload_device)
    return SubjectEncoder(patcher, vision["projection_dim"], vision["image_size"])


def _vision_config(weights: dict[str, torch.Tensor]) -> dict:
    """The configuration of CLIP's image encoder, read from the shapes of its weights."""
    embeddings = f"{IMAGE_ENCODER}.vision_model.embeddings."
    layer = re.compile(rf"{IMAGE_ENCODER}\.vision_model\.encoder\.layers\.(\d{{1,3}})\.")
    telling = {
        "patch": f"{embeddings}patch_embedding.weight",
        "positions": f"{embeddings}position_embedding.weight",
        "projection": f"{IMAGE_ENCODER}.visual_projection.weight",
        "mlp": f"{IMAGE_ENCODER}.vision_model.encoder.layers.0.mlp.fc1.weight",
    }
    for name, dimensions in zip(telling.values(), (4, 2, 2, 2), strict=True):
        if name not in weights or weights[name].ndim != dimensions:
            raise ValueError(f"the subject encoder has no {name} of {dimensions} dimensions")
    shapes = {key: weights[name].shape for key, name in telling.items()}
    width, channels, patch, _ = shapes["patch"]
    return {
        "model_type": "clip_vision_model",
        "hidden_act": "quick_gelu",
        "hidden_size": width,
        "num_channels": channels,
        "patch_size": patch,
        "image_size": round((shapes["positions"][0] - 1) ** 0.5) * patch,
        "intermediate_size": shapes["mlp"][0],
        "num_attention_heads": max(width // HEAD_WIDTH, 1),
        "num_hidden_layers": 1 + max(int(match[1]) for name in weights if (match := layer.match(name))),
        "projection_dim": shapes["projection"][0],
    }
