"""Sampling runs that follow a trajectory: at each step an edit has what the source's row shows at that level.

The source row is never sampled: at each step its latent is the trajectory's, evaluated once and only while the edit lasts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import comfy.model_patcher
import comfy.sampler_helpers
import comfy.samplers
import torch
from comfy.patcher_extension import WrappersMP, add_wrapper_with_key

from ..attention.calls import Chunk, ModelOptions, Record, is_source_pass, mark_source_pass
from .conditioning import Conditioning, with_own_controls
from .evaluation import Conds, InsideSampler
from .samplers import require_deterministic, sampler_name
from .source import WHAT_TO_DO, Area, evaluate_source
from .trajectory import Trajectory

if TYPE_CHECKING:
    from comfy.model_base import BaseModel
    from comfy.model_patcher import ModelPatcher


class Edit(Protocol):
    """What is done in one sampling run. `last`: the number of steps, from the noisy end, in which anything is."""

    last: int

    def concerns(self, cond: dict[str, Any]) -> bool:
        """Whether rows of this condition are edited."""

    def record(self, step: int, options: ModelOptions) -> Record:
        """Add what reads the source's values to the options of its evaluation, which then fills the record that is returned."""

    def inject(self, step: int, options: ModelOptions, records: dict[Chunk, Record]) -> None:
        """Add what overwrites values to the options of one call, in the rows of the chunks that have a record."""


# The guider, the sampler's sigmas and the run's own model options, to which an edit may add.
Begin = Callable[[comfy.samplers.CFGGuider, torch.Tensor, ModelOptions], Edit]


@dataclass(frozen=True)
class SourceRuns:
    """What stays on the patcher between runs: settings only. `source` None: the edit has its records already."""

    key: str
    trajectory: Trajectory
    source: Conditioning | None
    begin: Begin

    def add_to(self, patched: ModelPatcher) -> None:
        """`patched`: the caller's own clone."""
        if self.source is not None:
            if comfy.sampler_helpers.cond_has_hooks(self.source):
                raise ValueError(
                    "source: expected conditioning without hooks, which only a sampler's own prompts can have, got some. "
                    f"{WHAT_TO_DO}"
                )
            conds = {"source": comfy.sampler_helpers.convert_cond(self.source)}
            models, _ = comfy.sampler_helpers.get_additional_models(conds, patched.model_dtype())
            if models:
                patched.set_additional_models(self.key, patched.get_additional_models_with_key(self.key) + models)
        patched.add_wrapper_with_key(WrappersMP.SAMPLER_SAMPLE, self.key, self.sampler_sample)

    def sampler_sample(
        self,
        executor,
        model_wrap,
        sigmas,
        extra_args,
        callback,
        noise,
        latent_image=None,
        denoise_mask=None,
        disable_pbar=False,
    ) -> torch.Tensor:
        if is_source_pass(extra_args["model_options"]["transformer_options"]):
            return executor(model_wrap, sigmas, extra_args, callback, noise, latent_image, denoise_mask, disable_pbar)
        if not isinstance(executor.class_obj, InsideSampler):
            require_deterministic(executor.class_obj)
        self.trajectory.model.require_match(model_wrap.model_patcher)
        self.trajectory.require_steps(sigmas.cpu(), sampler=sampler_name(executor.class_obj))
        self._require_latent(noise)
        if not isinstance(executor.class_obj, InsideSampler):
            self._require_start(model_wrap, executor.class_obj, sigmas, noise, latent_image)
        batch = self.trajectory.batch
        options = comfy.model_patcher.create_model_options_clone(extra_args["model_options"])
        edit = self.begin(model_wrap, sigmas.cpu(), options)
        conds: dict[str, Conds] = {}
        if self.source is not None:
            conds = comfy.samplers.process_conds(
                model_wrap.inner_model,
                noise[:batch],
                {"source": comfy.sampler_helpers.convert_cond(with_own_controls(self.source))},
                noise.device,
                None if latent_image is None else latent_image[:batch],
                None if denoise_mask is None else denoise_mask[:batch],
                extra_args.get("seed"),
            )
        run = _Run(edit, self.trajectory, conds.get("source"), sampler_name(executor.class_obj))
        add_wrapper_with_key(WrappersMP.CALC_COND_BATCH, self.key, run.calc_cond_batch, options, is_model_options=True)
        try:
            return executor(
                model_wrap,
                sigmas,
                {**extra_args, "model_options": options},
                callback,
                noise,
                latent_image,
                denoise_mask,
                disable_pbar,
            )
        finally:
            comfy.sampler_helpers.cleanup_models(conds, [])

    def _require_start(self, model_wrap, sampler, sigmas, noise, latent_image) -> None:
        sampling = model_wrap.inner_model.model_sampling
        at_maximum = sampler.max_denoise(model_wrap, sigmas)
        x = sampling.noise_scaling(sigmas[0], noise, latent_image, at_maximum)
        self.trajectory.require_start(x, float(sigmas[0]))

    def _require_latent(self, noise: torch.Tensor) -> None:
        shape = self.trajectory.latents.shape[1:]
        if noise.shape[1:] != shape[1:] or shape[0] not in (1, noise.shape[0]):
            raise ValueError(
                f"latent_image: expected the trajectory's {_size(shape)}, got {_size(noise.shape)}. "
                "Sample from the inversion's own latent or noise, or invert a picture of this size."
            )


