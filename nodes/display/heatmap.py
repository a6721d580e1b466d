"""Maps over a picture as colours."""

from __future__ import annotations

import torch

# Dark violet to yellow: colours of rising lightness, which also read as grey.
HEAT = ((0.0, 0.0, 0.02), (0.34, 0.07, 0.43), (0.73, 0.21, 0.33), (0.98, 0.55, 0.04), (0.99, 1.0, 0.64))


def heatmap(maps: torch.Tensor, image: torch.Tensor | None) -> torch.Tensor:
    """Maps [B, H, W] as colours [B, H, W, 3], half-way over the image [B or 1, H, W, 3] where there is one."""
    stops = torch.tensor(HEAT)
    position = maps * (len(HEAT) - 1)
    lower = position.floor().clamp(0, len(HEAT) - 2).long()
    colours = torch.lerp(stops[lower], stops[lower + 1], (position - lower)[..., None])
    return colours if image is None else torch.lerp(image[..., :3].cpu().expand_as(colours), colours, 0.6)
