"""What transformers.py measured, held against its bars."""

from __future__ import annotations

from statistics import median

from lab.benchmarks.report import GB, Bar, table
from lab.benchmarks.transformers import (
    ALONE,
    EDIT,
    EDIT_ALONE,
    EDIT_AT_MOST,
    MAP_AT_MOST,
    MEMORY_AT_MOST,
    PLAIN,
    Memory,
    Stack,
    Timed,
)

Times = list[tuple[Stack, Timed]]

TEXT = """\
ComfyUI's own classes with random weights, in float32 on the CPU; the size of the latent stands behind the model. Plug-and-Play injects
queries, keys and values at every step, in the blocks of `auto`. With guidance, plain sampling evaluates two rows a step and the edit
three; at guidance 1 it is one and two, and the ratio cannot be far below 2. No bar is set for that. Both runs of a ratio are repeated in
turns, every other time in reverse order.

“Map of words” is what Attention Mask does in a block to find 40 words, divided by that block's attention, both on the same queries, keys
and values, one right after the other. One run of the attention tells of as many words as a head has channels, less one: 127 for Flux.1, 63
for SD3.5, and 15 for the small model, where 12 words are looked for. Seconds are processor time, so that other work on the machine
counts little."""

MEMORY = """\
Memory of one step of Plug-and-Play with a transformer of full depth, in bf16, for a picture of 1024 x 1024: bytes of all storages that are
alive at once, counted on tensors that have shapes but no values. “Counted” is what Capture Features says before it runs. The last but
one column is how much higher the peak of an edited step is than that of a plain step with the same two rows, the clones that
injection makes in a block included."""


def bars(times: Times) -> list[Bar]:
    edits = [
        Bar(
            f"{EDIT} / {PLAIN}",
            str(stack),
            [a / b for a, b in zip(timed.runs[EDIT], timed.runs[PLAIN], strict=True)],
            EDIT_AT_MOST,
        )
        for stack, timed in times
    ]
    maps = [
        Bar(
            "map of words / attention of its block", str(stack), [words / own for own, words in timed.maps], MAP_AT_MOST
        )
        for stack, timed in times
    ]
    return [*edits, *maps]


def passed(times: Times, memory: dict[str, Memory]) -> bool:
    return all(bar.passed for bar in bars(times)) and all(map(within, memory.values()))


def within(memory: Memory) -> bool:
    return all(abs(got / memory.counted - 1.0) <= MEMORY_AT_MOST for got in (memory.held, memory.above_plain))


def section(times: Times, memory: dict[str, Memory]) -> str:
    ratios = table(["ratio", "model", "median", "range", "at most", ""], [bar.cells() for bar in bars(times)])
    rows = []
    for stack, timed in times:
        for name in (PLAIN, EDIT, ALONE, EDIT_ALONE):
            seconds = timed.runs[name]
            spread = f"{min(seconds):.2f} to {max(seconds):.2f}"
            rows.append([str(stack), name, str(stack.steps), f"{median(seconds):.2f}", spread])
    costs = table(["model", "", "steps", "seconds", "range"], rows)
    header = ["model", "counted, GB", "of it queries and keys", "held, GB", "above a plain step, GB", "within 10 %"]
    held = [
        [
            name,
            *(f"{value / GB:.2f}" for value in (own.counted, own.attention, own.held, own.above_plain)),
            "pass" if within(own) else "MISSED",
        ]
        for name, own in memory.items()
    ]
    return f"{TEXT}\n\n{ratios}\n\n{costs}\n\n{MEMORY}\n\n{table(header, held)}"
