"""Values of the pack as safetensors files: a header of its own, and a checksum over all of it. A file is untrusted input."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

MAX_HEADER_BYTES = 1 << 20


def require(condition: bool, why: str) -> None:
    if not condition:
        raise ValueError(why)


def write(path: Path, name: str, header: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    """Write `tensors` and `header` (plain values), which the file carries under `name`; the file is whole or not there."""
    tensors = {key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()}
    header = {**header, "digest": _digest(header, tensors)}
    partial = path.with_name(path.name + ".partial")
    save_file(tensors, partial, metadata={name: json.dumps(header, allow_nan=False)})
    os.replace(partial, path)


def read(
    path: Path, name: str, max_bytes: int, check: Callable[[dict[str, Any], dict[str, tuple[str, list[int]]]], None]
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """(header, tensors) as they were given to `write`.

    `check` gets the header with its digest and (type, shape) of every tensor, before any tensor is read, and raises ValueError
    for what it does not know. Everything else that is wrong with a file raises ValueError, SafetensorError or OSError.
    """
    size = path.stat().st_size
    require(8 < size <= max_bytes, f"{size} bytes, expected at most {max_bytes}")
    with path.open("rb") as file:
        header_bytes = int.from_bytes(file.read(8), "little")
    require(header_bytes <= min(size - 8, MAX_HEADER_BYTES), "its header is longer than this format allows")
    with safe_open(path, framework="pt", device="cpu") as file:
        metadata = file.metadata()
        require(bool(metadata) and name in metadata, f"no {name.split('.')[-1]} header")
        header = json.loads(metadata[name])
        require(isinstance(header, dict) and isinstance(header.get("digest"), str), "its header has no checksum")
        views = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118, no dict
        check(header, {key: (view.get_dtype(), view.get_shape()) for key, view in views.items()})
        tensors = {key: file.get_tensor(key) for key in views}
    require(header.pop("digest") == _digest(header, tensors), "its contents do not match its checksum")
    return header, tensors


def check_fields(header: dict[str, Any], version: int, fields: dict[str, type]) -> None:
    """ValueError unless the header is of `version` and has these fields and no others, each of its exact type."""
    require(header.get("version") == version, f"expected version {version}")
    fields = {"version": int, "digest": str, **fields}
    require(set(header) == set(fields), "its header has other fields than expected")
    for name, kind in fields.items():
        require(type(header[name]) is kind, f"{name}: expected {kind.__name__}")


def _digest(header: dict[str, Any], tensors: dict[str, torch.Tensor]) -> str:
    digest = hashlib.sha256(json.dumps(header, sort_keys=True, allow_nan=False).encode())
    for key in sorted(tensors):
        tensor = tensors[key]
        digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(memoryview(tensor.contiguous().reshape(-1).view(torch.uint8).numpy()))
    return digest.hexdigest()
