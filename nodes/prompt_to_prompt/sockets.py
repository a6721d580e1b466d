"""Inputs that nodes of word edits share."""

from __future__ import annotations

from comfy_api.latest import io

from ..diffusion.sockets import TrajectoryIO
from .prompt_edit import PromptEdit


@io.comfytype(io_type="PAL_PROMPT_EDIT")
class PromptEditIO(io.ComfyTypeIO):
    Type = PromptEdit


def trajectory_input() -> io.Input:
    return TrajectoryIO.Input(
        "trajectory",
        tooltip="The source picture, from DDIM Invert or Sample Trajectory. The sampler must use the same scheduler, steps and denoise.",
    )


def window_inputs() -> list[io.Input]:
    return [
        io.Float.Input(
            "cross_end",
            default=-1.0,
            min=-1.0,
            max=1.0,
            step=0.01,
            tooltip="Fraction of the steps, from the first on, in which words use the source's attention: 0.8 of 50 steps is the first 40. Higher "
            "keeps more of the composition. -1 is automatic: 0.8 for UNets, 0.35 for transformers. 0 is off, reweighting too. Published as "
            "cross_replace_steps.",
        ),
        io.Float.Input(
            "self_end",
            default=-1.0,
            min=-1.0,
            max=1.0,
            step=0.01,
            tooltip="Fraction of the steps, from the first on, that use the source's self-attention. Higher keeps more of the shapes. -1 is "
            "automatic: 0.4 for UNets, 0.2 for transformers. 0 is off. Published as self_replace_steps.",
        ),
        io.Float.Input(
            "blend_start",
            default=0.2,
            min=0.0,
            max=1.0,
            step=0.01,
            tooltip="Only with blend_words: the fraction of the steps after which everything outside the area of those words is taken from the "
            "source.",
        ),
        io.Float.Input(
            "blend_threshold",
            default=0.3,
            min=0.0,
            max=1.0,
            step=0.01,
            tooltip="Only with blend_words: how strong the attention to them must be, as a fraction of its maximum, for a pixel to count as "
            "their area. Higher makes the area smaller.",
        ),
    ]
