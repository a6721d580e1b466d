"""Trajectories as files: one safetensors each, with a validated header. A file is untrusted input."""

from __future__ import annotations

import hashlib
import json
import math
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ..diffusion.trajectory import Conditioning, ModelFingerprint, Trajectory

SUFFIX = ".trajectory.safetensors"
HEADER = "palimpsest.trajectory"
VERSION = 1
MAX_HEADER_BYTES = 1 << 20
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
    tensors = {key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()}
    header = {
        "version": VERSION,
        "method": trajectory.method,
        "model_class": trajectory.model.model_class,
        "latent_format": trajectory.model.latent_format,
        "sampling": list(trajectory.model.sampling),
        "sigma_max": trajectory.model.sigma_max,
        "conditioning": entries,
    }
    header["digest"] = _digest(header, tensors)
    partial = path.with_name(path.name + ".partial")
    save_file(tensors, partial, metadata={HEADER: json.dumps(header, allow_nan=False)})
    os.replace(partial, path)


def load_trajectory(path: Path) -> Trajectory:
    """Read and check a file made by `save_trajectory`; anything else raises TrajectoryFileError."""
    try:
        _check_length(path)
        with safe_open(path, framework="pt", device="cpu") as file:
            header = _parse_header(file.metadata())
            keys = _check_layout(file, header)
            tensors = {key: file.get_tensor(key) for key in keys}
        _require(header.pop("digest") == _digest(header, tensors), "its contents do not match its checksum")
        for key, tensor in tensors.items():
            _require(key == "residuals" or bool(torch.isfinite(tensor).all()), f"{key} has values that are not finite")
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


def _require(condition: bool, why: str) -> None:
    if not condition:
        raise ValueError(why)


def _check_length(path: Path) -> None:
    size = path.stat().st_size
    _require(8 < size <= MAX_FILE_BYTES, f"{size} bytes, expected at most {MAX_FILE_BYTES}")
    with path.open("rb") as file:
        header_bytes = int.from_bytes(file.read(8), "little")
    _require(header_bytes <= min(size - 8, MAX_HEADER_BYTES), "its header is longer than the file or than any of ours")


def _parse_header(metadata: dict[str, str] | None) -> dict[str, Any]:
    _require(bool(metadata) and HEADER in metadata, "no trajectory header")
    header = json.loads(metadata[HEADER])
    _require(isinstance(header, dict) and header.get("version") == VERSION, f"expected version {VERSION}")
    fields = {
        "version": int, "method": str, "model_class": str, "latent_format": str, "sampling": list, "sigma_max": float,
        "conditioning": list, "digest": str,
    }  # fmt: skip
    _require(set(header) == set(fields), "its header has other fields than expected")
    for name, kind in fields.items():
        _require(type(header[name]) is kind, f"{name}: expected {kind.__name__}")
    _require(math.isfinite(header["sigma_max"]), "sigma_max is not finite")
    _require(all(type(name) is str for name in header["sampling"]), "sampling: expected names")
    _require(len(header["conditioning"]) > 0, "no conditioning")
    for entry in header["conditioning"]:
        _require(isinstance(entry, dict) and set(entry) == {"values", "tensors"}, "conditioning: unexpected fields")
        _require(
            isinstance(entry["values"], dict) and isinstance(entry["tensors"], list), "conditioning: unexpected fields"
        )
        _require(all(type(key) is str for key in entry["tensors"]), "conditioning: expected names")
        plain = all(value is None or isinstance(value, (bool, int, float, str)) for value in entry["values"].values())
        _require(plain, "conditioning: expected plain values")
        _require("cross_attn" in {*entry["values"], *entry["tensors"]}, "conditioning: no cross_attn")
    return header


def _check_layout(file: Any, header: dict[str, Any]) -> list[str]:
    """Names, types and shapes of the tensors, checked before any of them is read."""
    keys = ["latents", "sigmas", "residuals"]
    for i, entry in enumerate(header["conditioning"]):
        keys += [f"conditioning.{i}.{key}" for key in entry["tensors"]]
    _require(sorted(keys) == sorted(file.keys()), "its tensors have other names than expected")
    shapes, dtypes = {}, {}
    for key in keys:
        view = file.get_slice(key)
        shapes[key], dtypes[key] = view.get_shape(), view.get_dtype()
    for key in keys:
        _require(
            dtypes[key] in (DTYPES if key.startswith("conditioning.") else {"F32"}),
            f"{key}: unexpected type {dtypes[key]}",
        )
    _require(
        len(shapes["latents"]) == 5 and 0 not in shapes["latents"],
        "latents: expected [steps + 1, batch, channels, height, width]",
    )
    steps = shapes["latents"][0] - 1
    _require(1 <= steps <= MAX_STEPS, f"{steps} steps, expected 1 to {MAX_STEPS}")
    _require(
        shapes["sigmas"] == [steps + 1] and shapes["residuals"] == [steps], "sigmas and latents disagree on the steps"
    )
    return keys


def _conditioning(header: dict[str, Any], tensors: dict[str, torch.Tensor]) -> Conditioning:
    conditioning = []
    for i, entry in enumerate(header["conditioning"]):
        extra = {**entry["values"], **{key: tensors[f"conditioning.{i}.{key}"] for key in entry["tensors"]}}
        conditioning.append([extra.pop("cross_attn"), extra])
    return conditioning


def _digest(header: dict[str, Any], tensors: dict[str, torch.Tensor]) -> str:
    digest = hashlib.sha256(json.dumps(header, sort_keys=True, allow_nan=False).encode())
    for key in sorted(tensors):
        tensor = tensors[key]
        digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(memoryview(tensor.contiguous().view(torch.uint8).numpy()))
    return digest.hexdigest()
