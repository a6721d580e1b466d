"""Which model a pixel belongs to: saliency maps and an artist's masks as weights, and the models' predictions under them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

MASK_USES = ("restrict", "force", "decide")


@dataclass(frozen=True)
class Mask:
    """values: [B or 1, H, W] in 0..1 at any size. restrict: only there the expert may act. force: there it always acts.
    decide: there and nowhere else, whatever is salient."""

    values: torch.Tensor
    use: str

    def __post_init__(self) -> None:
        if self.values.ndim not in (2, 3):
            raise ValueError(
                f"mask: expected [pictures, height, width], got {tuple(self.values.shape)}. Connect a mask of one channel."
            )

    def resized(self, latent: torch.Tensor) -> torch.Tensor:
        """[B, ..., H, W] for a latent [B, C, ..., H, W]."""
        values = self.values.to(torch.float32).clamp(0.0, 1.0)
        values = values[None, None] if values.ndim == 2 else values[:, None]
        if len(values) not in (1, len(latent)):
            raise ValueError(
                f"mask: expected one for all pictures or one for each of {len(latent)}, got {len(values)}. "
                "Take one of them, or a batch of the latent's size."
            )
        values = F.interpolate(values, latent.shape[-2:], mode="bilinear", align_corners=False)[:, 0]
        values = values.view(len(values), *[1] * (latent.ndim - 4), *values.shape[1:])
        return values.expand(len(latent), *latent.shape[2:])


@dataclass(frozen=True)
class Decision:
    """How one step was shared out: [M, B, ..., H, W] each, over the general model and then `experts`, by their numbers."""

    log_maps: torch.Tensor
    weights: torch.Tensor
    experts: tuple[int, ...]

    @property
    def parts(self) -> dict[int, torch.Tensor]:
        """Each expert's weights [B, ..., H, W], by its number."""
        return dict(zip(self.experts, self.weights[1:], strict=True))


# A mask at the latent's size: its use and its values [B, ..., H, W]; None where an expert has none.
Resized = tuple[str, torch.Tensor] | None


def keeps_out(mask: Resized, hard: bool) -> bool:
    """Whether an expert with this mask has no place anywhere. A hard mode rounds masks."""
    if mask is None or mask[0] == "force":
        return False
    return not bool((mask[1] >= 0.5 if hard else mask[1] > 0.0).any())


def hard_weights(log_maps: torch.Tensor, masks: Sequence[Resized]) -> torch.Tensor:
    """One-hot weights [M, B, ..., H, W]: the most salient model's; ties go to the first, model 0 being the general one.

    log_maps: [M, B, ..., H, W]. masks: those of models 1...; a pixel is inside from 0.5 on, and where two masks claim it,
    the later expert has it.
    """
    candidates = log_maps.clone()
    for model, (use, inside) in _masked(masks):
        if use != "force":
            outside = inside < 0.5 if use == "restrict" else torch.ones_like(inside, dtype=torch.bool)
            candidates[model].masked_fill_(outside, -torch.inf)
    winner = candidates.argmax(0)
    for model, (use, inside) in _masked(masks):
        if use != "restrict":
            winner = winner.masked_fill(inside >= 0.5, model)
    return torch.stack([winner == model for model in range(len(log_maps))]).float()


def soft_weights(log_maps: torch.Tensor, masks: Sequence[Resized], temperature: float) -> torch.Tensor:
    """Weights [M, B, ..., H, W] that add up to 1: in proportion to saliency to the power 1 / temperature.

    Temperature 1 weighs by saliency, 0 is the hard mask, and towards infinity it becomes the plain average.
    """
    if temperature == 0.0:
        return hard_weights(log_maps, masks)
    logits = log_maps / temperature
    for model, (use, inside) in _masked(masks):
        if use != "force":
            logits[model] += inside.log() if use == "restrict" else -torch.inf
    weights = torch.softmax(logits, 0)
    for model, (use, inside) in _masked(masks):
        if use != "restrict":
            weights = weights * (1.0 - inside)
            weights[model] += inside
    return weights


def _masked(masks: Sequence[Resized]) -> list[tuple[int, tuple[str, torch.Tensor]]]:
    return [(model, mask) for model, mask in enumerate(masks, 1) if mask is not None]


def blend(predictions: Sequence[torch.Tensor], weights: torch.Tensor, hard: bool) -> torch.Tensor:
    """Predictions [B, C, ..., H, W] under weights [M, B, ..., H, W]; a hard mask gathers, so every value is one model's own."""
    result = predictions[0] if hard else predictions[0] * weights[0].unsqueeze(1)
    for prediction, weight in zip(predictions[1:], weights[1:], strict=True):
        weight = weight.unsqueeze(1)
        result = torch.where(weight > 0.5, prediction, result) if hard else result + prediction * weight
    return result
