"""When a prompt-to-prompt edit does what: windows of steps for words, for self-attention and for the local blend."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..diffusion.schedule import first_steps, window_steps
from .prompt_edit import PromptEdit

WordWindow = tuple[tuple[int, ...], range]  # columns of the target prompt, and the steps in which they are edited


@dataclass(frozen=True)
class Settings:
    """Steps are counted from the noisy end.

    cross: the steps in which words take the source's cross-attention, unless they have a window of their own.
    word_windows: those that have. blend: the steps in which everything but the words' place is the source's.
    """

    edit: PromptEdit
    cross: range
    self_attention: range
    blend: range
    blend_threshold: float
    word_windows: tuple[WordWindow, ...] = ()

    @classmethod
    def of(
        cls,
        edit: PromptEdit,
        steps: int,
        cross_end: float,
        self_end: float,
        blend_start: float,
        blend_threshold: float,
        self_start: float = 0.0,
    ) -> Settings:
        """From shares of `steps` steps."""
        return cls(
            edit,
            window(0.0, cross_end, steps),
            window(self_start, self_end, steps),
            range(first_steps(blend_start, steps), steps if edit.blends else 0),
            blend_threshold,
            tuple((columns, window(start, end, steps)) for columns, start, end in edit.windows),
        )

    @property
    def blends(self) -> bool:
        return bool(self.blend)

    @property
    def last(self) -> int:
        """The number of steps in which anything is done. The local blend reads words' places from the first step on."""
        steps = (self.cross, self.self_attention, self.blend, *(steps for _, steps in self.word_windows))
        return max(own.stop if own else 0 for own in steps)

    def words_at(self, step: int) -> tuple[bool, ...]:
        """Which windows of words are open: the one for all words first."""
        return tuple(step in steps for steps in (self.cross, *(steps for _, steps in self.word_windows)))

    def opened(self, step: int) -> torch.Tensor:
        """[target columns], 1 where a column is edited at this step."""
        opened = torch.full((len(self.edit.target.ids),), float(step in self.cross))
        for columns, steps in self.word_windows:
            opened[list(columns)] = float(step in steps)
        return opened

    def __str__(self) -> str:
        parts = [f"words in {len(self.cross)} steps", f"self-attention in {len(self.self_attention)}"]
        return ", ".join(parts + ([f"local blend in {len(self.blend)}"] if self.blends else []))


def window(start: float, end: float, steps: int) -> range:
    """Steps from one share to another; at least one step unless `end` is not behind `start`."""
    if end <= start:
        return range(0)
    first = min(first_steps(start, steps), steps - 1)
    return range(first, max(window_steps(end, steps), first + 1))
