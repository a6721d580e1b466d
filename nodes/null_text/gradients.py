"""Denoised predictions as a function of a prompt embedding, and the gradient through the model that made them.

This is the only place that leaves ComfyUI's inference mode. Autograd refuses to save weights that were loaded in it, and
weights streamed from the CPU lie in buffers that the next layer overwrites. So while gradients are on, every layer works on
a copy of its own weights, which ComfyUI's weight wrappers make on a clone of the model. A checkpointed block frees its
copies when it is done, so that there is never a second copy of the whole model.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import comfy.model_management
import comfy.model_patcher
import comfy.patcher_extension
import torch
from comfy.patcher_extension import WrappersMP, add_wrapper_with_key

from ..attention.calls import ModelOptions
from ..diffusion.evaluation import Conds, evaluate
from .checkpointing import checkpointed

if TYPE_CHECKING:
    from comfy.model_base import BaseModel
    from comfy.model_patcher import ModelPatcher

KEY = "palimpsest.null_text"
Pullback = Callable[[torch.Tensor], torch.Tensor]  # d loss / d denoised -> d loss / d embedding


@dataclass
class Evaluations:
    """UNet calls of one condition each, and backward passes."""

    forwards: int = 0
    backwards: int = 0

    def __str__(self) -> str:
        return f"{self.forwards + self.backwards} evaluations ({self.forwards} forward, {self.backwards} backward)"


def differentiable(model: ModelPatcher) -> ModelPatcher:
    """A clone of `model` whose layers own the weights they compute gradients with. Raises ValueError when none can flow."""
    for name, weight in model.model.named_parameters():
        if type(weight.data) not in (torch.Tensor, torch.nn.Parameter) or not weight.dtype.is_floating_point:
            raise ValueError(
                f"model: expected weights that gradients can flow through (fp32, fp16, bf16, fp8), got quantised ones, "
                f"{name} as {type(weight.data).__name__} {weight.dtype}. Load an unquantised checkpoint, or use the method "
                "fast or negative_prompt, which need no gradients."
            )
    clone = model.clone(disable_dynamic=True)
    for name, module in clone.model.named_modules():
        if hasattr(module, "weight_function"):
            clone.add_weight_wrapper(f"{name}.weight", _own)
            clone.add_weight_wrapper(f"{name}.bias", _own)
    clone.add_wrapper_with_key(WrappersMP.PREPARE_SAMPLING, KEY, _load_whole)
    return clone


def _own(weight: torch.Tensor) -> torch.Tensor:
    return weight.detach().clone() if torch.is_grad_enabled() else weight


def _load_whole(executor, model, noise_shape, conds, model_options=None, force_full_load=False, **kwargs):
    return executor(model, noise_shape, conds, model_options=model_options, force_full_load=True, **kwargs)


class Denoiser:
    """Predictions of a loaded model at one latent and level after the other."""

    def __init__(self, model: BaseModel, model_options: ModelOptions, checkpoint: bool):
        self.model = model
        self.model_options = model_options
        self.checkpoint = checkpoint
        self.evaluations = Evaluations()

    def predict(self, x: torch.Tensor, sigma: torch.Tensor, slot: str, conds: Conds) -> torch.Tensor:
        """Denoised [B, C, H, W] at sigma [B], under conditions that a sampler has in this slot."""
        self.evaluations.forwards += 1
        return evaluate(self.model, conds, x, sigma, self.model_options, slot)

    def predict_with_pullback(
        self, x: torch.Tensor, sigma: torch.Tensor, cond: dict[str, Any], embedding: torch.Tensor
    ) -> tuple[torch.Tensor, Pullback]:
        """Denoised under `cond` with `embedding` [B, N, D] as its text, and the way back to the embedding, for one use."""
        self.evaluations.forwards += 1
        unet = self.model.diffusion_model
        with torch.inference_mode(False), torch.enable_grad():
            x, sigma = x.clone(), sigma.clone()
            variable = embedding.detach().clone().requires_grad_()
            options = comfy.model_patcher.create_model_options_clone(self.model_options)

            def read_variable(executor, x, t, c_concat=None, c_crossattn=None, *args, **kwargs):
                return executor(x, t, c_concat, variable.to(c_crossattn.device), *args, **kwargs)

            add_wrapper_with_key(WrappersMP.APPLY_MODEL, KEY, read_variable, options, is_model_options=True)
            if "control" in cond:
                cond = {**cond, "control": _ReadOnly(cond["control"])}
                patches = options.setdefault("transformer_options", {}).setdefault("patches", {})
                patches["input_block_patch_after_skip"] = [
                    *patches.get("input_block_patch_after_skip", ()),
                    _keep_skip_apart,
                ]
            with checkpointed(unet) if self.checkpoint else nullcontext():
                denoised = evaluate(
                    self.model, [with_embedding(cond, variable.detach())], x, sigma, options, "negative"
                )
        if not denoised.requires_grad:
            raise ValueError(
                "model: expected a prediction that gradients can flow back from, got one without. An attention "
                "or a patch in use has no gradients: start ComfyUI with --use-pytorch-cross-attention, connect "
                "the model without the patch, or use the method fast or negative_prompt."
            )

        def pullback(cotangent: torch.Tensor) -> torch.Tensor:
            self.evaluations.backwards += 1
            try:
                with torch.inference_mode(False):
                    (gradient,) = torch.autograd.grad(denoised, variable, cotangent.clone())
            except RuntimeError as error:
                if "no autograd formula" not in str(error):
                    raise
                raise ValueError(_no_gradients(self.model)) from error
            return gradient

        return denoised.detach(), pullback


def with_embedding(cond: dict[str, Any], embedding: torch.Tensor) -> dict[str, Any]:
    model_conds = cond["model_conds"]
    text = model_conds["c_crossattn"]._copy_with(embedding)
    return {**cond, "model_conds": {**model_conds, "c_crossattn": text}}


def _no_gradients(model: BaseModel) -> str:
    return (
        "model: expected one whose layers all have gradients (SD1.x, SD2.x, SDXL, SD3), got "
        f"{type(model).__name__}, whose rotary positions are computed without gradients. Use the method "
        "fast or negative_prompt with this model."
    )


class _ReadOnly:
    """A ControlNet whose outputs are constants of the gradient: its own weights may be inference tensors."""

    def __init__(self, control: Any):
        self.control = control

    def get_control(self, *args, **kwargs):
        with torch.no_grad():
            return self.control.get_control(*args, **kwargs)


def _keep_skip_apart(h: torch.Tensor, transformer_options: dict[str, Any]) -> torch.Tensor:
    """ControlNet outputs are added in place to a skip connection, which is the next block's input too."""
    return h.clone()
