"""Arithmetic on CLIP image embeddings (DALL-E 2, 2204.06125, section 3). Vectors are [..., D], computed in float64.

CLIP compares directions, but decoders were trained on embeddings that are not normalised. So directions are interpolated on the
unit sphere, and norms are kept or interpolated linearly.
"""

from __future__ import annotations

import torch


class NothingLeft(ValueError):
    """A difference or sum of vectors is zero, and has no direction."""


def slerp(a: torch.Tensor, b: torch.Tensor, theta: torch.Tensor) -> torch.Tensor:
    """Along the great circle from `a` (theta 0) to `b` (theta 1), both bit-identical; the norm is interpolated linearly.

    theta: [...], broadcast against the leading dimensions. Between opposite directions every great circle is possible: taken is
    the one through the coordinate axis that is farthest from both.
    """
    device, theta, a, b = a.device, theta.cpu().double().unsqueeze(-1), a.cpu(), b.cpu()
    u, v = unit(a), unit(b)
    cos = (u * v).sum(-1, keepdim=True)
    rest = v - cos * u
    rest = rest - (rest * u).sum(-1, keepdim=True) * u  # twice: of nearly parallel vectors little but rounding is left
    sin = rest.norm(dim=-1, keepdim=True)
    away = torch.where(sin > 1e-12, rest / sin.clamp_min(1e-12), _orthogonal(u))
    angle = theta * torch.atan2(sin, cos)
    norm = torch.lerp(_norm(a), _norm(b), theta)
    between = (norm * (angle.cos() * u + angle.sin() * away)).to(a.dtype)
    return torch.where(theta == 0, a, torch.where(theta == 1, b.to(a.dtype), between)).to(device)


def text_diff(image: torch.Tensor, text: torch.Tensor, base: torch.Tensor | None, theta: torch.Tensor) -> torch.Tensor:
    """slerp(z_i, z_d, theta) with z_d = norm(z_t - z_t0): z_i is `image` [..., D], z_t `text` [D], z_t0 `base` [D].

    Texts are normalised first, as in the paper's CLIP. Without a base z_d is the text's own direction. The norm of `image` is kept.
    NothingLeft if both texts have the same direction.
    """
    difference = unit(text) if base is None else unit(text) - unit(base)
    if float(_norm(difference)) < 1e-6:
        raise NothingLeft("the texts have the same direction")
    target = unit(difference) * _norm(image)
    return slerp(image, target.to(image.dtype).expand_as(image), theta)


def mix(embeddings: list[torch.Tensor], weights: list[float], keep_norm: bool) -> torch.Tensor:
    """sum_k w_k z_k over embeddings [..., D]; keep_norm gives it the mean of their norms, weighted by |w_k|.

    NothingLeft when they cancel out.
    """
    scale = torch.tensor(weights, dtype=torch.float64)
    stack = torch.stack([z.cpu().double() for z in embeddings], dim=-1)
    total = stack @ scale
    norms = stack.norm(dim=-2) @ scale.abs()
    size = _norm(total)
    if bool((size <= 1e-6 * norms.unsqueeze(-1)).any()):
        raise NothingLeft("the weighted embeddings cancel out")
    if keep_norm:
        total = total * ((norms / scale.abs().sum()).unsqueeze(-1) / size)
    return total.to(embeddings[0])


def cosine(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Of the angle between vectors: [..., D], [..., D] -> [...]."""
    return (unit(a) * unit(b)).sum(-1).clamp(-1, 1)


def unit(x: torch.Tensor) -> torch.Tensor:
    return x.cpu().double() / _norm(x)


def _norm(x: torch.Tensor) -> torch.Tensor:
    return x.cpu().double().norm(dim=-1, keepdim=True)


def _orthogonal(u: torch.Tensor) -> torch.Tensor:
    """A unit vector orthogonal to `u`, the same for -u: from the coordinate axis that is nearest to orthogonal."""
    axis = torch.nn.functional.one_hot(u.abs().argmin(-1), u.shape[-1]).to(u)
    rest = axis - (axis * u).sum(-1, keepdim=True) * u
    return rest / rest.norm(dim=-1, keepdim=True)
