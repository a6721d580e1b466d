"""The network that blends a reference picture into the text state of a noun (FastComposer, 2305.10431; also Face-diffuser)."""

from __future__ import annotations

import torch


class MLP(torch.nn.Module):
    def __init__(self, width_in: int, width: int, dtype: torch.dtype, device: torch.device, operations: type):
        super().__init__()
        self.layernorm = operations.LayerNorm(width_in, dtype=dtype, device=device)
        self.fc1 = operations.Linear(width_in, width, dtype=dtype, device=device)
        self.fc2 = operations.Linear(width, width, dtype=dtype, device=device)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(torch.nn.functional.gelu(self.fc1(self.layernorm(x))))


class Postfuse(torch.nn.Module):
    """Text states [N, width] and embeddings [N, width] of one picture each -> the states that take their place [N, width]."""

    def __init__(self, width: int, dtype: torch.dtype, device: torch.device, operations: type):
        super().__init__()
        self.mlp1 = MLP(2 * width, width, dtype, device, operations)
        self.mlp2 = MLP(width, width, dtype, device, operations)
        self.layer_norm = operations.LayerNorm(width, dtype=dtype, device=device)

    def forward(self, text: torch.Tensor, picture: torch.Tensor) -> torch.Tensor:
        x = self.mlp1(torch.cat([text, picture], dim=-1)) + text
        return self.layer_norm(self.mlp2(x) + x)
