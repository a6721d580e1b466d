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
from .asking import QUESTION, SAMPLER_X, Network, Question, network_of, note_sampler_x
from .conditioning import Conditioning, with_own_controls
from .context_window import WHOLE, Part, resized_conds, taken
from .evaluation import Conds, InsideSampler, uncompiled
from .hooks import register_hooks
from .retracing import Retracing, require_retraceable, require_retracing
from .samplers import sampler_name
from .schedule import require_whole_picture
from .source import Area, read_source
from .trajectory import Trajectory

if TYPE_CHECKING:
    from comfy.model_base import BaseModel
    from comfy.model_patcher import ModelPatcher

RETRACING = "palimpsest.retracing"  # in transformer_options: the Retracing that has moved the x of this call


class Edit(Protocol):
    """What is done in one sampling run. `last`: the number of steps, from the noisy end, in which anything is."""

    last: int

    def concerns(self, step: int, cond: dict[str, Any]) -> bool:
        """Whether rows of this condition are edited at this step."""

    def kept(self, step: int, part: Part) -> Record | None:
        """What is known of the source as the model sees it unpatched and whole, if it was read before this run."""

    def record(self, step: int, options: ModelOptions) -> Record:
        """Add what reads the source's values to the options of its evaluation, which then fills the record that is returned."""

    def inject(self, step: int, options: ModelOptions, records: dict[Chunk, Record], part: Part) -> None:
        """Add what overwrites values to the options of one call, in the rows of the chunks that have a record."""


@dataclass(frozen=True)
class Run:
    """A sampling run that begins. model_options: its own, to which an edit may add."""

    guider: comfy.samplers.CFGGuider
    sampler: comfy.samplers.Sampler
    sigmas: torch.Tensor  # on the CPU
    model_options: ModelOptions


