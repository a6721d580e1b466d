"""Gradient checkpointing of a UNet: its blocks keep their inputs and run again when the backward pass reaches them.

No forward is exchanged. Hooks on the blocks, held while the UNet's call lasts, open and close
torch.autograd.graph.saved_tensors_hooks around each one; what a block would save is counted, not kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from comfy.ldm.modules.attention import BasicTransformerBlock
from comfy.ldm.modules.diffusionmodules.openaimodel import ResBlock
from torch.autograd.graph import saved_tensors_hooks

BLOCKS = (ResBlock, BasicTransformerBlock)


@contextmanager
def checkpointed(unet: torch.nn.Module) -> Iterator[None]:
    """A graph made by calling `unet` in this context holds its blocks' inputs only, which must not be changed in place.

    A backward pass, after the context has ended, adds one block's activations at a time.
    """
    checkpoint = _Checkpoint()
    handles = []
    for block in (module for module in unet.modules() if isinstance(module, BLOCKS)):
        handles.append(block.register_forward_pre_hook(checkpoint.enter, with_kwargs=True))
        handles.append(block.register_forward_hook(checkpoint.leave, with_kwargs=True, always_call=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _Checkpoint:
    def __init__(self) -> None:
        self.open: list[saved_tensors_hooks] = []

    def enter(self, block: torch.nn.Module, args: tuple, kwargs: dict) -> None:
        call = _Call(block, args, kwargs)
        hooks = saved_tensors_hooks(call.pack, call.unpack)
        hooks.__enter__()
        self.open.append(hooks)

    def leave(self, block: torch.nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
        self.open.pop().__exit__(None, None, None)


class _Call:
    """One block's call: what autograd would save of it has only a number, until the backward pass asks for the first one."""

    def __init__(self, block: torch.nn.Module, args: tuple, kwargs: dict):
        self.block = block
        self.args = [_snapshot(value) for value in args]
        self.kwargs = {name: _snapshot(value) for name, value in kwargs.items()}
        self.count = 0
        self.saved: list[torch.Tensor] = []

    def pack(self, tensor: torch.Tensor) -> int:
        self.count += 1
        return self.count - 1

    def unpack(self, number: int) -> torch.Tensor:
        if not self.saved:
            self._run_again()
        return self.saved[number]

    def _run_again(self) -> None:
        def keep(tensor: torch.Tensor) -> None:
            self.saved.append(tensor.detach())

        def refuse(_: None) -> torch.Tensor:
            raise RuntimeError("nothing is propagated through a block's second run")

        with torch.enable_grad(), saved_tensors_hooks(keep, refuse):
            self.block(*map(_as_leaf, self.args), **{name: _as_leaf(value) for name, value in self.kwargs.items()})
        if len(self.saved) != self.count:
            raise RuntimeError(
                f"{type(self.block).__name__} saved {self.count} tensors in its first run and {len(self.saved)} in its second: "
                "a patch on the model does not do the same twice."
            )


def _snapshot(value: Any) -> Any:
    """transformer_options says where in the UNet a block is, and is rewritten for the next one."""
    return dict(value) if isinstance(value, dict) else value


def _as_leaf(value: Any) -> Any:
    return value.detach().requires_grad_(value.requires_grad) if isinstance(value, torch.Tensor) else value
