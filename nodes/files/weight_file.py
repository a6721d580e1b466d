"""Reading published weights. A file is untrusted input: tensors are taken from it and nothing else."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.utils
import torch

LONGEST_NAME = 200  # of a tensor, in letters


def read_file(path: Path, socket: str) -> Any:
    """What ComfyUI's safe loader makes of the file; ValueError names `socket` if it makes nothing."""
    try:
        _require_uncompressed(path)
        return comfy.utils.load_torch_file(str(path), safe_load=True)
    except Exception as error:  # pickle's, zip's and safetensors' errors have nothing else in common
        raise ValueError(
            f"{socket}: {path.name} could not be read: {str(error).splitlines()[0] if str(error) else type(error).__name__}. It is "
            "incomplete, or holds more than tensors, which is never loaded. Download it again, as safetensors if there is one."
        ) from error


def read_tensors(path: Path, socket: str, what: str) -> dict[str, torch.Tensor]:
    """The named tensors of a file. what: the kind of file that is expected, for errors."""
    weights = read_file(path, socket)
    if not isinstance(weights, dict) or not all(isinstance(value, torch.Tensor) for value in weights.values()):
        raise ValueError(
            f"{socket}: expected {what}, got {path.name}, which holds other things than named tensors. Choose another file."
        )
    for name, value in weights.items():
        if not isinstance(name, str) or len(name) > LONGEST_NAME or not is_whole(value):
            raise ValueError(
                f"{socket}: expected {what}, got {path.name}, which has {name!s:.60} of an unexpected kind. Choose another file."
            )
    return weights


def is_whole(value: Any) -> bool:
    """Whether it is a plain tensor with as many numbers in the file as its shape says: an expanded one claims more."""
    return (
        isinstance(value, torch.Tensor)
        and value.layout == torch.strided
        and value.device.type == "cpu"
        and not value.is_quantized
        and 0 < value.nbytes <= value.untyped_storage().nbytes()
    )


def _require_uncompressed(path: Path) -> None:
    """torch.save compresses nothing: an archive that unpacks to more than its own size was made to fill the memory."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if sum(record.file_size for record in archive.infolist()) > path.stat().st_size:
                raise ValueError("it unpacks to more than its own size")


def require_weights(part: str, expected: dict[str, torch.Size], found: dict[str, torch.Tensor]) -> None:
    """ValueError unless every expected tensor is found, in its shape and of floating point."""
    missing = [name for name in expected if name not in found]
    if missing:
        raise ValueError(f"{part} lacks {len(missing)} of its {len(expected)} tensors, the first is {missing[0]}")
    for name, shape in expected.items():
        if found[name].shape != shape:
            raise ValueError(f"{part} has {name} as {list(found[name].shape)}, expected {list(shape)}")
        if not found[name].is_floating_point():
            raise ValueError(f"{part} has {name} as {found[name].dtype}, expected floating point")


def precision(
    weights: dict[str, torch.Tensor], wanted: torch.dtype | None, device: torch.device
) -> tuple[torch.dtype, torch.dtype | None]:
    """What a diffusion model's weights are held in, core's choice where nothing is `wanted`, and what they are cast to at use, if anything."""
    dtype = wanted or comfy.model_management.unet_dtype(
        device, comfy.utils.calculate_parameters(weights), weight_dtype=comfy.utils.weight_dtype(weights)
    )
    return dtype, comfy.model_management.unet_manual_cast(dtype, device)


def assign(
    network: torch.nn.Module, weights: dict[str, torch.Tensor], dtype: torch.dtype, device: torch.device
) -> None:
    """Give a network that was made on the meta device its weights, as copies of one precision.

    Empties `weights`: where nothing else holds them, no more than one tensor is in memory twice.
    """
    copies = {name: weights.pop(name).to(device, dtype, copy=True) for name in list(weights)}
    network.load_state_dict(copies, assign=True)
    network.requires_grad_(False)
