"""Fine-tuning by low-rank differences (2106.09685): W + B A at every linear and convolutional layer, with W as it was."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize


class LowRank(nn.Module):
    def __init__(self, weight: Tensor, rank: int) -> None:
        super().__init__()
        inputs = weight[0].numel()
        rank = min(rank, len(weight), inputs)
        self.down = nn.Parameter(torch.randn(rank, inputs) / inputs**0.5)
        self.up = nn.Parameter(torch.zeros(len(weight), rank))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + (self.up @ self.down).view_as(weight)


def adapt(module: nn.Module, rank: int) -> nn.Module:
    """Freezes all that the module holds and lets every layer of it learn a difference."""
    module.requires_grad_(False)
    for layer in list(module.modules()):
        if isinstance(layer, nn.Linear | nn.Conv2d):
            parametrize.register_parametrization(layer, "weight", LowRank(layer.weight, rank))
    return module


def lora(module: nn.Module, prefix: str) -> dict[str, Tensor]:
    """What `adapt`'s layers have learnt, by the names that ComfyUI reads a LoRA's layers by."""
    weights = {}
    for name, layer in module.named_modules():
        if parametrize.is_parametrized(layer):
            change, shape = layer.parametrizations.weight[0], layer.weight.shape
            weights[f"{prefix}{name}.lora_down.weight"] = change.down.detach().view(-1, *shape[1:])
            weights[f"{prefix}{name}.lora_up.weight"] = change.up.detach().view(
                len(change.up), -1, *[1] * len(shape[2:])
            )
    return weights
