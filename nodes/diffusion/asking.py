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
from .context_window import WHOLE, Part, part_of, taken

# In transformer_options:
SAMPLER_X = "palimpsest.sampler_x"  # the latent that the sampler asks about
QUESTION = "palimpsest.question"  # of this call, before an edit of this pack changed anything in it

Network = frozenset[tuple[str, Any, int]]  # the patches of a network: kind, place and id


@dataclass(frozen=True)
class Question:
    """network: the patches of other nodes in it. part: of the sampler's latent. moved: what x is off that part, None for nothing.

    options: keep the patches alive, whose ids name the network.
    """

    network: Network
    part: Part
    moved: torch.Tensor | None
    options: ModelOptions

    @classmethod
    def of(cls, x: torch.Tensor, model_options: ModelOptions) -> Question:
        """The question of one call for conditions, which asks about x."""
        asked = model_options["transformer_options"].get(QUESTION)
        if asked is not None:
            return asked
        part = part_of(model_options)
        sampler_x = model_options["transformer_options"].get(SAMPLER_X)
        if sampler_x is None or sampler_x is x:
            return cls(network_of(model_options), part, None, model_options)
        if part == WHOLE and len(x) != len(sampler_x):
            part = _rows(x, sampler_x)
        moved = x - taken(part, sampler_x).to(x)
        return cls(network_of(model_options), part, moved if bool(moved.any()) else None, model_options)


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


def _rows(x: torch.Tensor, sampler_x: torch.Tensor) -> Part:
    """Which pictures of the sampler's batch x has, where another pack shows the model a few at a time and does not say which."""
    left, rows = list(range(len(sampler_x))), []
    for picture in x:
        found = next((i for i in left if torch.equal(sampler_x[i].to(picture), picture)), None)
        if found is None:
            raise ValueError(
                f"model: expected a call for pictures of the sampler's batch of {len(sampler_x)}, got {len(x)} that are not among them. Leave out "
                "the node that asks the model about latents of its own."
            )
        rows.append(found)
        left.remove(found)
    return 0, tuple(rows)