@dataclass(frozen=True)
class SourceRuns:
    """What stays on the patcher between runs: settings only.

    source: the prompt its row is read with. begin: gives the edit of one run. Both are None for retracing alone.
    exact: retrace the trajectory exactly, which `ddim` must have made.
    """

    key: str
    trajectory: Trajectory
    source: Conditioning | None
    begin: Callable[[Run], Edit] | None
    exact: bool = False

    def patched(self, model: ModelPatcher) -> ModelPatcher:
        """A clone of `model` whose every sampling run is one of these."""
        if self.exact:
            require_retraceable(self.trajectory)
        hooked = self.source is not None and comfy.sampler_helpers.cond_has_hooks(self.source)
        patched = model.get_non_dynamic_delegate() if hooked and model.is_dynamic() else model.clone()
        if self.source is not None:
            conds = {"source": comfy.sampler_helpers.convert_cond(self.source)}
            models, _ = comfy.sampler_helpers.get_additional_models(conds, patched.model_dtype())
            if models:
                patched.set_additional_models(self.key, patched.get_additional_models_with_key(self.key) + models)
        if hooked:
            patched.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, self.key, self.outer_sample)
        patched.add_wrapper_with_key(WrappersMP.SAMPLER_SAMPLE, self.key, self.sampler_sample)
        patched.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, self.key, note_sampler_x)
        return patched

    def outer_sample(self, executor, *args, **kwargs) -> torch.Tensor:
        """Core has registered the hooks of the guider's prompts here, and loads the model next."""
        guider = executor.class_obj
        if not is_source_pass(guider.model_options["transformer_options"]):
            register_hooks(guider, comfy.sampler_helpers.convert_cond(self.source))
        return executor(*args, **kwargs)

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
        begin = None if is_source_pass(extra_args["model_options"]["transformer_options"]) else self.begin
        if begin is None and not self.exact:
            return executor(model_wrap, sigmas, extra_args, callback, noise, latent_image, denoise_mask, disable_pbar)
        sampler = executor.class_obj
        self._require_fit(model_wrap, sampler, sigmas, noise, latent_image)
        options = comfy.model_patcher.create_model_options_clone(extra_args["model_options"])
        edit = None if begin is None else begin(Run(model_wrap, sampler, sigmas.cpu(), options))
        conds: dict[str, Conds] = {}
        if self.source is not None:
            batch = self.trajectory.batch
            conds = {"source": comfy.sampler_helpers.convert_cond(with_own_controls(self.source))}
            comfy.samplers.preprocess_conds_hooks(conds)
            comfy.samplers.filter_registered_hooks_on_conds(conds, options)
            conds = comfy.samplers.process_conds(
                model_wrap.inner_model,
                noise[:batch],
                conds,
                noise.device,
                None if latent_image is None else latent_image[:batch],
                None if denoise_mask is None else denoise_mask[:batch],
                extra_args.get("seed"),
            )
        if self.exact:
            require_retracing(self.trajectory, options)
        retracing = Retracing(self.trajectory, model_wrap.inner_model.model_sampling) if self.exact else None
        run = _Run(edit, self.trajectory, conds.get("source"), retracing, sampler_name(sampler), network_of(options))
        add_wrapper_with_key(WrappersMP.CALC_COND_BATCH, self.key, run.calc_cond_batch, options, is_model_options=True)
        extra_args = {**extra_args, "model_options": options}
        try:
            return executor(model_wrap, sigmas, extra_args, callback, noise, latent_image, denoise_mask, disable_pbar)
        finally:
            comfy.sampler_helpers.cleanup_models(conds, [])

    def _require_fit(
        self,
        guider: comfy.samplers.CFGGuider,
        sampler: comfy.samplers.Sampler,
        sigmas: torch.Tensor,
        noise: torch.Tensor,
        latent_image: torch.Tensor,
    ) -> None:
        name = sampler_name(sampler)
        self.trajectory.model.require_match(guider.model_patcher)
        self.trajectory.require_steps(sigmas.cpu(), sampler=name)
        require_whole_picture(getattr(guider, "original_conds", {}))
        shape = self.trajectory.latents.shape[1:]
        if noise.shape[1:] != shape[1:] or shape[0] not in (1, noise.shape[0]):
            raise ValueError(
                f"latent_image: expected the trajectory's {_size(shape)}, got {_size(noise.shape)}. "
                "Sample from the inversion's own latent or noise, or invert a picture of this size."
            )
        if isinstance(sampler, InsideSampler):
            return
        sampling = guider.inner_model.model_sampling
        x = sampling.noise_scaling(sigmas[0], noise, latent_image, sampler.max_denoise(guider, sigmas))
        self.trajectory.require_start(x, float(sigmas[0]), bool(noise.any()))
        if not self.exact:
            return
        if name != "euler":
            raise ValueError(
                f"sampler: expected euler or ddim, as exact retracing needs, got {name}. Choose one of "
                "them, or switch exact_retracing off."
            )
        steps = [self.trajectory.step_of(float(sigma)) for sigma in sigmas]
        if steps != [*range(steps[0], steps[0] + len(steps))]:
            raise ValueError(
                "sigmas: expected every step of the trajectory, because exact retracing corrects each of them, "
                f"got {len(steps) - 1} of its {self.trajectory.steps} steps. Use as many steps as the "
                "inversion, or switch exact_retracing off."
            )


def exact_retracing(model: ModelPatcher, trajectory: Trajectory) -> ModelPatcher:
    """A clone of `model` with which a sampler goes back along a `ddim` trajectory exactly."""
    trajectory.model.require_match(model)
    return SourceRuns(RETRACING, trajectory, None, None, exact=True).patched(model)


def _size(shape: torch.Size) -> str:
    return f"{' x '.join(map(str, shape[1:]))} in a batch of {shape[0]}"


