"""Trajectories as files: one safetensors each, with a validated header. A file is untrusted input."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from ..diffusion.conditioning import Conditioning
from ..diffusion.trajectory import ModelFingerprint, Trajectory
from ..files import checked_file
from ..files.checked_file import require

SUFFIX = ".trajectory.safetensors"
HEADER = "palimpsest.trajectory"
VERSION = 1
MAX_FILE_BYTES = 8 << 30
MAX_STEPS = 10_000
DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


class TrajectoryFileError(ValueError):
    """The one error that reading a bad file raises."""


def save_trajectory(trajectory: Trajectory, path: Path) -> None:
    """Write `trajectory`; raises ValueError for a conditioning that holds more than tensors and plain values."""
    tensors = {"latents": trajectory.latents, "sigmas": trajectory.sigmas, "residuals": trajectory.residuals}
    entries = []
    for i, (cross_attn, extra) in enumerate(trajectory.positive):
        entry: dict[str, Any] = {"values": {}, "tensors": []}
        for key, value in {"cross_attn": cross_attn, **extra}.items():
            if isinstance(value, torch.Tensor) and value.dtype in DTYPES.values():
                tensors[f"conditioning.{i}.{key}"] = value
                entry["tensors"].append(key)
            elif value is None or isinstance(value, (bool, int, float, str)):
                entry["values"][key] = value
            else:
                raise ValueError(
                    f"trajectory: its conditioning holds {key!r}, a {type(value).__name__}, which a file can't keep. "
                    "Invert with a conditioning of text only to save the trajectory."
                )
        entries.append(entry)
    header = {
        "version": VERSION,
        "method": trajectory.method,
        "model_class": trajectory.model.model_class,
        "latent_format": trajectory.model.latent_format,
        "sampling": list(trajectory.model.sampling),
        "sigma_max": trajectory.model.sigma_max,
        "conditioning": entries,
    }
    checked_file.write(path, HEADER, header, tensors)


def load_trajectory(path: Path) -> Trajectory:
    """Read and check a file made by `save_trajectory`; anything else raises TrajectoryFileError."""
    try:
        header, tensors = checked_file.read(path, HEADER, MAX_FILE_BYTES, _check)
        for key, tensor in tensors.items():
            require(key == "residuals" or bool(torch.isfinite(tensor).all()), f"{key} has values that are not finite")
        return Trajectory(
            latents=tensors["latents"],
            sigmas=tensors["sigmas"],
            positive=_conditioning(header, tensors),
            model=ModelFingerprint(
                header["model_class"], header["latent_format"], tuple(header["sampling"]), header["sigma_max"]
            ),
            method=header["method"],
            residuals=tensors["residuals"],
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
    checked_file.check_fields(header, VERSION, fields)
    require(math.isfinite(header["sigma_max"]), "sigma_max is not finite")
    require(all(type(name) is str for name in header["sampling"]), "sampling: expected names")
    require(len(header["conditioning"]) > 0, "no conditioning")
    for entry in header["conditioning"]:
        require(isinstance(entry, dict) and set(entry) == {"values", "tensors"}, "conditioning: unexpected fields")
        require(
            isinstance(entry["values"], dict) and isinstance(entry["tensors"], list), "conditioning: unexpected fields"
        )
        require(all(type(key) is str for key in entry["tensors"]), "conditioning: expected names")
        plain = all(value is None or isinstance(value, (bool, int, float, str)) for value in entry["values"].values())
        require(plain, "conditioning: expected plain values")
        require("cross_attn" in {*entry["values"], *entry["tensors"]}, "conditioning: no cross_attn")
    keys = ["latents", "sigmas", "residuals"]
    for i, entry in enumerate(header["conditioning"]):
        keys += [f"conditioning.{i}.{key}" for key in entry["tensors"]]
    require(sorted(keys) == sorted(found), "its tensors have other names than expected")
    for key, (dtype, _) in found.items():
        require(dtype in (DTYPES if key.startswith("conditioning.") else {"F32"}), f"{key}: unexpected type {dtype}")
    shapes = {key: shape for key, (_, shape) in found.items()}
    require(
        len(shapes["latents"]) == 5 and 0 not in shapes["latents"],
        "latents: expected [steps + 1, batch, channels, height, width]",
    )
    steps = shapes["latents"][0] - 1
    require(1 <= steps <= MAX_STEPS, f"{steps} steps, expected 1 to {MAX_STEPS}")
    require(
        shapes["sigmas"] == [steps + 1] and shapes["residuals"] == [steps], "sigmas and latents disagree on the steps"
    )


def _conditioning(header: dict[str, Any], tensors: dict[str, torch.Tensor]) -> Conditioning:
    conditioning = []
    for i, entry in enumerate(header["conditioning"]):
        extra = {**entry["values"], **{key: tensors[f"conditioning.{i}.{key}"] for key in entry["tensors"]}}
        conditioning.append([extra.pop("cross_attn"), extra])
    return conditioning
