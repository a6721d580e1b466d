"""Features of a source picture along its trajectory, kept for many edits of it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import comfy.samplers
import latent_preview
import torch

from ..diffusion.source_pass import Record, mark_source_pass, record_source
from ..diffusion.trajectory import Conditioning, ModelFingerprint, Trajectory
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

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for record in self.records for tensor in record.values())

    def require_match(self, trajectory: Trajectory, windows: Windows) -> None:
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
        for kind in ("feature", "attention"):
            needed, captured = (getattr(w, kind) for w in (windows, self.windows))
            if needed > captured:
                raise ValueError(
                    f"features: expected {kind} values of the first {needed} steps, got {captured}. Raise {kind}_end of the "
                    "capture, or lower it here."
                )


def digest(trajectory: Trajectory) -> str:
    values = (trajectory.sigmas, trajectory.latents)
    return hashlib.sha256(b"".join(value.contiguous().numpy().tobytes() for value in values)).hexdigest()


def capture(
    model: ModelPatcher,
    trajectory: Trajectory,
    windows: Windows,
    dtype: torch.dtype,
    source: Conditioning | None = None,
) -> Features:
    """Run the source pass of 2211.12572 over every step in `windows`; `source` defaults to the trajectory's conditioning."""
    trajectory.model.require_match(model)
    sampler = _CaptureSampler(trajectory, windows, dtype)
    guider = comfy.samplers.CFGGuider(model)
    guider.inner_set_conds({"positive": trajectory.positive if source is None else source})
    guider.model_options = mark_source_pass(guider.model_options)
    latent = model.model.process_latent_out(trajectory.latents[-1])
    callback = latent_preview.prepare_callback(model, windows.last)
    guider.sample(torch.zeros_like(latent), latent, sampler, trajectory.sigmas, callback=callback, seed=0)
    return Features(tuple(sampler.records), ModelFingerprint.of(model), digest(trajectory), windows)


class _CaptureSampler(comfy.samplers.Sampler):
    """Visits the trajectory instead of stepping, inside ComfyUI's own loading, conditions, progress and cancel."""

    def __init__(self, trajectory: Trajectory, windows: Windows, dtype: torch.dtype):
        self.trajectory = trajectory
        self.windows = windows
        self.dtype = dtype
        self.records: list[Record] = []

    def sample(
        self, model_wrap, sigmas, extra_args, callback, noise, latent_image=None, denoise_mask=None, disable_pbar=False
    ) -> torch.Tensor:
        for i in range(self.windows.last):
            x = self.trajectory.latents[i].to(noise)
            record, denoised = record_source(
                comfy.samplers.calc_cond_batch,
                model_wrap.inner_model,
                model_wrap.conds["positive"],
                x,
                sigmas[i].expand(len(x)),
                extra_args["model_options"],
                self.windows.at(i),
                to_the_end=True,
            )
            self.records.append({site: tensor.to("cpu", self.dtype) for site, tensor in record.items()})
            callback(i, denoised, x, self.windows.last)
        return latent_image