class _Run:
    """One sampling run: knows the step, holds the source's values of that step and hands them to each call for conditions."""

    def __init__(
        self,
        edit: Edit | None,
        trajectory: Trajectory,
        source: Conds | None,
        retracing: Retracing | None,
        sampler: str,
        network: Network,
    ):
        self.edit = edit
        self.last = 0 if edit is None else edit.last
        self.trajectory = trajectory
        self.source = source
        self.retracing = retracing
        self.sampler = sampler
        self.network = network
        self.now: tuple[int, Part] = (-1, WHOLE)
        self.records: dict[tuple[Area, Network], Record] = {}  # of this step and part
        self.questions: list[Question] = []  # of these records

    def calc_cond_batch(
        self,
        executor,
        model: BaseModel,
        conds: list,
        x_in: torch.Tensor,
        timestep: torch.Tensor,
        model_options: ModelOptions,
    ) -> list[torch.Tensor]:
        if self.retracing is None or RETRACING in model_options["transformer_options"]:
            return self._edited(executor, model, conds, x_in, timestep, model_options)
        step, question = self._step_of(float(timestep[0]), self.trajectory.steps), Question.of(x_in, model_options)
        if question.moved is not None:
            raise ValueError(
                "model: expected guidance that evaluates the sampler's own latent only, as exact retracing "
                "needs, got some that changes the latent first, as Self-Attention Guidance does. Remove it, or "
                "switch exact_retracing off."
            )
        asked = self.retracing.asked(x_in, step, question.part)
        options = comfy.model_patcher.create_model_options_clone(model_options)
        options["transformer_options"][QUESTION] = question
        options["transformer_options"][RETRACING] = self.retracing
        answers = self._edited(executor, model, conds, asked, timestep, options)
        return [
            answer if rows is None else self.retracing.denoised(answer, asked, x_in, step)
            for rows, answer in zip(conds, answers, strict=True)
        ]

    def _edited(
        self,
        executor,
        model: BaseModel,
        conds: list,
        x_in: torch.Tensor,
        timestep: torch.Tensor,
        model_options: ModelOptions,
    ) -> list[torch.Tensor]:
        if self.edit is None or is_source_pass(model_options["transformer_options"]):
            return executor(model, conds, x_in, timestep, model_options)
        step, question = self._step_of(float(timestep[0]), self.last), Question.of(x_in, model_options)
        part = question.part
        self._require_size(model_options, x_in)
        if self.now != (step, part):
            self.now, self.records, self.questions = (step, part), {}, []
        areas = {}
        if step < self.last:
            areas = {
                (i, cond["uuid"]): _area(cond)
                for i, rows in enumerate(conds)
                for cond in rows or ()
                if self.edit.concerns(step, cond) and comfy.samplers.get_area_and_mult(cond, x_in, timestep) is not None
            }
        if not areas:
            return executor(model, conds, x_in, timestep, model_options)
        records = {
            area: self._source_at(executor, model, x_in, timestep, model_options, area, question)
            for area in {*areas.values()}
        }
        options = comfy.model_patcher.create_model_options_clone(model_options)
        options["transformer_options"][QUESTION] = question
        self.edit.inject(step, options, {chunk: records[area] for chunk, area in areas.items()}, part)
        with uncompiled(model_options):
            return executor(model, conds, x_in, timestep, options)

    def _source_at(
        self,
        executor,
        model: BaseModel,
        x_in: torch.Tensor,
        timestep: torch.Tensor,
        model_options: ModelOptions,
        area: Area,
        question: Question,
    ) -> Record:
        """What the source shows when it is asked as this call asks."""
        key = (area, question.network)
        if question.moved is None and key in self.records:
            return self.records[key]
        step, part = self.now
        record = None
        if area is None and question.moved is None and question.network == self.network:
            record = self.edit.kept(step, part)
        if record is None:
            options = mark_source_pass(model_options)
            options["transformer_options"][QUESTION] = question
            record = self.edit.record(step, options)
            whole = self.trajectory.latents[step].to(x_in)
            x = taken(part, whole)
            if RETRACING in options["transformer_options"]:
                x = options["transformer_options"][RETRACING].asked(x, step, part)
            if question.moved is not None:
                x = x + question.moved
            read_source(
                model,
                resized_conds(self.source, whole, part, model_options),
                x,
                timestep[: len(x)],
                options,
                area,
                executor,
            )
        record = {place: value.to(x_in.device) for place, value in record.items()}
        if question.moved is None:
            self.records[key] = record
            self.questions.append(question)
        return record

    def _require_size(self, model_options: ModelOptions, x: torch.Tensor) -> None:
        size = self.trajectory.latents.shape[-2:]
        got = model_options["transformer_options"].get(SAMPLER_X, x).shape[-2:]
        if got != size:
            raise ValueError(
                f"sampler: expected one that keeps the size of the trajectory's latent, {size[0]} x {size[1]}, got {self.sampler}, which asks "
                f"about {got[0]} x {got[1]}. Use one that does, such as euler or lcm."
            )

    def _step_of(self, sigma: float, last: int) -> int:
        """The trajectory's step at this level, or `last` for any level below that step's."""
        step = self.trajectory.step_of(sigma)
        if step is not None:
            return step
        if last < self.trajectory.steps and sigma < float(self.trajectory.sigmas[last]):
            return last
        raise ValueError(
            f"sampler: expected one that evaluates the model at the trajectory's levels only, got {self.sampler}, which also "
            f"needs sigma {sigma:.4f}, between two of them. Use one that does not, such as euler, heun, dpmpp_2m or lcm."
        )


def _area(cond: dict[str, Any]) -> Area:
    return tuple(cond["area"]) if "area" in cond else None
