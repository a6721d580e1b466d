"""The one way in which the pack evaluates a model outside of a sampler: where a sampler would run, condition by condition."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import comfy.samplers
import latent_preview
import torch

from ..attention.calls import AllSeen, ModelOptions

if TYPE_CHECKING:
    from comfy.model_base import BaseModel

Conds = list[dict[str, Any]]  # conditions of one prompt, as comfy.samplers.process_conds leaves them
SLOTS = ("positive", "negative")  # the order in which core evaluates them; patches read it as cond_or_uncond


def evaluate(
    model: BaseModel,
    conds: Conds,
    x: torch.Tensor,
    sigma: torch.Tensor,
    model_options: ModelOptions,
    slot: str = "positive",
    calc_cond_batch: Callable = comfy.samplers.calc_cond_batch,
) -> torch.Tensor | None:
    """Denoised [B, C, ...] of x at sigma [B] under `conds`, in the list slot in which a sampler would evaluate them.

    None if what reads inside the network left it early.
    calc_cond_batch: core's, or the executor of a wrapper around it.
    """
    index = SLOTS.index(slot)
    # A source's few rows are not worth a split over GPUs, and a reader that leaves early must not do so in another thread.
    options = {key: value for key, value in model_options.items() if key != "multigpu_clones"}
    with uncompiled(model_options), suppress(AllSeen):
        return calc_cond_batch(model, [None] * index + [conds], x, sigma, options)[index]
    return None


def uncompiled(model_options: ModelOptions) -> AbstractContextManager:
    """While this lasts, compiled networks run as they were written: a compiled one leaves out what is attached to its parts."""
    if hasattr(torch.compiler, "set_stance"):
        return torch.compiler.set_stance("force_eager")
    if "torch_compile_kwargs" in model_options:
        raise ValueError(
            "model: expected a model that is not compiled, got one from Torch Compile Model. Torch "
            f"{torch.__version__} cannot switch compilation off for a part of a run. Remove that node, or "
            "update torch to 2.6 or newer."
        )
    return nullcontext()


@dataclass(frozen=True)
class Inside:
    """A sampling run of a guider, at the point where the sampler would run.

    conds: the guider's prompts by name. latent: [B, C, ...] in the model's sampling space. sigmas: on the model's device.
    show: progress and preview of (step, denoised, x).
    """

    guider: comfy.samplers.CFGGuider
    sampler: comfy.samplers.Sampler
    conds: dict[str, Conds]
    latent: torch.Tensor
    noise: torch.Tensor
    sigmas: torch.Tensor
    model_options: ModelOptions
    seed: int | None
    show: Callable[[int, torch.Tensor, torch.Tensor], None]

    @property
    def model(self) -> BaseModel:
        return self.guider.inner_model

    def guided(self, x: torch.Tensor, sigma: float) -> torch.Tensor:
        """Denoised as the guider gives it to a sampler, guidance and all."""
        level = x.new_full((len(x),), sigma)
        return self.guider(x, level, model_options=self.model_options, seed=self.seed)

    def predict(self, prompt: str, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        """Denoised under one of the guider's prompts, "positive" or "negative", at sigma [B]."""
        return evaluate(self.model, self.conds[prompt], x, sigma, self.model_options, prompt)


def run_inside(
    guider: comfy.samplers.CFGGuider,
    latent: torch.Tensor,
    sigmas: torch.Tensor,
    steps: int,
    body: Callable[[Inside], None],
    noise: torch.Tensor | None = None,
    seed: int = 0,
) -> None:
    """Call `body` where the guider's sampler would run, so that loading, hooks, ControlNets, previews and cancel are ComfyUI's own.

    latent: [B, C, ...] as a VAE gives it. steps: how many times `body` calls `show`.
    """
    callback = latent_preview.prepare_callback(guider.model_patcher, steps)
    noise = torch.zeros_like(latent) if noise is None else noise
    guider.sample(noise, latent, InsideSampler(body, steps), sigmas, callback=callback, disable_pbar=True, seed=seed)


class InsideSampler(comfy.samplers.Sampler):
    """Stands where a sampler does and steps nowhere."""

    def __init__(self, body: Callable[[Inside], None], steps: int):
        self.body = body
        self.steps = steps

    def sample(
        self, model_wrap, sigmas, extra_args, callback, noise, latent_image=None, denoise_mask=None, disable_pbar=False
    ) -> torch.Tensor:
        def show(step: int, denoised: torch.Tensor | None, x: torch.Tensor) -> None:
            callback(step, x if denoised is None else denoised, x, self.steps)

        self.body(
            Inside(
                model_wrap,
                self,
                model_wrap.conds,
                latent_image,
                noise,
                sigmas,
                extra_args["model_options"],
                extra_args.get("seed"),
                show,
            )
        )
        return latent_image
