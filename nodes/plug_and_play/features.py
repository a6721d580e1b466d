"""Features of a source picture along its trajectory, kept for many edits of it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import comfy.model_management
import torch

from ..attention.calls import ModelOptions, Record
from ..attention.structure import structure_of
from ..diffusion.conditioning import Conditioning
from ..diffusion.source import visit
from ..diffusion.source_run import exact_retracing
from ..diffusion.trajectory import ModelFingerprint, Trajectory
from .windows import Windows

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


@dataclass(frozen=True)
class Features:
    """Records of the source's steps 0..len(records)-1 on the CPU, one tensor per site and step inside its window."""

    records: tuple[Record, ...] = field(repr=False)
    model: ModelFingerprint
    trajectory: str  # digest
    windows: Windows
    exact: bool  # captured where exact retracing asks the model
    source: Conditioning = field(repr=False)  # what they were read with

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for record in self.records for tensor in record.values())

    def require_match(self, trajectory: Trajectory, windows: Windows, exact: bool) -> None:
        """Raise ValueError unless these features hold all that an edit of `trajectory` with these settings reads."""
        if self.trajectory != digest(trajectory):
            raise ValueError(
                "features: expected those of the connected trajectory, got some captured along another one. "
                "Connect one trajectory to both nodes."
            )
        if not self.windows.sites.covers(windows.sites):
            raise ValueError(
                f"features: expected captured blocks that include '{windows.sites}', got '{self.windows.sites}'. "
                "Write the same blocks in both nodes."
            )
        if self.exact != exact:
            raise ValueError(
                f"features: expected some captured with exact_retracing {'on' if exact else 'off'}, as here, got the opposite. "
                "Set exact_retracing alike in both nodes."
            )
        for kind in ("feature", "attention"):
            needed, captured = (getattr(w, kind) for w in (windows, self.windows))
            if needed > captured:
                raise ValueError(
                    f"features: expected {kind} values of the first {needed} steps, got {captured}. Raise {kind}_end in "
                    "Capture Features, or lower it here."
                )


def digest(trajectory: Trajectory) -> str:
    values = (trajectory.sigmas, trajectory.latents)
    return hashlib.sha256(b"".join(value.contiguous().numpy().tobytes() for value in values)).hexdigest()


def bytes_of_all_steps(first: Record, windows: Windows) -> int:
    """What records of all steps in `windows` take, by that of the first step."""
    features = ("feature", "value")  # of a UNet, of a transformer
    steps = {site: windows.feature if site[0] in features else windows.attention for site in first}
    return sum(tensor.nbytes * steps[site] for site, tensor in first.items())


def _require_room(more: int, size: int) -> None:
    free = comfy.model_management.get_free_memory(torch.device("cpu"))
    if more > free:
        raise ValueError(
            f"features: expected memory for {size / 2**30:.1f} GB of captured values, got {free / 2**30:.1f} GB free. Lower feature_end or "
            "attention_end, name fewer blocks, or leave Capture Features out: Plug-and-Play then reads the source as it goes."
        )


def capture(
    model: ModelPatcher,
    trajectory: Trajectory,
    windows: Windows,
    dtype: torch.dtype,
    source: Conditioning | None = None,
    exact: bool = False,
    tell: Callable[[int], None] = lambda size: None,
) -> Features:
    """Run the source pass of 2211.12572 over every step in `windows`; `source` defaults to the trajectory's conditioning.

    tell: called with the bytes that all steps take, before the first of a transformer and after the first of a UNet.
    """
    structure = structure_of(model)
    values = [structure.values(windows.at(step), trajectory.latents[step]) for step in range(windows.last)]
    counted = None not in values
    if counted:
        size = sum(values) * dtype.itemsize
        _require_room(size, size)
        tell(size)
    records: list[Record] = []

    def read(step: int, options: ModelOptions) -> None:
        records.append(structure.record(options, windows.at(step)))

    def keep(step: int) -> None:
        records[-1] = {
            site: tensor.to("cpu", dtype if tensor.is_floating_point() else None)
            for site, tensor in records[-1].items()
        }
        if len(records) == 1 and not counted:
            size = bytes_of_all_steps(records[0], windows)
            _require_room(size - sum(tensor.nbytes for tensor in records[0].values()), size)
            tell(size)

    source = trajectory.positive if source is None else source
    visit(exact_retracing(model, trajectory) if exact else model, trajectory, source, range(windows.last), read, keep)
    return Features(tuple(records), ModelFingerprint.of(model), digest(trajectory), windows, exact, source)
