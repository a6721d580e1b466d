"""Image embeddings as files: one safetensors each, with a validated header. A file is untrusted input."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from ...files import checked_file
from ...files.checked_file import require

SUFFIX = ".embedding.safetensors"
HEADER = "palimpsest.embedding"
VERSION = 1
MAX_FILE_BYTES = 1 << 30
DTYPES = {"F32", "F16", "BF16"}


class EmbeddingFileError(ValueError):
    """The one error that reading a bad file raises."""


def save_embedding(image_embeds: torch.Tensor, path: Path) -> None:
    """image_embeds: [batch, width], not normalised."""
    checked_file.write(path, HEADER, {"version": VERSION}, {"image_embeds": image_embeds})


def load_embedding(path: Path) -> torch.Tensor:
    """[batch, width] from a file of `save_embedding`; any other file raises EmbeddingFileError."""
    try:
        _, tensors = checked_file.read(path, HEADER, MAX_FILE_BYTES, _check)
        require(bool(torch.isfinite(tensors["image_embeds"]).all()), "it has values that are not finite")
        return tensors["image_embeds"]
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise EmbeddingFileError(
            f"embedding_file: expected a file of unCLIP Save Embedding, got {path.name}, which this version can't read ({error}). Save the "
            "embedding again."
        ) from error


def _check(header: dict[str, Any], found: dict[str, tuple[str, list[int]]]) -> None:
    checked_file.check_fields(header, VERSION, {})
    require(set(found) == {"image_embeds"}, "its tensors have other names than expected")
    dtype, shape = found["image_embeds"]
    require(dtype in DTYPES, f"image_embeds: unexpected type {dtype}")
    require(len(shape) == 2 and 0 not in shape, "image_embeds: expected [batch, width]")
