"""What other nodes have put on a model that an inversion, which climbs from the picture, cannot take along."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..attention.calls import STEP_CACHES
from .asking import network_of
from .evaluation import Inside

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher

SAME_ANSWER = 1e-3  # of its size: what two answers to one question may differ by
# Where other nodes keep guidance of their own among a model's options.
OWN_GUIDANCE = (
    "sampler_cfg_function",
    "sampler_post_cfg_function",
    "sampler_pre_cfg_function",
    "sampler_calc_cond_batch_function",
)


def require_unedited(model: ModelPatcher, *besides: str, socket: str = "model") -> None:
    """Raise ValueError if `model` carries an edit of this pack, which only a sampler can follow, with a key other than those `besides`."""
    keys = {key for by_key in model.wrappers.values() for key in by_key if key is not None}
    edits = sorted(
        key
        for key in keys
        if key.startswith("palimpsest.") and not key.startswith("palimpsest.unclip") and key not in besides
    )
    if edits:
        name = edits[0].removeprefix("palimpsest.").replace("_", " ")
        raise ValueError(
            f"{socket}: expected the model from before any edit, got one with {name}. Connect the same model here that goes "
            "into the editing node."
        )


def require_repeatable(inside: Inside, socket: str = "model") -> None:
    """Raise ValueError if patches answer one question in two ways: no path through them can be found again."""
    own_guidance = inside.guider.cfg != 1.0 and any(inside.model_options.get(key) for key in OWN_GUIDANCE)
    if not own_guidance and not network_of(inside.model_options):
        return
    sigma = float(inside.sigmas[0])
    # Another question between the two shows what is remembered from one call to the next.
    first, _, second = (x - inside.guided(x, sigma) for x in (inside.latent, -inside.latent, inside.latent))
    if float((first - second).norm()) > SAME_ANSWER * float(first.norm()):
        raise ValueError(
            f"{socket}: expected a model that gives the same prediction each time, got one with a patch that works at random, as "
            "HyperTile and Token Merging do, or remembers earlier steps, as Adaptive Projected Guidance with momentum does. "
            "Connect the model from before that node."
        )


def without_step_caches(model: ModelPatcher) -> ModelPatcher:
    """`model`, or a clone without what skips evaluations by the change since the last step of a descending run.

    The skipped evaluations of a sampler are approximations of this model, so that leaving the cache out is exact.
    """
    cached = {(kind, key) for kind, by_key in model.wrappers.items() for key in by_key if key in STEP_CACHES}
    if not cached:
        return model
    plain = model.clone()
    for kind, key in cached:
        plain.remove_wrappers_with_key(kind, key)
    return plain
