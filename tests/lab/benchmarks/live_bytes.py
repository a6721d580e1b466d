"""Memory of an evaluation too large to run, by counting: the same calls on tensors that have shapes but no values.

Counted are the bytes of all storages alive at once. What a device adds to that, such as its libraries' workspaces and its
allocator's rounding, is not in it.
"""

from __future__ import annotations

import weakref

import comfy.sampler_helpers
import comfy.samplers
import torch
from comfy.model_patcher import ModelPatcher
from lab.benchmarks.subjects import base_model, full_size_conditioning
from palimpsest.nodes.null_text.gradients import Denoiser, differentiable
from support.fixtures.tiny_models import CPU
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


class LiveBytes(TorchDispatchMode):
    """Follows every storage that an operation returns while this is entered."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._alive: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in tree_iter(result):
            if isinstance(tensor, torch.Tensor):
                self._follow(tensor.untyped_storage())
        return result

    def _follow(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata not in self._alive:
            self._alive.add(storage._cdata)
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._forget, storage._cdata, storage.nbytes())

    def _forget(self, identity: int, size: int) -> None:
        self._alive.discard(identity)
        self.now -= size


@torch.no_grad()
def count_evaluation(
    name: str, latent: int, dtype: torch.dtype, compute: torch.dtype | None, checkpoint: bool
) -> dict[str, int]:
    """Bytes of the UNet's weights, and at most beside them during one prediction and its backward pass to the embedding."""
    model = base_model(name, dtype, compute, torch.device("meta"))
    unet = model.diffusion_model
    patcher = differentiable(ModelPatcher(model, load_device=CPU, offload_device=CPU))
    for key, layer in model.named_modules():
        if hasattr(layer, "weight_function"):  # as ModelPatcher.load does, which would need real weights to load
            layer.weight_function = patcher.weight_wrapper_patches[f"{key}.weight"]
            layer.bias_function = patcher.weight_wrapper_patches[f"{key}.bias"]
    model.current_patcher = patcher
    with FakeTensorMode(allow_non_fake_inputs=True), LiveBytes() as live:
        for layer in unet.modules():
            for key, weight in list(layer.named_parameters(recurse=False)):
                empty = torch.empty(weight.shape, dtype=weight.dtype)
                setattr(layer, key, torch.nn.Parameter(empty, requires_grad=False))
        weights = live.now
        x, sigma = torch.randn(1, 4, latent, latent), torch.full((1,), 2.0)
        negative = comfy.sampler_helpers.convert_cond(full_size_conditioning(model, 2))
        (cond,) = comfy.samplers.encode_model_conds(model.extra_conds, negative, x, CPU, "negative")
        denoiser = Denoiser(model, patcher.model_options, checkpoint)
        denoised, pullback = denoiser.predict_with_pullback(x, sigma, cond, cond["cross_attn"])
        pullback(torch.ones_like(denoised))
    return {"weights": weights, "peak": live.peak - weights}
