"""Plug-and-Play (2211.12572): a source picture's features and self-attention in every row of another prompt's sampling."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..attention.calls import Chunk, ModelOptions, Record
from ..attention.structure import Structure, structure_of
from ..diffusion.conditioning import Conditioning
from ..diffusion.context_window import Part, taken
from ..diffusion.source_run import SourceRuns, exact_retracing
from ..diffusion.trajectory import Trajectory
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
    exact: bool = False,
) -> ModelPatcher:
    """A clone of `model` whose every sampling run along `trajectory`'s levels keeps the source's structure.

    exact: retrace the trajectory exactly, also behind the windows.
    """
    trajectory.model.require_match(model)
    if windows.last == 0:
        return exact_retracing(model, trajectory) if exact else model.clone()
    if features is not None:
        if source is not None:
            raise ValueError(
                "source: expected nothing beside `features`, which were captured with a source prompt of their own, got "
                "conditioning. Disconnect one of the two."
            )
        features.model.require_match(model)
        features.require_match(trajectory, windows, exact)
        source = features.source
    elif source is None:
        source = trajectory.positive
    edit = _Edit(structure_of(model), windows, features)
    return SourceRuns(KEY, trajectory, source, lambda run: edit, exact).patched(model)


@dataclass(frozen=True)
class _Edit:
    structure: Structure
    windows: Windows
    features: Features | None

    @property
    def last(self) -> int:
        return self.windows.last

    def concerns(self, step: int, cond: dict[str, Any]) -> bool:
        return True

    def kept(self, step: int, part: Part) -> Record | None:
        if self.features is None or part[0] != 0:
            return None
        chosen = self.structure.chosen(self.features.records[step], self.windows.at(step))
        return {key: taken(part, value) for key, value in chosen.items()}

    def record(self, step: int, options: ModelOptions) -> Record:
        return self.structure.record(options, self.windows.at(step))

    def inject(self, step: int, options: ModelOptions, records: dict[Chunk, Record], part: Part) -> None:
        self.structure.inject(options, self.windows.at(step), records)
