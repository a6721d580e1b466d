"""Core's context windows: a batch of frames (or a picture) that a model sees in overlapping parts, one call after another."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from ..attention.calls import ModelOptions

if TYPE_CHECKING:
    from comfy.context_windows import IndexListContextWindow

Part = tuple[int, tuple[int, ...]]  # a dimension of the latent, and the indices along it that a call sees

WHOLE: Part = (0, ())


def part_of(model_options: ModelOptions) -> Part:
    """The part of the latent that the present call sees. Core names it in the options."""
    window: IndexListContextWindow | None = model_options["transformer_options"].get("context_window")
    if window is None:
        return WHOLE
    # The window itself says which index it has before its own ones, so that it can be asked for them all.
    return window.dim, tuple(window.get_tensor(torch.arange(window.total_frames), dim=0).tolist())


def taken(part: Part, tensor: torch.Tensor) -> torch.Tensor:
    """This part of a tensor that is as long as the latent along the part's dimension. One row stands for all rows."""
    dim, indices = part
    if part == WHOLE or (dim == 0 and len(tensor) == 1):
        return tensor
    return tensor.index_select(dim, torch.tensor(indices, device=tensor.device))


def resized_conds(
    conds: list[dict[str, Any]], whole: torch.Tensor, part: Part, model_options: ModelOptions
) -> list[dict[str, Any]]:
    """Conditions of the whole latent as the present call, for a part of it, is to see them."""
    window = model_options["transformer_options"].get("context_window")
    if window is not None:
        return model_options["context_handler"].get_resized_cond(conds, whole, window)
    if part != WHOLE and any(rows_of(value) > 1 for cond in conds for value in cond["model_conds"].values()):
        raise ValueError(
            "source: expected one prompt for all pictures of the batch where another pack shows them to the model a few at a time, got a prompt "
            "for each. Connect one plain prompt to `source`."
        )
    return conds


def rows_of(value: Any) -> int:
    """Of one of core's condition values: how many pictures it tells apart."""
    return len(value.cond) if isinstance(value.cond, torch.Tensor) and value.cond.ndim else 1
