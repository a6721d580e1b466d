"""One evaluation of a source picture's row, for what a recorder reads from inside the UNet.

A source pass is marked in transformer_options, so that every injection, this pack's or a second one, leaves it alone.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol

import comfy.model_patcher
import comfy.samplers
import torch

if TYPE_CHECKING:
    from comfy.model_base import BaseModel

MARK = "palimpsest.source_pass"
WHAT_TO_DO = "Connect a plain or empty prompt to `source`."

# What was read, by kind and place, such as ("query", "output", 4, 0): [B, N, C].
Record = dict[tuple, torch.Tensor]
ModelOptions = dict[str, Any]
Area = tuple[int, ...] | None  # height, width, y, x in latent pixels, as core's conditions have it
# A UNet call's rows are one chunk for each condition: its list among those asked for together (positive, negative) and its
# uuid, which core lets the two lists share where it gives one the areas of the other.
Chunk = tuple[int, Any]


class Recorder(Protocol):
    record: Record

    def attach(self, model_options: ModelOptions) -> None:
        """Add what reads the values, after all other patches, to options the caller owns."""


class AllSeen(Exception):
    """Leaves a UNet call: nothing behind this point is asked for."""


def mark_source_pass(model_options: ModelOptions) -> ModelOptions:
    options = comfy.model_patcher.create_model_options_clone(model_options)
    options.setdefault("transformer_options", {})[MARK] = True
    return options


def is_source_pass(transformer_options: dict[str, Any]) -> bool:
    return MARK in transformer_options


def chunks_of(transformer_options: dict[str, Any]) -> list[Chunk]:
    return list(zip(transformer_options["cond_or_uncond"], transformer_options["uuids"], strict=True))


def record_source(
    calc_cond_batch: Callable,
    model: BaseModel,
    conds: list[dict],
    x: torch.Tensor,
    sigma: torch.Tensor,
    model_options: ModelOptions,
    recorder: Recorder,
    area: Area = None,
) -> torch.Tensor | None:
    """Let `recorder` read while the UNet evaluates x [B, C, H, W] at sigma [B] under conds.

    Returns the denoised prediction, None if the recorder left the UNet early.
    calc_cond_batch: comfy.samplers.calc_cond_batch, or the executor of a wrapper around it.
    area: the only part of x that the UNet is to see.
    """
    if any("area" in cond for cond in conds):
        raise ValueError(f"source: expected one prompt for the whole picture, got one with an area. {WHAT_TO_DO}")
    if area is not None:
        conds = [{**cond, "area": area} for cond in conds]
    active = sum(comfy.samplers.get_area_and_mult(cond, x, sigma) is not None for cond in conds)
    if active != 1:
        raise ValueError(
            f"source: expected one prompt for the whole picture at every step, got {active} active ones at sigma "
            f"{float(sigma[0]):.4f}. {WHAT_TO_DO}"
        )
    options = mark_source_pass(model_options)
    recorder.attach(options)
    denoised = None
    with suppress(AllSeen):
        (denoised,) = calc_cond_batch(model, [conds], x, sigma, options)
    return denoised
