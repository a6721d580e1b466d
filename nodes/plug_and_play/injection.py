"""Plug-and-Play (2211.12572): a source picture's features and self-attention in every row of another prompt's sampling.

The source row is never sampled: at each step its latent is the trajectory's, evaluated once and only while a window lasts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import comfy.model_patcher
import comfy.sampler_helpers
import comfy.samplers
import torch
from comfy.patcher_extension import WrappersMP, add_wrapper_with_key

from ..diffusion.samplers import require_deterministic, sampler_name
from ..diffusion.source_pass import (
    WHAT_TO_DO,
    Area,
    ModelOptions,
    Record,
    attach,
    attention_site,
    is_source_pass,
    on_features,
    record_source,
)
from ..diffusion.trajectory import Conditioning, Trajectory
from ..diffusion.unet_sites import Sites
from .features import Features
from .windows import Windows

if TYPE_CHECKING:
    from comfy.model_base import BaseModel
    from comfy.model_patcher import ModelPatcher

KEY = "palimpsest.plug_and_play"


def plug_and_play(
    model: ModelPatcher,
    trajectory: Trajectory,
    windows: Windows,
    features: Features | None = None,
    source: Conditioning | None = None,
) -> ModelPatcher:
    """A clone of `model` whose every sampling run along `trajectory`'s levels keeps the source's structure."""
    trajectory.model.require_match(model)
    patched = model.clone()
    if windows.last == 0:
        return patched
    if features is not None:
        if source is not None:
            raise ValueError(
                "source: expected nothing beside `features`, which were captured with a source prompt of their own, got "
                "conditioning. Disconnect one of the two."
            )
        features.model.require_match(model)
        features.require_match(trajectory, windows)
    else:
        source = trajectory.positive if source is None else source
        if comfy.sampler_helpers.cond_has_hooks(source):
            raise ValueError(
                f"source: expected conditioning without hooks, which only a sampler's own prompts can have, got some. {WHAT_TO_DO}"
            )
        conds = {"source": comfy.sampler_helpers.convert_cond(source)}
        models, _ = comfy.sampler_helpers.get_additional_models(conds, patched.model_dtype())
        if models:
            patched.set_additional_models(KEY, patched.get_additional_models_with_key(KEY) + models)
    edit = _Edit(trajectory, windows, features, source)
    patched.add_wrapper_with_key(WrappersMP.SAMPLER_SAMPLE, KEY, edit.sampler_sample)
    return patched


@dataclass(frozen=True)
class _Edit:
    """What stays on the patcher between runs: settings only."""

    trajectory: Trajectory
    windows: Windows
    features: Features | None
    source: Conditioning | None

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
        require_deterministic(executor.class_obj)
        self.trajectory.model.require_match(model_wrap.model_patcher)
        self.trajectory.require_steps(sigmas.cpu())
        self._require_latent(noise)
        batch = self.trajectory.batch
        conds: dict[str, list[dict[str, Any]]] = {}
        if self.features is None:
            conds = comfy.samplers.process_conds(
                model_wrap.inner_model,
                noise[:batch],
                {"source": comfy.sampler_helpers.convert_cond(self.source)},
                noise.device,
                None if latent_image is None else latent_image[:batch],
                None if denoise_mask is None else denoise_mask[:batch],
                extra_args.get("seed"),
            )
        options = comfy.model_patcher.create_model_options_clone(extra_args["model_options"])
        run = _Run(self, conds.get("source", []), sampler_name(executor.class_obj))
        add_wrapper_with_key(WrappersMP.CALC_COND_BATCH, KEY, run.calc_cond_batch, options, is_model_options=True)
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
    """One sampling run: knows the step, holds the source's values of that step and hands them to each UNet call."""

    def __init__(self, edit: _Edit, source: list[dict[str, Any]], sampler: str):
        self.edit = edit
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
        if step >= self.edit.windows.last:
            return executor(model, conds, x_in, timestep, model_options)
        if step != self.step:
            self.step, self.records = step, {}
        areas = {cond["uuid"]: _area(cond) for rows in conds for cond in rows or ()}
        for area in set(areas.values()) - self.records.keys():
            self.records[area] = self._source_values(executor, model, area, x_in, timestep, model_options)
        injection = _Injection(
            self.edit.windows.at(step),
            {uuid: self.records[area] for uuid, area in areas.items()},
        )
        options = attach(comfy.model_patcher.create_model_options_clone(model_options), injection)
        return executor(model, conds, x_in, timestep, options)

    def _step_of(self, sigma: float) -> int:
        trajectory, last = self.edit.trajectory, self.edit.windows.last
        step = trajectory.step_of(sigma)
        if step is not None:
            return step
        if sigma < float(trajectory.sigmas[last]):
            return last
        raise ValueError(
            f"sampler: expected one that evaluates the model at the trajectory's levels only, got {self.sampler}, which also "
            f"needs sigma {sigma:.4f}, between two of them. Use euler, ddim, heun or dpmpp_2m."
        )

    def _source_values(
        self,
        executor,
        model: BaseModel,
        area: Area,
        x_in: torch.Tensor,
        timestep: torch.Tensor,
        model_options: ModelOptions,
    ) -> Record:
        edit = self.edit
        sites = edit.windows.at(self.step)
        if edit.features is None:
            x = edit.trajectory.latents[self.step].to(x_in)
            record, _ = record_source(executor, model, self.source, x, timestep[: len(x)], model_options, sites, area)
            return record
        if area is not None:
            raise ValueError(
                "features: expected conditioning for the whole picture, got some with an area, for which nothing was captured. "
                "Disconnect `features`, so that the source is evaluated for that area, or use a mask without bounds."
            )
        return {
            key: value.to(x_in.device)
            for key, value in edit.features.records[self.step].items()
            if (key[1] in sites.features if key[0] == "feature" else key[1:] in sites.attention)
        }


def _area(cond: dict[str, Any]) -> Area:
    return tuple(cond["area"]) if "area" in cond else None


class _Injection:
    """Overwrites the sites in every row of every chunk of the UNet calls made for one set of conditions.

    Values replace q and k through the normalised input both are linear in, so v stays the row's own.
    """

    def __init__(self, sites: Sites, records: dict[Any, Record]):
        self.sites = sites
        self.records = records  # by the uuid of the condition

    def attn1_patch(self, n: torch.Tensor, context: torch.Tensor, value: torch.Tensor, options: dict) -> tuple:
        site = attention_site(options)
        if site not in self.sites.attention or is_source_pass(options):
            return n, context, value
        query = self._rows(("query", *site), n, options["uuids"])
        own_key = ("key", *site) in self.records[options["uuids"][0]]
        key = self._rows(("key", *site), context, options["uuids"]) if own_key else query
        return query, key, value

    def diffusion_model(self, executor, x, timesteps, context, y, control, transformer_options, **kwargs):
        def replace(block: int, output: torch.Tensor) -> torch.Tensor:
            return self._rows(("feature", block, 0), output, transformer_options["uuids"])

        blocks = () if is_source_pass(transformer_options) else self.sites.features
        with on_features(executor.class_obj, blocks, replace):
            return executor(x, timesteps, context, y, control, transformer_options, **kwargs)

    def _rows(self, key: tuple[str, int, int], like: torch.Tensor, uuids: list) -> torch.Tensor:
        """The source's value in the shape of `like`, whose rows are chunks of one condition each."""
        chunk = len(like) // len(uuids)
        rows: list[torch.Tensor] = []
        for uuid in uuids:
            value = self.records[uuid][key].to(like)
            rows += [value] * (chunk // len(value))
        return torch.cat(rows)
