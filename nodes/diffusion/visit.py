"""A walk along a trajectory that steps nowhere: the source's row is evaluated at some of its levels and read."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import comfy.samplers
import latent_preview
import torch

from .source_pass import Recorder, mark_source_pass, record_source
from .trajectory import Conditioning, Trajectory

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher


def visit(
    model: ModelPatcher,
    trajectory: Trajectory,
    source: Conditioning,
    steps: range,
    recorder: Callable[[int], Recorder],
    seen: Callable[[int, Recorder], None],
) -> None:
    """At each of `steps`, evaluate the trajectory's latent under `source` for recorder(step), then call seen(step, it)."""
    trajectory.model.require_match(model)
    guider = comfy.samplers.CFGGuider(model)
    guider.inner_set_conds({"positive": source})
    guider.model_options = mark_source_pass(guider.model_options)
    latent = model.model.process_latent_out(trajectory.latents[-1])
    callback = latent_preview.prepare_callback(model, len(steps))
    sampler = _Visitor(trajectory, steps, recorder, seen)
    guider.sample(torch.zeros_like(latent), latent, sampler, trajectory.sigmas, callback=callback, seed=0)


class _Visitor(comfy.samplers.Sampler):
    """Visits instead of stepping, inside ComfyUI's own loading, conditions, progress and cancel."""

    def __init__(self, trajectory: Trajectory, steps: range, recorder: Callable, seen: Callable):
        self.trajectory = trajectory
        self.steps = steps
        self.recorder = recorder
        self.seen = seen

    def sample(
        self, model_wrap, sigmas, extra_args, callback, noise, latent_image=None, denoise_mask=None, disable_pbar=False
    ) -> torch.Tensor:
        for visited, step in enumerate(self.steps):
            x = self.trajectory.latents[step].to(noise)
            recorder = self.recorder(step)
            denoised = record_source(
                comfy.samplers.calc_cond_batch,
                model_wrap.inner_model,
                model_wrap.conds["positive"],
                x,
                sigmas[step].expand(len(x)),
                extra_args["model_options"],
                recorder,
            )
            self.seen(step, recorder)
            callback(visited, denoised, x, len(self.steps))
        return latent_image
