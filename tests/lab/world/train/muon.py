"""Muon: momentum whose step is the nearest orthogonal matrix (Jordan 2024), for the matrices of a network; AdamW for the rest."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5
LIKE_ADAMW = 0.2  # the root mean square of a step, as AdamW's


class Muon(torch.optim.Optimizer):
    """Of parameters of two dimensions or more; a convolution is the matrix of its outputs by all that they read."""

    def __init__(self, parameters: Iterable[Tensor], lr: float, momentum: float = 0.95, weight_decay: float = 0.0):
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:
        for group in self.param_groups:
            shapes: dict[tuple[int, int], list[Tensor]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    shapes[(len(parameter), parameter[0].numel())].append(parameter)
            for (rows, columns), alike in shapes.items():
                for parameter in alike:
                    if "momentum" not in self.state[parameter]:
                        self.state[parameter]["momentum"] = torch.zeros_like(parameter)
                gradients = [parameter.grad for parameter in alike]
                momenta = [self.state[parameter]["momentum"] for parameter in alike]
                torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
                wanted = torch._foreach_lerp(gradients, momenta, group["momentum"])  # Nesterov's
                steps = orthogonal(torch.stack([step.reshape(rows, columns) for step in wanted]))
                torch._foreach_mul_(alike, 1 - group["lr"] * group["weight_decay"])
                rate = group["lr"] * LIKE_ADAMW * max(rows, columns) ** 0.5
                torch._foreach_add_(alike, [s.reshape(p.shape) for s, p in zip(steps, alike, strict=True)], alpha=-rate)


def orthogonal(matrices: Tensor) -> Tensor:
    """Of each of [N, rows, columns], nearly the matrix with the same singular vectors whose singular values are 1.

    Newton and Schulz's iteration, on the Gram matrix of the shorter side.
    """
    wide = matrices if matrices.shape[1] <= matrices.shape[2] else matrices.mT
    wide = wide.float() / (wide.float().norm(dim=(1, 2), keepdim=True) + 1e-12)
    gram = wide @ wide.mT
    unit = torch.eye(gram.shape[1], device=gram.device)
    product = unit
    a, b, c = COEFFICIENTS
    for _ in range(ITERATIONS):
        factor = a * unit + b * gram + c * gram @ gram
        product = factor @ product
        gram = factor @ gram @ factor
    result = product @ wide
    return result if matrices.shape[1] <= matrices.shape[2] else result.mT


def optimisers(
    model: nn.Module, rate: float, *, other_rate: float, faster: Callable[[str], float] = lambda _name: 1.0
) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of what is trained, AdamW for biases, gains, embeddings and depthwise convolutions.

    `faster`: by name, the factor of a parameter's rate.
    """
    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    matrices: dict[float, list[Tensor]] = defaultdict(list)
    others: dict[float, list[Tensor]] = defaultdict(list)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            is_matrix = parameter.ndim >= 2 and min(len(parameter), parameter[0].numel()) > 9
            (matrices if is_matrix and id(parameter) not in tables else others)[faster(name)].append(parameter)
    groups = [
        [{"params": some, "lr": r * f} for f, some in parts.items()]
        for r, parts in ((rate, matrices), (other_rate, others))
    ]
    adam = torch.optim.AdamW(groups[1], other_rate, betas=(0.9, 0.98), weight_decay=0.0)
    return [Muon(groups[0], rate, weight_decay=0.01), adam]
