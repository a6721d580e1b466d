"""Variants of one checkpoint in one sampling: its weights are in memory once, each variant's own patches in turn.

ComfyUI's clones of a model share its module, which holds the patches of one clone at a time. What all variants have in common
is loaded as usual; what is a variant's own is registered as a weight hook, core's means for weights that change between
conditions within a step.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import comfy.hooks
from comfy.patcher_extension import WrappersMP, add_wrapper_with_key

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher

KEY = "palimpsest.saliency_fusion"


@dataclass
class Weights:
    """Where a variant's weights are: in a patcher that is loaded, and in a hook of its own where that is not all.

    shared: other variants use the same patcher.
    """

    loaded: ModelPatcher
    shared: bool
    own: comfy.hooks.HookGroup | None = None
    _combined: dict[int, tuple] = field(default_factory=dict)  # by the id of a condition's own hooks, kept alive here

    def attach(self, model_options: dict[str, Any]) -> None:
        """Use these weights in all that is evaluated with these options, which the caller owns."""
        if self.own is not None:
            add_wrapper_with_key(
                WrappersMP.CALC_COND_BATCH, KEY, self._calc_cond_batch, model_options, is_model_options=True
            )

    def _calc_cond_batch(self, executor, model, conds, x_in, timestep, model_options):
        hooked = [rows and [{**cond, "hooks": self._with(cond.get("hooks"))} for cond in rows] for rows in conds]
        return executor(model, hooked, x_in, timestep, model_options)

    def _with(self, hooks: comfy.hooks.HookGroup | None) -> comfy.hooks.HookGroup:
        """One object for each group, because core caches weights by the group's identity."""
        if hooks is None:
            return self.own
        if id(hooks) not in self._combined:
            self._combined[id(hooks)] = (hooks, self.own.clone_and_combine(hooks))
        return self._combined[id(hooks)][1]


def share_weights(variants: Sequence[ModelPatcher], sockets: Sequence[str]) -> list[Weights]:
    """For each model the weights to use. Patchers are clones, one for all variants of a module; nothing of `variants` changes."""
    weights: list[Weights | None] = [None] * len(variants)
    for first, variant in enumerate(variants):
        if weights[first] is not None:
            continue
        members = [i for i, other in enumerate(variants) if other.is_clone(variant)]
        for member in members[1:]:
            _require_same_module(variant, variants[member], sockets[first], sockets[member])
        common = _common_patches([variants[i].patches for i in members])
        own = [_after(variants[i].patches, common) for i in members]
        loaded = variant.clone()
        if any(own):
            if loaded.is_dynamic():
                loaded = loaded.get_non_dynamic_delegate()
            loaded.patches, loaded.patches_uuid = common, uuid.uuid4()
        for member, patches in zip(members, own, strict=True):
            weights[member] = Weights(loaded, len(members) > 1, _hook(loaded, patches) if patches else None)
    return weights


def _require_same_module(first: ModelPatcher, second: ModelPatcher, socket: str, other: str) -> None:
    kinds = {
        "object patches (such as a ModelSampling node's)": "object_patches",
        "injections": "injections",
        "weight wrappers": "weight_wrapper_patches",
    }
    for kind, name in kinds.items():
        a, b = getattr(first, name), getattr(second, name)
        if a.keys() != b.keys() or any(a[key] is not b[key] and a[key] != b[key] for key in a):
            raise ValueError(
                f"{other}: expected a variant of `{socket}`'s checkpoint that differs in LoRA, prompts or attention patches, got "
                f"one that also differs in {kind}, which the weights they share in memory cannot have twice. Apply the same "
                "node to both, or load one of them from a copy of the file."
            )


Patches = dict[str, list[tuple]]


def _common_patches(variants: list[Patches]) -> Patches:
    """The patches that all variants begin with, key by key."""
    common: Patches = {}
    for key, patches in variants[0].items():
        others = [variant.get(key, []) for variant in variants[1:]]
        count = 0
        while count < len(patches) and all(count < len(o) and o[count] is patches[count] for o in others):
            count += 1
        if count:
            common[key] = patches[:count]
    return common


def _after(patches: Patches, common: Patches) -> Patches:
    own = {key: entries[len(common.get(key, ())) :] for key, entries in patches.items()}
    return {key: entries for key, entries in own.items() if entries}


def _hook(model: ModelPatcher, patches: Patches) -> comfy.hooks.HookGroup:
    """Patches as a registered weight hook; those of a key keep their order."""
    hook, group = comfy.hooks.WeightHook(), comfy.hooks.HookGroup()
    group.add(hook)
    for layer in range(max(map(len, patches.values()))):
        by_strength: dict[tuple[float, float], dict] = {}
        for key, entries in patches.items():
            if layer < len(entries):
                strength, value, strength_model, offset, function = entries[layer]
                place = key if offset is None and function is None else (key, offset, function)
                by_strength.setdefault((strength, strength_model), {})[place] = value
        for (strength, strength_model), values in by_strength.items():
            model.add_hook_patches(hook, values, strength, strength_model)
    return group
