"""Core's hooks on conditions that a guider does not know, such as a scheduled LoRA on a source prompt."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import comfy.hooks
import comfy.sampler_helpers
import comfy.samplers

if TYPE_CHECKING:
    from .evaluation import Inside


def register_hooks(guider: comfy.samplers.CFGGuider, conds: list[dict[str, Any]]) -> None:
    """Register the hooks of these conditions beside those of the guider's own prompts, for one sampling run.

    As comfy.sampler_helpers.prepare_model_patcher does; it cannot be called twice, because it also merges the model's wrappers.
    """
    model, options = guider.model_patcher, guider.model_options
    added, hooks = comfy.hooks.HookGroup(), comfy.hooks.HookGroup()
    comfy.sampler_helpers.get_hooks_from_cond(conds, added)
    for group in (*guider.conds.values(), conds):
        comfy.sampler_helpers.get_hooks_from_cond(group, hooks)
    registered = options.get("registered_hooks", comfy.hooks.HookGroup())
    target = comfy.hooks.create_target_dict(comfy.hooks.EnumWeightTarget.Model)
    for kind in (comfy.hooks.EnumHookType.TransformerOptions, comfy.hooks.EnumHookType.AdditionalModels):
        for hook in added.get_type(kind):
            hook.add_hook_patches(model, options, target, registered)
    # All of them: registering begins from the model without any.
    model.register_all_hook_patches(hooks, target, options, registered)
    options["registered_hooks"] = registered


def follow_schedules(inside: Inside, sigma: float) -> None:
    """Bring scheduled hooks to where a sampler that came down from the highest level would have them at sigma.

    Core's schedules go one way only, and through the levels one by one.
    """
    hooks = comfy.hooks.HookGroup()
    for conds in inside.conds.values():
        comfy.sampler_helpers.get_hooks_from_cond(conds, hooks)
    scheduled = [hook for hook in hooks.hooks if not hook.hook_keyframe.is_empty()]
    if not scheduled:
        return
    here = inside.sigmas.new_tensor(sigma)
    levels = [level for level in inside.sigmas if level > here] + [here]
    for hook in scheduled:
        hook.hook_keyframe.reset()
        for level in levels:
            hook.hook_keyframe.prepare_current_keyframe(level, inside.model_options["transformer_options"])
    patcher = inside.model.current_patcher
    patcher.patch_hooks(None)
    patcher.clear_cached_hook_weights()
