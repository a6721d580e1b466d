"""Plug-and-Play (2211.12572): a source picture's features and self-attention in every row of another prompt's sampling."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from ..attention.features import SiteRecorder, add_diffusion_model_wrapper, on_features
from ..attention.self_attention import QueryInjection, add_attn1_patch, inject_rows
from ..attention.unet_sites import Sites
from ..diffusion.source_pass import Area, Chunk, ModelOptions, Record, Recorder, chunks_of, is_source_pass
from ..diffusion.source_run import SourceRuns
from ..diffusion.trajectory import Conditioning, Trajectory
from .features import Features
from .windows import Windows

if TYPE_CHECKING:
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
    elif source is None:
        source = trajectory.positive
    edit = _Edit(windows, features)
    SourceRuns(KEY, trajectory, source, edit.begin).add_to(patched)
    return patched


@dataclass(frozen=True)
class _Edit:
    windows: Windows
    features: Features | None

    @property
    def last(self) -> int:
        return self.windows.last

    def begin(self, guider, sigmas: torch.Tensor, model_options: ModelOptions) -> _Edit:
        return self

    def concerns(self, cond: dict[str, Any]) -> bool:
        return True

    def source_values(self, step: int, area: Area, evaluate: Callable[[Recorder], None]) -> Record:
        sites = self.windows.at(step)
        if self.features is None:
            recorder = SiteRecorder(sites)
            evaluate(recorder)
            return recorder.record
        if area is not None:
            raise ValueError(
                "features: expected conditioning for the whole picture, got some with an area, for which nothing was captured. "
                "Disconnect `features`, so that the source is evaluated for that area, or use a mask without bounds."
            )
        return {
            key: value
            for key, value in self.features.records[step].items()
            if (key[2] in sites.features if key[0] == "feature" else key[1:] in sites.layers)
        }

    def injection(self, step: int, records: dict[Chunk, Record]) -> _Injection:
        return _Injection(self.windows.at(step), records)


class _Injection:
    """Overwrites the sites in every row of every chunk of the UNet calls made for one set of conditions."""

    def __init__(self, sites: Sites, records: dict[Chunk, Record]):
        self.sites = sites
        self.records = records

    def attach(self, model_options: ModelOptions) -> None:
        add_attn1_patch(model_options, QueryInjection(self.sites.layers, self.records))
        add_diffusion_model_wrapper(model_options, self.diffusion_model)

    def diffusion_model(self, executor, x, timesteps, context, y, control, transformer_options, **kwargs):
        chunks = chunks_of(transformer_options)

        def replace(block: int, output: torch.Tensor) -> torch.Tensor:
            return inject_rows(output, self.records, ("feature", "output", block), chunks)

        blocks = () if is_source_pass(transformer_options) else self.sites.features
        with on_features(executor.class_obj, blocks, replace):
            return executor(x, timesteps, context, y, control, transformer_options, **kwargs)
