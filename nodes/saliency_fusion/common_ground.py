"""Which models can be blended step by step: those whose latents and noise levels mean the same."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import comfy.model_sampling
import torch

from .windows import TOLERANCE, Window

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher

# x = x0 + sigma noise, whatever the network predicts; and x = (1 - sigma) x0 + sigma noise.
NOISE_ADDED, FLOW = "noise added to the picture (eps, v, x0, EDM)", "noise mixed with the picture (flow)"


def noising(model: ModelPatcher) -> str:
    sampling = model.get_model_object("model_sampling")
    if isinstance(sampling, comfy.model_sampling.IMG_TO_IMG | comfy.model_sampling.IMG_TO_IMG_FLOW):
        return "a picture turned into another one"
    if isinstance(sampling, comfy.model_sampling.CONST):
        return FLOW
    if isinstance(sampling, comfy.model_sampling.EPS):
        return NOISE_ADDED
    return "+".join(base.__name__ for base in type(sampling).__bases__)


def require_common_ground(model: ModelPatcher, expert: ModelPatcher, sockets: tuple[str, str]) -> None:
    """Raise ValueError unless both models' predictions for one noisy latent can be blended. sockets: their names."""
    formats = [m.get_model_object("latent_format") for m in (model, expert)]
    if type(formats[0]) is not type(formats[1]):
        own, other = (f"{type(f).__name__} ({f.latent_channels} channels)" for f in formats)
        raise ValueError(
            f"{sockets[1]}: expected a model with the latents of `{sockets[0]}`, {own}, got one with {other}. Predictions "
            "in different latent spaces cannot be mixed. Choose two models of the same family."
        )
    own, other = noising(model), noising(expert)
    if own != other:
        raise ValueError(
            f"{sockets[1]}: expected a model sampled like `{sockets[0]}`, by {own}, got one by {other}. "
            "The same latent would not be equally noisy for both. Choose two models of the same kind."
        )
    ranges = [
        (float(s.sigma_min), float(s.sigma_max))
        for s in (m.get_model_object("model_sampling") for m in (model, expert))
    ]
    if max(low for low, _ in ranges) >= min(high for _, high in ranges):
        (low, high), (other_low, other_high) = ranges
        raise ValueError(
            f"{sockets[1]}: expected a model for noise levels that `{sockets[0]}` has, sigma {low:.4g} to {high:.4g}, got one "
            f"for {other_low:.4g} to {other_high:.4g}. Choose two models of the same family."
        )


def require_levels(expert: ModelPatcher, window: Window, sigmas: torch.Tensor, socket: str) -> None:
    """Raise ValueError if a sampler's sigmas call for the expert at a level above all that it was trained at."""
    first = min(window.start, float(sigmas.max()))
    highest = float(expert.get_model_object("model_sampling").sigma_max)
    if first > highest * (1.0 + 10 * TOLERANCE):
        raise ValueError(
            f"{socket}: expected a model for sigma {first:.4g}, where it starts, got one for up to {highest:.4g}. "
            "Let it start later (at a lower sigma), or use the sigmas of a scheduler that has this model connected."
        )


def require_different(models: Sequence[ModelPatcher]) -> None:
    for i, model in enumerate(models):
        if any(model is other for other in models[:i]):
            raise ValueError(
                f"model_expert: expected a different model for expert {i}, got one that is already connected. A "
                "model fused with itself costs twice as much and changes nothing. Load another checkpoint, or "
                "put a LoRA on this one."
            )
