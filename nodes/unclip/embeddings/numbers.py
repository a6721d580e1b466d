"""Parses lists of numbers such as "0, 0.25, 0.5"."""

from __future__ import annotations

import math
import re

import torch

MAX_FRAMES = 4096


def numbers(text: str, socket: str) -> list[float]:
    """Numbers between commas, semicolons (also those of Chinese and Japanese), spaces or line ends."""
    values = []
    for word in re.split(r"[,;\s，、；]+", text.strip(" ,;\t\r\n，、；")):
        try:
            values.append(float(word))
        except ValueError:
            values.append(math.nan)
        if not math.isfinite(values[-1]):
            got = repr(word) if word else "none"
            raise ValueError(f"{socket}: expected numbers such as 0, 0.25, 0.5, got {got}. Put commas between numbers.")
    return values


def thetas(text: str, frames: int) -> torch.Tensor:
    """[T]: the numbers of the list, or with `frames` that many, interpolated evenly through the list."""
    keys = numbers(text, "thetas")
    for value in keys:
        if not 0 <= value <= 1:
            raise ValueError(
                f"thetas: expected numbers from 0 to 1, got {value:g} in {text!r}. Write decimals with a point, 0.25, and commas between."
            )
    if frames and len(keys) == 1:
        raise ValueError(
            f"thetas: expected at least two numbers to spread {frames} frames over, got {text!r}. Set frames to 0, or write 0, {keys[0]:g}."
        )
    if len(keys) > MAX_FRAMES:
        raise ValueError(f"thetas: expected at most {MAX_FRAMES} numbers, got {len(keys)}. Make fewer at a time.")
    if not frames:
        return torch.tensor(keys, dtype=torch.float64)
    line = torch.tensor(keys, dtype=torch.float64)
    at = torch.linspace(0, len(keys) - 1, frames, dtype=torch.float64)
    before = at.floor().clamp(max=len(keys) - 2).long()
    return torch.lerp(line[before], line[before + 1], at - before)


def mixing_weights(text: str, count: int) -> list[float]:
    """One for each of `count` embeddings; equal ones if the text is empty."""
    if not text.strip():
        return [1 / count] * count
    weights = numbers(text, "weights")
    if len(weights) != count:
        raise ValueError(
            f"weights: expected one number for each of the {count} embeddings, got {len(weights)} in {text!r}. Write them in the order of "
            "the sockets, or leave weights empty to mix equally."
        )
    if not any(weights):
        raise ValueError(f"weights: expected one that is not 0, got {text!r}. An embedding of weight 0 takes no part.")
    return weights
