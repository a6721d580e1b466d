"""Weights of its own for a variant of a checkpoint that is in the fusion already.

ComfyUI's clones of a model share one module, which holds the patches of one clone at a time. Clones that change the same in
it can take turns within a step. A variant that changes something else (a LoRA, another ModelSampling, hooks in a prompt) gets
a second module: loaded again by the loader that made the first, as ComfyUI does for a second GPU, or copied.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import comfy.model_management
from comfy.model_patcher import ModelPatcher

KEY = "palimpsest.saliency_fusion"


@dataclass(frozen=True)
class SecondModule:
    """Kept by the MODEL that needed it, so that the next guider does not load it again; clones of that MODEL do not inherit it."""

    unpatched: ModelPatcher

    def on_model_patcher_clone(self) -> None:
        return None


def beside(
    model: ModelPatcher, others: Sequence[ModelPatcher], hooked: bool, keeper: ModelPatcher, socket: str
) -> ModelPatcher:
    """`model`, as something of the guider's own, that can be loaded together with `others`.

    hooked: weights change within the run, by hooks of some prompt. keeper: the MODEL as its node gave it out.
    """
    sharing = [other for other in others if other.is_clone(model)]
    if not sharing or (not hooked and all(_changes_the_same(model, other) for other in sharing)):
        return model.clone() if model is keeper else model
    kept = keeper.get_attachment(KEY)
    if kept is None or kept.unpatched.is_dynamic() != model.is_dynamic():
        kept = SecondModule(_second(model, socket))
        keeper.set_attachments(KEY, kept)
    own = model.clone(model_override=kept.unpatched.get_clone_model_override())
    # ComfyUI's list of loaded models goes over to the parent when a clone is gone: it has to be one of the same module.
    own.parent = kept.unpatched
    own.hook_backup, own.is_injected = {}, False
    return own


def _changes_the_same(one: ModelPatcher, other: ModelPatcher) -> bool:
    same_weights = one.patches_uuid == other.patches_uuid or not (one.patches or other.patches)
    objects, others = ({name: id(value) for name, value in m.object_patches.items()} for m in (one, other))
    return (
        same_weights
        and objects == others
        and one.injections == other.injections
        and one.weight_wrapper_patches == other.weight_wrapper_patches
    )


def _second(model: ModelPatcher, socket: str) -> ModelPatcher:
    """Another module with the weights that `model` was loaded with."""
    if model.cached_patcher_init is not None:
        load, arguments, *output = model.cached_patcher_init
        loaded = load(*arguments, disable_dynamic=not model.is_dynamic())
        second = loaded[output[0]] if output else loaded
        second.load_device, second.offload_device = model.load_device, model.offload_device
        return second
    if model.is_dynamic():
        raise ValueError(
            f"{socket}: expected a variant that can be loaded a second time, beside the model it is a variant of, got one from a loader "
            "that does not tell ComfyUI how. Load it with one of ComfyUI's own loaders, or from a copy of the file."
        )
    _unload(model)
    config = model.model.model_config  # which has an answer for every name, so that it cannot be copied
    module = copy.deepcopy(model.model, {id(config): config})
    return ModelPatcher(module, model.load_device, model.offload_device)


def _unload(model: ModelPatcher) -> None:
    """Take every clone's patches out of the module."""
    loaded = comfy.model_management.current_loaded_models
    others = [each for each in loaded if each.model is None or not each.model.is_clone(model)]
    comfy.model_management.free_memory(1e30, model.load_device, others)
