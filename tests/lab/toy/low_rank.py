"""Fine-tuning by low-rank differences (2106.09685): W + B A at every linear and convolutional layer, with W as it was."""

import re

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


def lora(tuned: dict[str, Tensor], general: dict[str, Tensor], vocabulary: int) -> dict[str, Tensor]:
    """The tensors of a tuned toy's file as those of a LoRA that ComfyUI's Load LoRA puts on the general model.

    vocabulary: rows of the token embedding, of which both files hold only those of `toy.token_ids`.
    """
    names = {"model.diffusion_model.": "diffusion_model.", "cond_stage_model.": "text_encoders.clip_l."}
    weights = {}
    for name, value in tuned.items():
        if found := re.fullmatch(rf"({'|'.join(map(re.escape, names))})(.+)\.weight\.(down|up)", name):
            prefix, layer, part = found.groups()
            weights[f"{names[prefix]}{layer}.lora_{part}.weight"] = value
    table = "transformer.text_model.embeddings.token_embedding"
    rows = [torch.zeros(vocabulary, tuned[f"cond_stage_model.{table}.weight"].shape[1]) for _ in range(2)]
    for embedding, file in zip(rows, (general, tuned), strict=True):
        embedding[file["toy.token_ids"].long()] = file[f"cond_stage_model.{table}.weight"].float()
    known = torch.zeros(vocabulary, 1)
    known[tuned["toy.token_ids"].long()] = 1
    weights[f"text_encoders.clip_l.{table}.diff"] = (known * (rows[1] - rows[0])).half()
    return weights
