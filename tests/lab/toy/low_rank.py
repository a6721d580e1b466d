"""Fine-tuning by low-rank differences (2106.09685): W + B A at every linear and convolutional layer, with W as it was."""

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize


class LowRank(nn.Module):
    def __init__(self, weight: Tensor, rank: int):
        super().__init__()
        fan_in = weight[0].numel()
        self.down = nn.Parameter(torch.randn(rank, fan_in) / fan_in**0.5)
        self.up = nn.Parameter(torch.zeros(len(weight), rank))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + (self.up @ self.down).view_as(weight)


def adapt(module: nn.Module, rank: int) -> None:
    """Freezes all that module holds and lets every layer of it learn a difference."""
    module.requires_grad_(False)
    for layer in list(module.modules()):
        if isinstance(layer, nn.Linear | nn.Conv2d):
            parametrize.register_parametrization(layer, "weight", LowRank(layer.weight, rank))


def differences(module: nn.Module, prefix: str) -> dict[str, Tensor]:
    """What adapt's layers have learnt, by the names of their weights: `<weight>.down` [rank, in] and `<weight>.up` [out, rank]."""
    return {
        f"{prefix}{name}.weight.{part}": getattr(layer.parametrizations.weight[0], part).detach()
        for name, layer in module.named_modules()
        if parametrize.is_parametrized(layer)
        for part in ("down", "up")
    }
