"""How a run asks its model, so that a question that other guidance puts beside the sampler's own is known as another one.

Perturbed-Attention Guidance asks a second time with attention patched, Self-Attention Guidance about a blurred latent. What a
source picture shows in the sampler's own question does not answer these: it is asked in the same way again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import comfy.model_patcher
import torch

from ..attention.calls import ModelOptions
from .context_window import Part, taken

# In transformer_options:
SAMPLER_X = "palimpsest.sampler_x"  # the latent that the sampler asks about
QUESTION = "palimpsest.question"  # of this call, before an edit of this pack changed anything in it

Network = frozenset[tuple[str, Any, int]]  # the patches of a network: kind, place and id


@dataclass(frozen=True)
class Question:
    """network: the patches of other nodes in it. moved: what x is off the latent that the sampler asks about, None for nothing.

    options: keep the patches alive, whose ids name the network.
    """

    network: Network
    moved: torch.Tensor | None
    options: ModelOptions

    @classmethod
    def of(cls, x: torch.Tensor, part: Part, model_options: ModelOptions) -> Question:
        """The question of one call for conditions. x: what it asks about, of which `part` is seen."""
        asked = model_options["transformer_options"].get(QUESTION)
        return asked or cls(network_of(model_options), _moved(x, part, model_options), model_options)


def note_sampler_x(executor, x: torch.Tensor, timestep: torch.Tensor, model_options: ModelOptions, seed=None):
    """A PREDICT_NOISE wrapper: tell the calls for conditions what the sampler asks about."""
    options = comfy.model_patcher.create_model_options_clone(model_options)
    options["transformer_options"][SAMPLER_X] = x
    return executor(x, timestep, options, seed)


def network_of(model_options: ModelOptions) -> Network:
    options = model_options["transformer_options"]
    added = {
        (kind, i, id(patch)) for kind, patches in options.get("patches", {}).items() for i, patch in enumerate(patches)
    }
    replaced = {
        (kind, place, id(patch))
        for kind, places in options.get("patches_replace", {}).items()
        for place, patch in places.items()
    }
    kernels = {(key, None, id(options[key])) for key in ("optimized_attention_override",) if key in options}
    return frozenset(added | replaced | kernels)


def _moved(x: torch.Tensor, part: Part, model_options: ModelOptions) -> torch.Tensor | None:
    sampler_x = model_options["transformer_options"].get(SAMPLER_X)
    if sampler_x is None or sampler_x is x:
        return None
    sampler_x = taken(part, sampler_x)
    # Other packs' windows do not say which rows a call sees.
    if sampler_x.shape != x.shape:
        return None
    moved = x - sampler_x.to(x)
    return moved if bool(moved.any()) else None
