"""The loop of all trainings of the toy world: resumable, with a learning rate whose end can be chosen late."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

SAVE_SECONDS = 120.0
WARMUP = 100  # steps
DECAY = 0.3  # of the steps, at the end, in which the learning rate falls to nothing
AVERAGED = 16.97  # the exponent of the moving average: of about the last 5 % of what was trained (2312.02696)
CLIP = 1.0  # norm of the gradient


Batch = Sequence[Tensor]


@dataclass(frozen=True)
class Run:
    """Where a training happens, and what comes of it."""

    cache: Path
    seed: int
    device: torch.device
    threads: int = 1
    steps: int | None = None  # instead of the part's own
    batch: int | None = None

    def size(self, steps: int, batch: int, steps_cuda: int, batch_cuda: int) -> tuple[int, int]:
        """Steps and pictures a step: what this device can do in the time there is, if nothing else was asked for."""
        own = (steps_cuda, batch_cuda) if self.is_cuda else (steps, batch)
        return self.steps or own[0], self.batch or own[1]

    @property
    def is_cuda(self) -> bool:
        return self.device.type == "cuda"

    def precision(self) -> AbstractContextManager:
        """bfloat16 where it is fast."""
        return torch.autocast("cuda", torch.bfloat16, cache_enabled=False) if self.is_cuda else nullcontext()

    def chance(self, step: int) -> torch.Generator:
        """What is random in a step: a function of the seed and the step's number alone, so that a resumed run repeats it."""
        return torch.Generator().manual_seed(self.seed * 1_000_003 + step)


def on(device: torch.device, chance: torch.Generator) -> torch.Generator:
    """What draws much at once on the device: `chance` itself on the CPU, elsewhere a generator of the device that it seeds."""
    if device.type == "cpu":
        return chance
    return torch.Generator(device).manual_seed(int(torch.randint(2**62, (), generator=chance)))


def gaussian(like: Tensor, chance: torch.Generator) -> Tensor:
    """Noise of the shape of `like`, drawn where it is."""
    return torch.randn(like.shape, device=like.device, generator=on(like.device, chance))


def rate_of(step: int, steps: int) -> float:
    """Of the full learning rate: constant, and linear to nothing in the last part. So a run may end earlier or later than planned."""
    decay = max(DECAY * steps, 1)
    return min(1.0, (step + 1) / WARMUP, (steps - step) / decay)


def train(
    run: Run,
    name: str,
    model: nn.Module,
    optimisers: Sequence[torch.optim.Optimizer],
    batch_of: Callable[[int], Batch],
    loss_of: Callable[..., Tensor],
    steps: int,
    *,
    average: nn.Module | None = None,
    saved: Callable[[int], None] = lambda _step: None,
) -> None:
    """Trains to `steps`, from the state in the cache if there is one. `average`: a copy of the model that follows it.

    `batch_of` draws what a step of that number learns from, and `loss_of` is a function of these tensors and the model alone.
    `saved` is called with the step's number whenever the state was written.
    """
    file = run.cache / f"{name}.pt"
    state = {"model": model, **{f"optimiser {i}": optimiser for i, optimiser in enumerate(optimisers)}}
    if average is not None:
        state["average"] = average
    first = load_state(file, state)
    parameters = [p for optimiser in optimisers for group in optimiser.param_groups for p in group["params"]]
    rates = [[group.setdefault("full", group["lr"]) for group in o.param_groups] for o in optimisers]
    descend = Graphed(loss_of, parameters) if run.is_cuda else partial(eager, loss_of, parameters)
    losses: list[Tensor] = []
    written = time.monotonic()
    with tqdm(range(first, steps), initial=first, total=steps, desc=name, mininterval=1.0) as progress:
        for step in progress:
            for optimiser, full in zip(optimisers, rates, strict=True):
                for group, rate in zip(optimiser.param_groups, full, strict=True):
                    group["lr"] = rate * rate_of(step, steps)
            losses.append(descend(*batch_of(step)))
            nn.utils.clip_grad_norm_(parameters, CLIP)
            for optimiser in optimisers:
                optimiser.step()
            if average is not None:
                share = 1 - (1 - 1 / (step + 1)) ** (AVERAGED + 1)
                with torch.no_grad():
                    torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), share)
            if time.monotonic() - written > SAVE_SECONDS or step + 1 == steps:
                save_state(file, state, step + 1)
                progress.write(f"{name}: step {step + 1} of {steps}, loss {torch.stack(losses).mean():.4f}")
                losses.clear()
                saved(step + 1)
                written = time.monotonic()


def eager(loss_of: Callable[..., Tensor], parameters: Sequence[Tensor], *batch: Tensor) -> Tensor:
    """Leaves the gradients and returns the loss."""
    for parameter in parameters:
        parameter.grad = None
    loss = loss_of(*batch)
    loss.backward()
    return loss.detach()


class Graphed:
    """The same, recorded once as a CUDA graph: networks as small as these wait for Python more than for the GPU."""

    def __init__(self, loss_of: Callable[..., Tensor], parameters: Sequence[Tensor]) -> None:
        self.descend = partial(eager, loss_of, parameters)
        self.graph: torch.cuda.CUDAGraph | None = None
        self.batch: list[Tensor] = []

    def __call__(self, *batch: Tensor) -> Tensor:
        if self.graph is None:
            self.batch = [part.clone() for part in batch]
            self.record()
        torch._foreach_copy_(self.batch, list(batch))
        self.graph.replay()
        return self.loss.clone()

    def record(self) -> None:
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(3):  # what libraries set up at first use cannot be recorded
                self.descend(*self.batch)
        torch.cuda.current_stream().wait_stream(aside)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.loss = self.descend(*self.batch)


def save_state(file: Path, state: dict, step: int) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".partial")
    torch.save({"step": step, **{key: value.state_dict() for key, value in state.items()}}, partial)
    partial.replace(file)


def load_state(file: Path, state: dict) -> int:
    """Restores every entry and returns the step to go on from: 0 without a file."""
    if not file.exists():
        return 0
    found = torch.load(file, weights_only=True, map_location="cpu")
    for key, value in state.items():
        value.load_state_dict(found[key])
    return found["step"]


def initialise(module: nn.Module) -> None:
    """ComfyUI's layers skip PyTorch's initialisation, since they expect a checkpoint."""
    for layer in module.modules():
        for kind in (nn.Conv2d, nn.ConvTranspose2d, nn.Linear, nn.GroupNorm, nn.LayerNorm, nn.Embedding):
            if isinstance(layer, kind):
                kind.reset_parameters(layer)
