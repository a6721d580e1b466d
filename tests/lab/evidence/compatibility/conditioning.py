"""Rows of core's nodes that change prompts: regions, times, sums, hooks, ControlNets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import comfy.hooks
import torch
from lab.evidence.compatibility.graph import NEGATIVE, Graph, core, encoded
from lab.evidence.compatibility.patches import low_rank
from lab.evidence.compatibility.rows import Row
from palimpsest.nodes.diffusion.conditioning import Conditioning
from support.fixtures import tiny_models

Dress = Callable[[Conditioning], Conditioning]
COND = "nodes.Conditioning"
HOOKS = "nodes_hooks"


def row(name: str, dress: Dress, plain_source: bool = False, group: str = "prompts", **options) -> Row:
    return Row(group, name, lambda graph: replace(graph, dress=dress, plain_source=plain_source), **options)


def regional(name: str, dress: Dress) -> Row:
    """For rows in whose place an artist wires a plain prompt to the pack's `source`."""
    return row(name, dress, plain_source=True)


def negative_only(name: str, dress: Dress) -> Row:
    def change(graph: Graph) -> Graph:
        plain = graph.prompts
        return replace(graph, prompts=lambda text: dress(plain(text)) if text == NEGATIVE else plain(text))

    return Row("prompts", name, change)


def left_half() -> torch.Tensor:
    mask = torch.zeros(1, 128, 128)
    mask[..., :64] = 1.0
    return mask


def area(conditioning: Conditioning) -> Conditioning:
    return core(f"{COND}SetArea", conditioning, 64, 128, 64, 0, 0.8)


def combined(part: Dress) -> Dress:
    return lambda conditioning: core(f"{COND}Combine", conditioning, part(conditioning))


def mask(bounds: str) -> Dress:
    return lambda conditioning: core(f"{COND}SetMask", conditioning, left_half(), bounds, 0.9)


def ranges(conditioning: Conditioning) -> Conditioning:
    first = core(f"{COND}SetTimestepRange", conditioning, 0.0, 0.5)
    return core(f"{COND}Combine", first, core(f"{COND}SetTimestepRange", conditioning, 0.5, 1.0))


def first_half(conditioning: Conditioning) -> Conditioning:
    """Its own prompt in the first half, and another one in the second."""
    first = core(f"{COND}SetTimestepRange", conditioning, 0.0, 0.5)
    return core(f"{COND}Combine", first, core(f"{COND}SetTimestepRange", encoded("a house"), 0.5, 1.0))


def lora_hook(strength: float = 1.0) -> comfy.hooks.HookGroup:
    """What CreateHookLora makes of a file."""
    return comfy.hooks.create_hook_lora(low_rank(), strength, 0.0)


def hooked(conditioning: Conditioning) -> Conditioning:
    return core(f"{HOOKS}.ConditioningSetProperties", conditioning, 1.0, "default", hooks=lora_hook())


def keyframed(conditioning: Conditioning) -> Conditioning:
    frames = core(f"{HOOKS}.CreateHookKeyframesInterpolated", 0.0, 1.0, "linear", 0.0, 1.0, 3, False)
    hooks = core(f"{HOOKS}.SetHookKeyframes", lora_hook(), frames)
    return core(f"{HOOKS}.ConditioningSetProperties", conditioning, 1.0, "default", hooks=hooks)


def two_hooked(conditioning: Conditioning) -> Conditioning:
    return core(
        f"{HOOKS}.ConditioningSetPropertiesAndCombine", conditioning, conditioning, 1.0, "default", mask=left_half(),
        hooks=lora_hook(),
    )  # fmt: skip


def timed(conditioning: Conditioning) -> Conditioning:
    span = core(f"{HOOKS}.ConditioningTimestepsRange", 0.0, 0.6)[0]
    return core(
        f"{HOOKS}.ConditioningSetPropertiesAndCombine", conditioning, conditioning, 1.0, "default", timesteps=span
    )


def defaulted(conditioning: Conditioning) -> Conditioning:
    return core(f"{HOOKS}.ConditioningSetDefaultAndCombine", mask("default")(conditioning), conditioning)


def hint(batch: int = 1) -> torch.Tensor:
    return torch.rand(batch, 128, 128, 3, generator=torch.Generator().manual_seed(12))


def controlled(batch: int = 1, start: float = 0.0, end: float = 1.0) -> Dress:
    net = tiny_models.control_net()

    def dress(conditioning: Conditioning) -> Conditioning:
        return core("nodes.ControlNetApplyAdvanced", conditioning, conditioning, net, hint(batch), 0.8, start, end)[0]

    return dress


def chained(conditioning: Conditioning) -> Conditioning:
    return controlled()(controlled(start=0.2, end=0.7)(conditioning))


def old_control(conditioning: Conditioning) -> Conditioning:
    net = tiny_models.control_net()
    return core("nodes.ControlNetApply", conditioning, net, hint(), 0.8)


ROWS = [
    row("ConditioningAverage", lambda c: core(f"{COND}Average", c, encoded("a house"), 0.7)),
    row("ConditioningConcat", lambda c: core(f"{COND}Concat", c, encoded("in a garden"))),
    row("ConditioningMultiply", lambda c: core(f"{COND}Multiply", c, 1.2)),
    row("ConditioningSetAreaStrength", lambda c: core(f"{COND}SetAreaStrength", c, 0.8)),
    negative_only("ConditioningZeroOut (negative)", lambda c: core(f"{COND}ZeroOut", c)),
    # An edit gives every prompt of the positive the source's values: into itself it leads if they are all the source's.
    regional("ConditioningCombine, equal prompts", combined(lambda c: c)),
    regional("ConditioningSetArea, with a prompt for the whole picture", combined(area)),
    regional("ConditioningSetArea alone", area),
    regional(
        "ConditioningSetAreaPercentage, with a prompt for the whole picture",
        combined(lambda c: core(f"{COND}SetAreaPercentage", c, 0.5, 1.0, 0.0, 0.0, 1.0)),
    ),
    regional("ConditioningSetMask, with a prompt for the whole picture", combined(mask("default"))),
    regional("ConditioningSetMask with bounds, with a prompt for the whole picture", combined(mask("mask bounds"))),
    regional("ConditioningSetMask alone", mask("default")),
    regional("ConditioningSetTimestepRange, two halves", ranges),
    regional("ConditioningSetTimestepRange, another prompt later", first_half),
    regional("ConditioningSetDefaultCombine", defaulted),
    row("LoRA hook", hooked),
    row("LoRA hook with keyframes", keyframed),
    regional("LoRA hook in a mask, with a prompt for the whole picture", two_hooked),
    regional("Timesteps Range, with a prompt for the whole picture", timed),
    row("ControlNetApplyAdvanced", lambda c: controlled()(c)),
    row("ControlNetApplyAdvanced, 0.2 to 0.7", lambda c: controlled(start=0.2, end=0.7)(c)),
    row("ControlNetApplyAdvanced, two in a chain", chained),
    row("ControlNetApply", old_control),
]