def _size(shape: torch.Size) -> str:
    return f"{' x '.join(map(str, shape[1:]))} in a batch of {shape[0]}"


class _Run:
    """One sampling run: knows the step, holds the source's values of that step and hands them to each call for conditions."""

    def __init__(self, edit: Edit, trajectory: Trajectory, source: Conds | None, sampler: str):
        self.edit = edit
        self.trajectory = trajectory
        self.source = source
        self.sampler = sampler
        self.step = -1
        self.records: dict[Area, Record] = {}  # of this step

    def calc_cond_batch(
        self,
        executor,
        model: BaseModel,
        conds: list,
        x_in: torch.Tensor,
        timestep: torch.Tensor,
        model_options: ModelOptions,
    ) -> list[torch.Tensor]:
        if is_source_pass(model_options["transformer_options"]):
            return executor(model, conds, x_in, timestep, model_options)
        step = self._step_of(float(timestep[0]))
        if step != self.step:
            self.step, self.records = step, {}
        if step >= self.edit.last:
            return executor(model, conds, x_in, timestep, model_options)
        areas = {
            (i, cond["uuid"]): _area(cond)
            for i, rows in enumerate(conds)
            for cond in rows or ()
            if self.edit.concerns(cond) and comfy.samplers.get_area_and_mult(cond, x_in, timestep) is not None
        }
        for area in set(areas.values()) - self.records.keys():
            self.records[area] = self._read_source(executor, model, x_in, timestep, model_options, area)
        options = comfy.model_patcher.create_model_options_clone(model_options)
        self.edit.inject(step, options, {chunk: self.records[area] for chunk, area in areas.items()})
        with torch.compiler.set_stance("force_eager"):
            return executor(model, conds, x_in, timestep, options)

    def _read_source(
        self,
        executor,
        model: BaseModel,
        x_in: torch.Tensor,
        timestep: torch.Tensor,
        model_options: ModelOptions,
        area: Area,
    ) -> Record:
        options = mark_source_pass(model_options)
        record = self.edit.record(self.step, options)
        if self.source is not None:
            x = self.trajectory.latents[self.step].to(x_in)
            evaluate_source(model, self.source, x, timestep[: len(x)], options, area, executor)
        elif area is not None:
            raise ValueError(
                "features: expected conditioning for the whole picture, got some with an area, for which nothing was captured. "
                "Disconnect `features`, so that the source is evaluated for that area, or use a mask without bounds."
            )
        return {place: value.to(x_in.device) for place, value in record.items()}

    def _step_of(self, sigma: float) -> int:
        step = self.trajectory.step_of(sigma)
        if step is not None:
            return step
        if sigma < float(self.trajectory.sigmas[self.edit.last]):
            return self.edit.last
        raise ValueError(
            f"sampler: expected one that evaluates the model at the trajectory's levels only, got {self.sampler}, which also "
            f"needs sigma {sigma:.4f}, between two of them. Use euler, ddim, heun or dpmpp_2m."
        )


def _area(cond: dict[str, Any]) -> Area:
    return tuple(cond["area"]) if "area" in cond else None
