"""A UNet's cross-attention as explicit probabilities: read, and changed beside whatever else is patched in.

ComfyUI repeats a prompt's columns to batch it with a longer one, and other packs' attn2_patch may append columns of their own.
A layer's probabilities are taken over all of them, and folded back to the prompt's own columns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from comfy.ldm.modules.attention import optimized_attention

from .calls import ModelOptions, Record
from .unet_layers import Layer, add_unet_wrapper

COLUMNS = "palimpsest.context_columns"


@dataclass(frozen=True)
class CrossCall:
    """One call of a layer's cross-attention: projected q, k, v [rows, N, C] and what it gives without us.

    columns: of the prompt, before ComfyUI repeats it.
    """

    layer: Layer
    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    output: torch.Tensor
    options: dict
    columns: int

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the layer's picture."""
        return tuple(self.options["activations_shape"][2:])

    def picture(self, output: torch.Tensor) -> torch.Tensor:
        """What of an output belongs to the picture: all."""
        return output

    def probabilities(self, rows: slice) -> torch.Tensor:
        """softmax(q k^T / sqrt(d)) [rows, heads, N, columns] in float32, folded to a prompt's own columns."""
        q, k = (_heads(t[rows], self.options["n_heads"]).float() for t in (self.q, self.k))
        attention = (q @ k.mT * q.shape[-1] ** -0.5).softmax(-1)
        repeats = self.options[COLUMNS] // self.columns
        return attention[..., : repeats * self.columns].unflatten(-1, (repeats, self.columns)).sum(-2)

    def applied(self, probabilities: torch.Tensor, rows: slice) -> torch.Tensor:
        """What probabilities [rows, heads, N, columns] gather from v: [rows, N, C]."""
        v = _heads(self.v[rows], self.options["n_heads"])[:, :, : probabilities.shape[-1]]
        return (probabilities.to(v) @ v).transpose(1, 2).flatten(2)


def _heads(tensor: torch.Tensor, heads: int) -> torch.Tensor:
    return tensor.unflatten(-1, (heads, -1)).transpose(1, 2)


def on_cross_attention(
    model_options: ModelOptions, layers: Iterable[Layer], columns: int, use: Callable[[CrossCall], torch.Tensor]
) -> None:
    """Let use(call) give the output of each of these layers for a prompt of so many columns; the options are the caller's own.

    A replacement that is there already is asked first, and its output stands in the call.
    """
    transformer_options = model_options.setdefault("transformer_options", {})
    replace = transformer_options.setdefault("patches_replace", {}).setdefault("attn2", {})
    for layer in layers:
        replace[layer] = _Replacement(layer, replace.get(layer, replace.get(layer[:2])), columns, use)
    add_unet_wrapper(model_options, _note_columns)


@dataclass(frozen=True)
class _Replacement:
    layer: Layer
    previous: Callable | None
    columns: int
    use: Callable[[CrossCall], torch.Tensor]

    def __call__(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, options: dict) -> torch.Tensor:
        if self.previous is not None:
            output = self.previous(q, k, v, options)
        else:
            precision = options["attn_precision"]
            output = optimized_attention(
                q, k, v, options["n_heads"], attn_precision=precision, transformer_options=options
            )
        return self.use(CrossCall(self.layer, q, k, v, output, options, self.columns))


def _note_columns(executor, x, timesteps, context, y, control, transformer_options, **kwargs):
    transformer_options[COLUMNS] = context.shape[1]
    return executor(x, timesteps, context, y, control, transformer_options, **kwargs)


def record_cross(model_options: ModelOptions, layers: Iterable[Layer], columns: int, record: Record) -> None:
    """Keep ("cross", *layer): [B, heads, N, columns], the probabilities of these layers."""

    def keep(call: CrossCall) -> torch.Tensor:
        record[("cross", *call.layer)] = call.probabilities(slice(None)).to(call.q.dtype)
        return call.output

    on_cross_attention(model_options, layers, columns, keep)
