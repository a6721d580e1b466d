"""Rows of machines: how core loads models there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import comfy.model_management
import comfy.model_patcher
from comfy.model_patcher import ModelPatcher
from lab.evidence.compatibility.graph import Graph
from lab.evidence.compatibility.patches import lora
from lab.evidence.compatibility.rows import Row
from support.fixtures.without_float64 import WithoutFloat64

GROUP = "machines"


class LowVram(ModelPatcher):
    """Loads as on a device with room for half of the model: the rest is cast when it is used."""

    share = 0.5

    def load(self, device_to=None, lowvram_model_memory=0, *args, **kwargs):
        room = max(self.share * self.model_size(), 0.1)
        return super().load(device_to, room, *args, **kwargs)


class NoVram(LowVram):
    share = 0.0


class Dynamic(ModelPatcher):
    """Says what core's patcher of dynamic VRAM says, and gives the same delegate; that one itself runs on GPUs alone."""

    non_dynamic_delegate_model = None
    get_non_dynamic_delegate = comfy.model_patcher.ModelPatcherDynamic.get_non_dynamic_delegate

    def is_dynamic(self) -> bool:
        return True

    def patch_hook_weight_to_device(self, hooks, combined_patches, key, original_weights, memory_counter):
        if key in combined_patches:
            raise RuntimeError("Hooks not implemented in ModelPatcherDynamic.")


def loaded_as(kind: type[ModelPatcher], lora_too: bool = False):
    def change(graph: Graph) -> Graph:
        def again(model: ModelPatcher) -> ModelPatcher:
            made = kind(model.model, model.load_device, model.offload_device)
            made.cached_patcher_init = (lambda disable_dynamic=False: model.clone(), ())
            return lora()(made) if lora_too else made

        return replace(graph, **graph.patched(again))

    return change


def no_float64(graph: Graph) -> Graph:
    """What the model predicts, and all that is computed with it, lies on a device without float64."""

    def predicting(model: ModelPatcher) -> ModelPatcher:
        made = model.clone()
        made.set_model_unet_function_wrapper(
            lambda apply, args: apply(args["input"], args["timestep"], **args["c"]).as_subclass(WithoutFloat64)
        )
        return made

    return replace(graph, **graph.patched(predicting))


@contextmanager
def unloaded() -> Iterator[None]:
    """The models of this row are not left half loaded for the next one."""
    try:
        yield
    finally:
        comfy.model_management.unload_all_models()


def row(name: str, kind: type[ModelPatcher], **options) -> Row:
    return Row(GROUP, name, loaded_as(kind, **options), host=unloaded)


ROWS = [
    row("lowvram", LowVram),
    row("lowvram, with a LoRA", LowVram, lora_too=True),
    row("novram", NoVram),
    row("dynamic VRAM", Dynamic),
    row("dynamic VRAM, with a LoRA", Dynamic, lora_too=True),
    Row(GROUP, "no float64, simulated", no_float64),
]
