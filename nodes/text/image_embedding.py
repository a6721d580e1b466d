"""Image embeddings as CLIP_VISION_OUTPUT: one vector for each picture, in the space that CLIP's pictures and texts share."""

from __future__ import annotations

import comfy.clip_vision
import torch

ENCODERS = {768: "CLIP ViT-L/14", 1024: "CLIP ViT-H/14", 1280: "CLIP ViT-bigG/14"}


class ImageEmbedding(comfy.clip_vision.Output):
    """A CLIP_VISION_OUTPUT that has only what unCLIP models read: `image_embeds` [batch, width], and no states of patches."""

    def __init__(self, image_embeds: torch.Tensor):
        self.image_embeds = image_embeds

    def __getattr__(self, name: str):
        raise AttributeError(
            f"clip_vision_output: expected an encoded picture with its {name}, got an embedding that was computed or loaded, which has "
            "image_embeds only. Connect CLIP Vision Encode here, or use this embedding with unCLIPConditioning."
        )


def image_embeds(value: comfy.clip_vision.Output | torch.Tensor, socket: str) -> torch.Tensor:
    """[batch, width] of a CLIP_VISION_OUTPUT, or of EMBEDS, the plain tensor of IPAdapter's nodes; ValueError names the socket."""
    embeds = value if isinstance(value, torch.Tensor) else getattr(value, "image_embeds", None)
    if not isinstance(embeds, torch.Tensor) or embeds.ndim != 2 or 0 in embeds.shape:
        got = list(embeds.shape) if isinstance(embeds, torch.Tensor) else "none"
        raise ValueError(
            f"{socket}: expected CLIP's image embedding, one vector for each picture [batch, width], got {got}. Use CLIP Vision Encode "
            "with a CLIP model: SigLIP and IPAdapter Plus describe a picture by its patches instead."
        )
    if not bool(torch.isfinite(embeds).all()):
        raise ValueError(f"{socket}: expected finite numbers, got nan or inf. Encode the picture again.")
    if bool((embeds == 0).all(dim=-1).any()):
        raise ValueError(
            f"{socket}: expected an embedding of a picture, got an embedding of zeros. Encode a picture; to sample without one, disconnect it."
        )
    return embeds


def encoder_of(width: int) -> str:
    """For errors: the width, and the CLIP model it belongs to if that is known."""
    return f"{width} wide ({ENCODERS[width]})" if width in ENCODERS else f"{width} wide"


def require_match(embeds: dict[str, torch.Tensor]) -> int:
    """The batch size of embeddings of one width, of which a single one goes with any batch; ValueError if they do not match."""
    (first, like), *others = embeds.items()
    for socket, other in others:
        if other.shape[1] != like.shape[1]:
            raise ValueError(
                f"{socket}: expected an embedding {encoder_of(like.shape[1])}, as {first} is, got one {encoder_of(other.shape[1])}. Encode "
                "both pictures with the same CLIP vision model."
            )
    return require_batch({socket: len(e) for socket, e in embeds.items()})


def require_batch(counts: dict[str, int]) -> int:
    """The batch size of sockets that all have as many rows, or a single one; ValueError if they differ."""
    many = {socket: count for socket, count in counts.items() if count > 1}
    for socket, count in many.items():
        first, expected = next(iter(many.items()))
        if count != expected:
            raise ValueError(
                f"{socket}: expected a batch of {expected}, as {first} has, or a single one for all of it, got {count}. Use the same number in both."
            )
    return max(many.values(), default=1)
