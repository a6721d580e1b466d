"""A CONDITIONING as plain values and tensors, for a file; what no file can keep is left out and named. A file is untrusted input."""

from __future__ import annotations

import math
from typing import Any

import torch

from .checked_file import require

PREFIX = "conditioning."  # of the names of its tensors
LEFT_OUT = "palimpsest.left_out"  # in the dict of an entry: the names of what was left out when it was saved
DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
# Parts of a prompt that are objects of the running ComfyUI.
NAMES = {
    "control": "ControlNet",
    "hooks": "hooks",
    "gligen": "GLIGEN boxes",
    "unclip_conditioning": "image embedding",
}
PLAIN = (type(None), bool, int, float, str)

Conditioning = list[list[Any]]


class _NotKept(Exception):
    pass


class Writer:
    """Turns prompts into JSON. tensors: those they hold, by name, equal ones once."""

    def __init__(self) -> None:
        self.tensors: dict[str, torch.Tensor] = {}

    def entries(self, conditioning: Conditioning) -> list[Any]:
        """[text, options] for each entry: lists and plain values as they are, all else as {its kind: ...}."""
        return [[self._encoded(text), self._options(options)] for text, options in conditioning]

    def _options(self, options: dict[str, Any]) -> dict[str, Any]:
        kept, left_out = {}, list(options.get(LEFT_OUT, ()))
        for key, value in options.items():
            try:
                if key in NAMES:
                    raise _NotKept
                kept[key] = self._encoded(value)
            except _NotKept:
                left_out += [NAMES.get(key, key)] if value is not None else []
        return kept | ({LEFT_OUT: sorted(set(left_out))} if left_out else {})

    def _encoded(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor) and value.dtype in DTYPES.values():
            return {"tensor": self._named(value.detach().cpu())}
        if isinstance(value, float) and not math.isfinite(value):
            return {"float": str(value)}
        if isinstance(value, PLAIN):
            return value
        if isinstance(value, list | tuple):
            items = [self._encoded(item) for item in value]
            return items if isinstance(value, list) else {"tuple": items}
        if isinstance(value, dict) and all(isinstance(name, str) for name in value):
            return {"dict": {name: self._encoded(item) for name, item in value.items()}}
        raise _NotKept

    def _named(self, tensor: torch.Tensor) -> str:
        for name, other in self.tensors.items():
            if other.dtype == tensor.dtype and other.shape == tensor.shape and torch.equal(other, tensor):
                return name
        name = f"{PREFIX}{len(self.tensors)}"
        self.tensors[name] = tensor
        return name


def conditioning_of(entries: list[Any], tensors: dict[str, torch.Tensor]) -> Conditioning:
    """What `Writer.entries` was given, less what was left out; ValueError for what it does not make."""
    conditioning = []
    for entry in entries:
        require(isinstance(entry, list) and len(entry) == 2, "conditioning: unexpected fields")
        text, options = _decoded(entry[0], tensors), _decoded({"dict": entry[1]}, tensors)
        require(text is None or isinstance(text, torch.Tensor), "conditioning: expected a tensor or none for a text")
        require(not NAMES.keys() & options.keys(), "conditioning: unexpected fields")
        left_out = options.get(LEFT_OUT, [])
        require(isinstance(left_out, list) and all(type(name) is str for name in left_out), "left_out: expected names")
        conditioning.append([text, options])
    return conditioning


def _decoded(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
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


def tensor_names(value: Any) -> list[str]:
    """Of all tensors that a value of `Writer.entries` names."""
    if isinstance(value, list):
        return [name for item in value for name in tensor_names(item)]
    if not isinstance(value, dict):
        return []
    if set(value) == {"tensor"} and isinstance(value["tensor"], str):
        return [value["tensor"]]
    return [name for item in value.values() for name in tensor_names(item)]


def left_out_of(conditioning: Conditioning) -> list[str]:
    """What a file of this prompt lacks, or would lack if it were saved."""
    entries = Writer().entries(conditioning)
    return sorted({name for _, options in entries for name in options.get(LEFT_OUT, ())})
