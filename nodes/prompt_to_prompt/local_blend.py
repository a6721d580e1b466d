"""Prompt-to-prompt's local blend: outside the words' own place the picture stays the source's.

After each step the published code sets x = x_src + mask (x - x_src). Here the guided prediction is changed instead, and the sampler's
own x is left alone. For samplers without noise of their own the prediction is such that
x - (x - denoised) (sigma - sigma_next) / sigma, the step that Euler and DDIM take, ends exactly on the source's next latent:
denoised' = mask denoised + (1 - mask) (x_src_next - r x) / (1 - r) with r = sigma_next / sigma. Samplers that add noise leave the
source's path by it; there the prediction outside the mask is the source's picture itself. Both end on it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ..diffusion.context_window import WHOLE, Part
from ..diffusion.samplers import DETERMINISTIC, sampler_name
from ..diffusion.source_run import Run
from ..diffusion.trajectory import Trajectory
from .settings import Settings
from .word_layers import clearest, variation
from .word_sites import WordSites

Size = tuple[int, ...]


def at_size(maps: torch.Tensor, size: Size) -> torch.Tensor:
    """[B, maps, h, w] at another size. Patches such as Deep Shrink change the size of layers while they last."""
    return maps if maps.shape[2:] == size else F.interpolate(maps, size, mode="bilinear", align_corners=False)


class Maps:
    """One evaluation's attention to the words whose place may change, and to those whose place must not, one map a layer.

    Only added to while the network runs, possibly in several threads, each with its own device.
    """

    def __init__(self, part: Part, clearest: bool = False):
        self.part = part
        self.clearest = clearest
        self.layers: list[tuple[torch.Tensor, torch.Tensor]] = []

    def add(self, size: Size, source: torch.Tensor, target: torch.Tensor) -> None:
        """source, target: [B, N, 2]."""
        source, target = (maps.transpose(1, 2).unflatten(-1, size) for maps in (source, target))
        self.layers.append((source, target))

    def total(self, size: Size, like: torch.Tensor) -> torch.Tensor:
        """[B, 4, h, w] over layers: for source and target the words whose place may change, then those whose place must not."""
        layers = self.layers
        if self.clearest:
            layers = [layers[number] for number in clearest(dict(enumerate(map(_standing_out, layers))))]
        source, target = (sum(at_size(maps.to(like), size) for maps in side) for side in zip(*layers, strict=True))
        return torch.stack([source[:, 0], target[:, 0], source[:, 1], target[:, 1]], 1)


class LocalBlend:
    """One sampling run."""

    def __init__(
        self,
        trajectory: Trajectory,
        sigmas: torch.Tensor,
        settings: Settings,
        sites: WordSites,
        noisy: bool,
    ):
        self.sites = sites
        self.trajectory = trajectory
        self.sigmas = sigmas
        self.settings = settings
        self.noisy = noisy
        self.evaluated: list[tuple[int, Maps]] = []  # since the last prediction
        self.latest: tuple[int, torch.Tensor | None] = (-1, None)
        self.before: torch.Tensor | None = None  # of the steps before the latest

    @classmethod
    def of(cls, run: Run, trajectory: Trajectory, settings: Settings, sites: WordSites) -> LocalBlend:
        handler = run.model_options.get("context_handler")
        if handler is not None and handler.dim != 0:
            raise ValueError(
                f"blend_words: expected context windows over pictures (dim 0), got some over dim {handler.dim}, which never show the model "
                "the whole picture. Leave blend_words empty, or the context windows out."
            )
        return cls(trajectory, run.sigmas, settings, sites, sampler_name(run.sampler) not in DETERMINISTIC)

    def new_maps(self, step: int, part: Part) -> Maps:
        maps = Maps(part, self.sites.clearest)
        self.evaluated.append((step, maps))
        return maps

    def predict_noise(self, executor, x: torch.Tensor, timestep: torch.Tensor, *args, **kwargs) -> torch.Tensor:
        """A wrapper around the guider's prediction, which may guide in several rounds."""
        denoised = executor(x, timestep, *args, **kwargs)
        if not self.evaluated:
            return denoised
        step, maps = self._read(x)
        if step != self.latest[0]:
            self.before = _sum(self.before, self.latest[1])
        self.latest = step, maps
        maps = _sum(self.before, maps)
        i = int((self.sigmas - timestep[0].cpu()).abs().argmin())
        # The positive may rest at these levels (a time range of its own), and a schedule may stop early.
        if step not in self.settings.blend or maps is None or i == len(self.sigmas) - 1:
            return denoised
        last = self.trajectory.steps if self.noisy else self.trajectory.step_of(float(self.sigmas[i + 1]))
        source = self.trajectory.latents[last].to(x)
        source = source.repeat(len(x) // len(source), *[1] * (x.ndim - 1))
        ratio = 0.0 if self.noisy else float(self.sigmas[i + 1] / self.sigmas[i])
        return torch.where(self._mask(maps, x), denoised, (source - ratio * x) / (1.0 - ratio))

    def _read(self, x: torch.Tensor) -> tuple[int, torch.Tensor | None]:
        """The step, and the maps [B, 4, h, w] that one prediction for x was made with."""
        step = self.evaluated[0][0]
        # Later evaluations for one prediction, such as PAG's, are of a UNet that others have disturbed.
        parts: dict[Part, Maps] = {}
        for _, maps in self.evaluated:
            parts.setdefault(maps.part, maps)
        self.evaluated.clear()
        read = {part: maps.total(self.sites.blend_size, x) for part, maps in parts.items() if maps.layers}
        if not read or WHOLE in read:
            return step, read.get(WHOLE)
        total = x.new_zeros(len(x), 4, *self.sites.blend_size)
        count = x.new_zeros(len(x), *[1] * (total.ndim - 1))
        for (_, rows), maps in read.items():
            rows = torch.tensor(rows, device=x.device)
            total.index_add_(0, rows, maps)
            count.index_add_(0, rows, torch.ones(len(maps), *count.shape[1:]).to(count))
        return step, total / count.clamp_min(1.0)

    def _mask(self, maps: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """[B, 1, H, W], where the picture may change; with frames where x has them."""
        changed, kept = maps[:, :2], maps[:, 2:]
        pool = F.max_pool3d if maps.ndim == 5 else F.max_pool2d
        window, padding = ((1, 3, 3), (0, 1, 1)) if maps.ndim == 5 else (3, 1)
        mask = self._above(pool(changed, window, stride=1, padding=padding), x)
        if self.settings.edit.source_kept or self.settings.edit.target_kept:
            mask = mask & ~self._above(kept, x)
        return mask if mask.ndim == x.ndim else mask[:, :, None]

    def _above(self, maps: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Where the source's or the target's map is above the threshold, as a share of its highest value."""
        places = tuple(range(2, maps.ndim))
        if self.sites.blend_from_lowest:
            maps = maps - maps.amin(places, keepdim=True)
        maps = F.interpolate(maps, size=x.shape[2 - maps.ndim :])
        above = maps > self.settings.blend_threshold * maps.amax(places, keepdim=True)
        return above.any(1, keepdim=True)


def _standing_out(layer: tuple[torch.Tensor, torch.Tensor]) -> float:
    return max(variation(maps[:, group]) for maps in layer for group in (0, 1))


def _sum(a: torch.Tensor | None, b: torch.Tensor | None) -> torch.Tensor | None:
    if a is None or b is None:
        return b if a is None else a
    return a + b
