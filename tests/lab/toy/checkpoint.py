"""What the trainings share: initial weights, learning-rate schedule, resumable state."""

import math
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn


def initialise(module: nn.Module) -> None:
    """ComfyUI's layers skip PyTorch's initialisation, since they expect a checkpoint."""
    for layer in module.modules():
        for kind in (nn.Conv2d, nn.ConvTranspose2d, nn.Linear, nn.GroupNorm, nn.LayerNorm, nn.Embedding):
            if isinstance(layer, kind):
                kind.reset_parameters(layer)


def keep_norm_inputs(encoder: nn.Module) -> None:
    """CLIP's layers in ComfyUI add in place to what their norms keep for the backward pass: the norms get a copy."""
    for layer in encoder.layers:
        for norm in (layer.layer_norm1, layer.layer_norm2):
            norm.register_forward_pre_hook(lambda _module, inputs: (inputs[0].clone(),))


def warmup_cosine(warmup: int, total: int) -> Callable[[int], float]:
    return lambda step: min(1.0, (step + 1) / warmup) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / total)))


def save_checkpoint(path: Path, state: dict, step: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    torch.save({"step": step, **{key: value.state_dict() for key, value in state.items()}}, partial)
    partial.replace(path)


def load_checkpoint(path: Path, state: dict) -> int:
    """Restores every entry of state and returns the step to go on from: 0 without a checkpoint."""
    if not path.exists():
        return 0
    saved = torch.load(path, weights_only=True)
    for key, value in state.items():
        value.load_state_dict(saved[key])
    return saved["step"]
