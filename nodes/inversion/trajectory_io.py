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
VERSION = 2
MAX_FILE_BYTES = 8 << 30
MAX_STEPS = 10_000
DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
NAMES = {
    "control": "a ControlNet",
    "hooks": "hooks",
    "gligen": "GLIGEN boxes",
    "unclip_conditioning": "an image embedding",
}
PLAIN = (type(None), bool, int, float, str)


class TrajectoryFileError(ValueError):
    """The one error that reading a bad file raises."""


def save_trajectory(trajectory: Trajectory, path: Path) -> None:
    """Write `trajectory`; raises ValueError for a conditioning that holds more than tensors and plain values, nested or not."""
    tensors = {"latents": trajectory.latents, "sigmas": trajectory.sigmas, "residuals": trajectory.residuals}
    header = {
        "version": VERSION,
        "method": trajectory.method,
        "model_class": trajectory.model.model_class,
        "latent_format": trajectory.model.latent_format,
        "sampling": list(trajectory.model.sampling),
        "sigma_max": trajectory.model.sigma_max,
        "text_width": trajectory.model.text_width or 0,
        "conditioning": [
            [
                _encoded(text, "cross_attn", tensors),
                {key: _encoded(value, key, tensors) for key, value in extra.items()},
            ]
            for text, extra in trajectory.positive
        ],
    }
    checked_file.write(path, HEADER, header, tensors)


def _encoded(value: Any, key: str, tensors: dict[str, torch.Tensor]) -> Any:
    """`value` as JSON: lists and plain values as they are, all else as {its kind: ...}. Its tensors are added to `tensors`."""
    if isinstance(value, torch.Tensor) and value.dtype in DTYPES.values():
        name = f"conditioning.{len(tensors) - 3}"
        tensors[name] = value
        return {"tensor": name}
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}
    if isinstance(value, PLAIN):
        return value
    if isinstance(value, list | tuple):
        items = [_encoded(item, key, tensors) for item in value]
        return items if isinstance(value, list) else {"tuple": items}
    if isinstance(value, dict) and all(isinstance(name, str) for name in value):
        return {"dict": {name: _encoded(item, key, tensors) for name, item in value.items()}}
    raise ValueError(
        f"trajectory: expected a prompt of tensors and plain values, got one with {NAMES.get(key, repr(key))} "
        f"({type(value).__name__}), which a file can't keep. Invert without it to save the trajectory."
    )


def _decoded(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    """What `_encoded` was given; ValueError for what it does not make."""
    if isinstance(value, list):
        return [_decoded(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    require(len(value) == 1, "conditioning: unexpected fields")
    [(kind, content)] = value.items()
    if kind == "tensor" and isinstance(content, str) and content in tensors:
        return tensors[content]
    if kind == "float" and content in ("inf", "-inf", "nan"):
        return float(content)
    if kind == "tuple" and isinstance(content, list):
        return tuple(_decoded(content, tensors))
    require(kind == "dict" and isinstance(content, dict), "conditioning: unexpected fields")
    return {name: _decoded(item, tensors) for name, item in content.items()}


def load_trajectory(path: Path) -> Trajectory:
    """Read and check a file made by `save_trajectory`; anything else raises TrajectoryFileError."""
    try:
        header, tensors = checked_file.read(path, HEADER, MAX_FILE_BYTES, _check)
        require(bool(torch.isfinite(tensors["latents"]).all()), "latents has values that are not finite")
        return Trajectory(
            latents=tensors["latents"],
            sigmas=tensors["sigmas"],
            positive=_conditioning(_entries(header), tensors),
            model=ModelFingerprint(
                header["model_class"],
                header["latent_format"],
                tuple(header["sampling"]),
                header["sigma_max"],
                header.get("text_width") or None,
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
    if header.get("version") == 1:
        checked_file.check_fields(header, 1, fields)
    else:
        checked_file.check_fields(header, VERSION, {**fields, "text_width": int})
    require(math.isfinite(header["sigma_max"]), "sigma_max is not finite")
    require(all(type(name) is str for name in header["sampling"]), "sampling: expected names")
    require(len(header["conditioning"]) > 0, "no conditioning")
    names = {"latents", "sigmas", "residuals", *_tensor_names(_entries(header))}
    require(names == set(found), "its tensors have other names than expected")
    for key, (dtype, _) in found.items():
        require(dtype in (DTYPES if key.startswith("conditioning.") else {"F32"}), f"{key}: unexpected type {dtype}")
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
        options = {**values, **{key: {"tensor": f"conditioning.{i}.{key}"} for key in keys}}
        require("cross_attn" in options, "conditioning: no cross_attn")
        entries.append([options.pop("cross_attn"), options])
    return entries


def _tensor_names(value: Any) -> list[str]:
    if isinstance(value, list):
        return [name for item in value for name in _tensor_names(item)]
    if not isinstance(value, dict):
        return []
    if set(value) == {"tensor"} and isinstance(value["tensor"], str):
        return [value["tensor"]]
    return [name for item in value.values() for name in _tensor_names(item)]


def _conditioning(entries: list[Any], tensors: dict[str, torch.Tensor]) -> Conditioning:
    conditioning = []
    for entry in entries:
        require(isinstance(entry, list) and len(entry) == 2, "conditioning: unexpected fields")
        text, options = _decoded(entry[0], tensors), _decoded({"dict": entry[1]}, tensors)
        require(text is None or isinstance(text, torch.Tensor), "conditioning: expected a tensor or none for a text")
        conditioning.append([text, options])
    return conditioning
