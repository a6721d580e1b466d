"""Reference pictures as the subject encoder takes them, prepared as in the published training and inference code."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

MAX_SUBJECTS = 4
BACKGROUND_SEED = 0


@dataclass(frozen=True)
class Reference:
    """image: [H, W, 3] in [0, 1]; mask: [H, W], 1 on the subject, or None where all of the picture is the subject."""

    image: torch.Tensor
    mask: torch.Tensor | None = None


def references(sockets: Sequence[tuple[str, torch.Tensor | None, str, torch.Tensor | None]]) -> list[Reference]:
    """References in the order of the sockets, each (name, IMAGE, name, MASK). Each picture of a batch is one reference."""
    found: list[Reference] = []
    for image_name, image, mask_name, mask in sockets:
        if image is None:
            if mask is not None:
                raise ValueError(
                    f"{mask_name}: expected a mask of {image_name}, got one without that picture. Connect {image_name}, or disconnect "
                    f"{mask_name}."
                )
            continue
        if image.ndim != 4 or image.shape[-1] < 3 or 0 in image.shape:
            raise ValueError(
                f"{image_name}: expected one or more pictures, [pictures, height, width, 3], got {list(image.shape)}. Connect a loaded "
                "picture."
            )
        masks: list[torch.Tensor | None] = [None] * len(image)
        if mask is not None:
            masks = _masks(mask, mask_name, image, image_name)
        found += [Reference(picture[..., :3].float(), own) for picture, own in zip(image, masks, strict=True)]
    if len(found) > MAX_SUBJECTS:
        raise ValueError(
            f"images: expected at most {MAX_SUBJECTS} reference pictures, which is what the subject encoder was trained with, got "
            f"{len(found)} from all image sockets together. Disconnect some, or take a part of the batch."
        )
    return found


def _masks(mask: torch.Tensor, name: str, image: torch.Tensor, image_name: str) -> list[torch.Tensor]:
    mask = mask.reshape(-1, *mask.shape[-2:])
    if len(mask) not in (1, len(image)) or mask.shape[1:] != image.shape[1:3]:
        height, width = image.shape[1:3]
        raise ValueError(
            f"{name}: expected one mask or {len(image)} of the size of {image_name}, {width} x {height}, got {len(mask)} of "
            f"{mask.shape[2]} x {mask.shape[1]}. Load Image gives an empty mask of 64 x 64 for a picture without transparency."
        )
    mask = mask.expand(len(image), -1, -1)
    if not (mask >= 0.5).flatten(1).any(dim=1).all():
        raise ValueError(
            f"{name}: expected white where the subject is, got a mask without any. Draw the subject, or disconnect {name}; the mask of "
            "a picture with a transparent background needs Invert Mask."
        )
    return list(mask)


def prepared(reference: Reference, size: int) -> torch.Tensor:
    """[3, size, size] in [0, 1]."""
    picture = reference.image if reference.mask is None else _cut_out(reference.image, reference.mask)
    height, width = picture.shape[:2]
    x = picture.movedim(-1, 0)
    # Half of an odd difference is rounded down, as published; resizing then makes the picture square.
    across, down = max(height - width, 0) // 2, max(width - height, 0) // 2
    x = torch.nn.functional.pad(x, (across, across, down, down))
    return torch.nn.functional.interpolate(x[None], (size, size), mode="bilinear", antialias=True)[0]


def _cut_out(picture: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """As in training: the background becomes uniform noise, and the picture is cropped to the subject's bounding box."""
    subject = mask.to(picture.device) >= 0.5
    generator = torch.Generator().manual_seed(BACKGROUND_SEED)
    noise = torch.randint(0, 255, picture.shape, generator=generator).to(picture) / 255
    rows, columns = (subject.any(dim=axis).nonzero().flatten().tolist() for axis in (1, 0))
    picture = torch.where(subject[..., None], picture, noise)
    return picture[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
