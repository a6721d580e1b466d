"""Plug-and-Play (2211.12572): a source picture's features and self-attention in every row of another prompt's sampling."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..attention.calls import Chunk, ModelOptions, Record
from ..attention.features import inject_features
from ..attention.self_attention import inject_queries
from ..diffusion.conditioning import Conditioning
from ..diffusion.source_run import SourceRuns
from ..diffusion.trajectory import Trajectory
from .features import Features
from .windows import Windows, record_sites

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
    SourceRuns(KEY, trajectory, source, lambda guider, sigmas, options: edit).add_to(patched)
    return patched


@dataclass(frozen=True)
class _Edit:
    windows: Windows
    features: Features | None

    @property
    def last(self) -> int:
        return self.windows.last

    def concerns(self, cond: dict[str, Any]) -> bool:
        return True

    def record(self, step: int, options: ModelOptions) -> Record:
        if self.features is None:
            return record_sites(options, self.windows.at(step))
        sites = self.windows.at(step)
        return {
            key: value
            for key, value in self.features.records[step].items()
            if (key[2] in sites.features if key[0] == "feature" else key[1:] in sites.layers)
        }

    def inject(self, step: int, options: ModelOptions, records: dict[Chunk, Record]) -> None:
        sites = self.windows.at(step)
        inject_queries(options, sites.layers, records)
        inject_features(options, sites.features, records)
