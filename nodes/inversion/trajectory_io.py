"""Trajectories as files: one safetensors each, with a validated header. A file is untrusted input."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from ..diffusion.trajectory import ModelFingerprint, Trajectory
from ..files import checked_file
from ..files.checked_file import require
from ..files.prompt_values import DTYPES, PREFIX, Writer, conditioning_of, tensor_names

SUFFIX = ".trajectory.safetensors"
HEADER = "palimpsest.trajectory"
VERSION = 2
MAX_FILE_BYTES = 8 << 30
MAX_STEPS = 10_000


class TrajectoryFileError(ValueError):
    """The one error that reading a bad file raises."""


def save_trajectory(trajectory: Trajectory, path: Path) -> None:
    """Write `trajectory`, without the parts of its prompt that `left_out_of` names."""
    writer = Writer()
    header = {
        "version": VERSION,
        "method": trajectory.method,
        "cfg": trajectory.cfg,
        "model_class": trajectory.model.model_class,
        "latent_format": trajectory.model.latent_format,
        "sampling": list(trajectory.model.sampling),
        "sigma_max": trajectory.model.sigma_max,
        "text_width": trajectory.model.text_width or 0,
        "conditioning": writer.entries(trajectory.positive),
    }
    tensors = {"latents": trajectory.latents, "sigmas": trajectory.sigmas, "residuals": trajectory.residuals}
    checked_file.write(path, HEADER, header, {**tensors, **writer.tensors})


def load_trajectory(path: Path) -> Trajectory:
    """Read and check a file made by `save_trajectory`; anything else raises TrajectoryFileError."""
    try:
        header, tensors = checked_file.read(path, HEADER, MAX_FILE_BYTES, _check)
        require(bool(torch.isfinite(tensors["latents"]).all()), "latents has values that are not finite")
        return Trajectory(
            latents=tensors["latents"],
            sigmas=tensors["sigmas"],
            positive=conditioning_of(_entries(header), tensors),
            model=ModelFingerprint(
                header["model_class"],
                header["latent_format"],
                tuple(header["sampling"]),
                header["sigma_max"],
                header.get("text_width") or None,
            ),
            method=header["method"],
            residuals=tensors["residuals"],
            cfg=header.get("cfg", 1.0),
        )
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise TrajectoryFileError(
            f"trajectory file: {path.name} is not a trajectory this version can read ({error}). "
            "Save the trajectory again with Save Trajectory."
        ) from error


def _check(header: dict[str, Any], found: dict[str, tuple[str, list[int]]]) -> None:
    """The header, and the names, types and shapes of the tensors."""
    fields = {
        "method": str, "model_class": str, "latent_format": str, "sampling": list, "sigma_max": float, "conditioning": list,
    }  # fmt: skip
    if header.get("version") == 1:
        checked_file.check_fields(header, 1, fields)
    else:
        later = {"text_width": int}
        if "cfg" in header:
            later["cfg"] = float if header["cfg"] is not None else type(None)
        checked_file.check_fields(header, VERSION, {**fields, **later})
        require(math.isfinite(header.get("cfg") or 0.0), "cfg is not finite")
    require(math.isfinite(header["sigma_max"]), "sigma_max is not finite")
    require(all(type(name) is str for name in header["sampling"]), "sampling: expected names")
    require(len(header["conditioning"]) > 0, "no conditioning")
    names = {"latents", "sigmas", "residuals", *tensor_names(_entries(header))}
    require(names == set(found), "its tensors have other names than expected")
    for key, (dtype, _) in found.items():
        require(dtype in (DTYPES if key.startswith(PREFIX) else {"F32"}), f"{key}: unexpected type {dtype}")
    shapes = {key: shape for key, (_, shape) in found.items()}
    require(
        len(shapes["latents"]) in (5, 6) and 0 not in shapes["latents"],
        "latents: expected [steps + 1, batch, channels, height, width]",
    )
    steps = shapes["latents"][0] - 1
    require(1 <= steps <= MAX_STEPS, f"{steps} steps, expected 1 to {MAX_STEPS}")
    require(
        shapes["sigmas"] == [steps + 1] and shapes["residuals"] == [steps], "sigmas and latents disagree on the steps"
    )


def _entries(header: dict[str, Any]) -> list[Any]:
    """The conditioning as this version writes it: [cross_attn, options] for each entry."""
    if header["version"] == VERSION:
        return header["conditioning"]
    entries = []
    for i, entry in enumerate(header["conditioning"]):
        require(isinstance(entry, dict) and set(entry) == {"values", "tensors"}, "conditioning: unexpected fields")
        values, keys = entry["values"], entry["tensors"]
        require(isinstance(values, dict) and isinstance(keys, list), "conditioning: unexpected fields")
        require(all(type(key) is str for key in keys), "conditioning: expected names")
        options = {**values, **{key: {"tensor": f"{PREFIX}{i}.{key}"} for key in keys}}
        require("cross_attn" in options, "conditioning: no cross_attn")
        entries.append([options.pop("cross_attn"), options])
    return entries
