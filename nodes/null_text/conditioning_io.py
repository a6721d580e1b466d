"""A CONDITIONING as a file, such as null-text's negative: one safetensors with a validated header. A file is untrusted input."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from ..diffusion.conditioning import Conditioning
from ..diffusion.schedule import MADE_FOR
from ..files import checked_file
from ..files.checked_file import require
from ..files.prompt_values import DTYPES, PREFIX, Writer, conditioning_of, tensor_names

SUFFIX = ".conditioning.safetensors"
HEADER = "palimpsest.conditioning"
VERSION = 1
MAX_FILE_BYTES = 2 << 30


class ConditioningFileError(ValueError):
    """The one error that reading a bad file raises."""


def save_conditioning(conditioning: Conditioning, path: Path) -> None:
    """Write `conditioning`, without the parts that `left_out_of` names."""
    writer = Writer()
    header = {"version": VERSION, "conditioning": writer.entries(conditioning)}
    checked_file.write(path, HEADER, header, writer.tensors)


def load_conditioning(path: Path) -> Conditioning:
    """Read and check a file made by `save_conditioning`; anything else raises ConditioningFileError."""
    try:
        header, tensors = checked_file.read(path, HEADER, MAX_FILE_BYTES, _check)
        conditioning = conditioning_of(header["conditioning"], tensors)
        for _, options in conditioning:
            _check_made_for(options.get(MADE_FOR))
        return conditioning
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise ConditioningFileError(
            f"conditioning_file: expected a file of Save Conditioning, got {path.name}, which this version can't read ({error}). Save the "
            "conditioning again."
        ) from error


def _check_made_for(made_for: Any) -> None:
    if made_for is None:
        return
    require(isinstance(made_for, dict) and set(made_for) == {"sigmas", "cfg"}, "made_for: unexpected fields")
    sigmas, cfg = made_for["sigmas"], made_for["cfg"]
    require(isinstance(sigmas, torch.Tensor) and sigmas.ndim == 1 and len(sigmas) > 1, "made_for: expected sigmas")
    require(isinstance(cfg, int | float), "made_for: expected a number for cfg")


def _check(header: dict[str, Any], found: dict[str, tuple[str, list[int]]]) -> None:
    checked_file.check_fields(header, VERSION, {"conditioning": list})
    require(len(header["conditioning"]) > 0, "no conditioning")
    require(set(tensor_names(header["conditioning"])) == set(found), "its tensors have other names than expected")
    for key, (dtype, shape) in found.items():
        require(key.startswith(PREFIX) and dtype in DTYPES, f"{key}: unexpected type {dtype}")
        require(0 not in shape, f"{key}: expected numbers, got none")
