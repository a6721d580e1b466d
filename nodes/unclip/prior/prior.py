"""Sampling image embeddings for a text with a diffusion prior (2204.06125, section 2.2)."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import comfy.model_management
import torch
from comfy.model_patcher import ModelPatcher

from ...text.text_states import TextStates
from ..respaced_schedule import respaced
from .transformer import KeysValues, PriorTransformer, Reading

TIMES_AT_ONCE = 32  # steps whose timesteps' tokens are computed together; bounds the memory of long schedules
CANDIDATES_AT_ONCE = 64  # in one call of the network; bounds the memory of many candidates


@dataclass(frozen=True)
class Prior:
    """width: of text and image embeddings; mean, std: [width], statistics of the image embeddings it was trained on."""

    patcher: ModelPatcher
    width: int
    mean: torch.Tensor
    std: torch.Tensor

    @property
    def model(self) -> PriorTransformer:
        return self.patcher.model


@dataclass(frozen=True)
class Options:
    """clamp: bound of the predicted embedding, in standard deviations; eta: 1 ancestral, 0 deterministic."""

    steps: int = 25
    cfg: float = 4.0
    clamp: float = 10.0
    eta: float = 1.0


def draw_noise(seed: int, count: int, width: int) -> Iterator[torch.Tensor]:
    """[count, width] for each step. Each row has its own generator: more candidates leave the first ones as they are."""
    if count < 1:
        raise ValueError(
            f"candidates: expected one or more, got {count} in all. Set candidates and batch_size to 1 or more."
        )
    seeds = torch.randint(2**63 - 1, (count,), generator=torch.Generator().manual_seed(seed)).tolist()
    generators = [torch.Generator().manual_seed(own) for own in seeds]
    return (torch.stack([torch.randn(width, generator=own) for own in generators]) for _ in itertools.count())


def sample(
    prior: Prior,
    text: TextStates,
    noise: Iterable[torch.Tensor],
    options: Options,
    after_step: Callable[[], None] | None = None,
) -> torch.Tensor:
    """Image embeddings [N, width], float32, not normalised, as CLIP's image encoder gives them.

    text: of the prompt, and unless cfg is 1 of the negative prompt after it. noise: x_T [N, width], then the noise that each step
    but the last adds. after_step: called after each step; may raise to cancel.
    """
    schedule = respaced(options.steps)
    noise = iter(noise)
    start = next(noise)
    _require_room(prior, text, len(start), options.steps)
    device = prior.patcher.load_device
    x, mean, std = (value.to(device, torch.float32) for value in (start, prior.mean, prior.std))
    reading = prior.model.read(*(value.to(device) for value in (text.states, text.pooled, text.mask)))
    masks = [prior.model.mask(reading, len(part)) for part in x.split(CANDIDATES_AT_ONCE)]
    timesteps = schedule.timesteps.to(device)
    for i in range(options.steps):
        comfy.model_management.throw_exception_if_processing_interrupted()
        if i % TIMES_AT_ONCE == 0:
            times = prior.model.read_times(reading, timesteps[i : i + TIMES_AT_ONCE])
        x0 = _predict(prior.model, x, reading, times, i % TIMES_AT_ONCE, masks, options)
        added = next(noise).to(x) if i + 1 < options.steps else torch.zeros_like(x)
        x = schedule.step(i, x, x0, added, options.eta)
        if after_step is not None:
            after_step()
    return (x * std + mean).to(comfy.model_management.intermediate_device())


def _predict(
    model: PriorTransformer,
    x: torch.Tensor,
    reading: Reading,
    times: KeysValues,
    step: int,
    masks: list[torch.Tensor],
    options: Options,
) -> torch.Tensor:
    rows = zip(x.split(CANDIDATES_AT_ONCE), masks, strict=True)
    parts = [model(part, reading, times, step, mask) for part, mask in rows]
    x0, *negative = torch.cat(parts, dim=1)
    if negative:
        x0 = negative[0] + options.cfg * (x0 - negative[0])
    return x0.clamp(-options.clamp, options.clamp)


def _require_room(prior: Prior, text: TextStates, count: int, steps: int) -> None:
    """Load the prior, and leave memory for the keys and values and for one block's activations."""
    model, texts = prior.model, len(text.mask)
    tokens = int(text.mask.sum()) + texts
    times = texts * min(steps, TIMES_AT_ONCE)
    activations = 16 * max(tokens, times, 2 * texts * min(count, CANDIDATES_AT_ONCE))
    needed = (2 * len(model.blocks) * (tokens + times) + activations) * model.width * model.compute_dtype.itemsize
    comfy.model_management.load_models_gpu([prior.patcher], memory_required=needed)


def best(candidates: torch.Tensor, text: torch.Tensor, batch: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Splits the candidates into `batch` equal groups: the best embedding of each [batch, width], and its cosine to `text` [batch].

    2204.06125 compares dot products. Its CLIP was trained on normalised embeddings, hence the cosine.
    """
    groups = candidates.unflatten(0, (batch, -1))
    scores = torch.nn.functional.cosine_similarity(groups, text.to(groups), dim=-1)
    score, chosen = scores.max(dim=1)
    return groups[torch.arange(batch, device=chosen.device), chosen], score
