"""Face-diffuser's three stages (2311.10329, section 3.3): the scene alone, both models fused, the subject alone."""

from __future__ import annotations

import copy
import functools
from itertools import pairwise
from typing import TYPE_CHECKING

import comfy.samplers
import torch

from ..diffusion.conditioning import Conditioning
from ..diffusion.samplers import require_deterministic
from .expert import Expert, Prompted
from .guider import Blending, FusionGuider
from .saliency import Sharpness

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher


class SubjectFusionGuider(FusionGuider):
    """Scene model first, then both, then the subject model, whose guidance is augmented minus plain text."""

    def __init__(
        self,
        model_scene: ModelPatcher,
        model_subject: ModelPatcher,
        positive: Conditioning,
        positive_subject: Conditioning,
        negative: Conditioning,
        cfg: float,
        scene_end: float,
        fusion_end: float,
        sharpness_scene: Sharpness,
        sharpness_subject: Sharpness,
    ):
        if scene_end > fusion_end:
            raise ValueError(
                f"scene_end: expected at most fusion_end, got {scene_end:g} after {fusion_end:g}. The scene comes first; make "
                "them equal to switch to the subject without fusion."
            )
        scene = Prompted(model_scene, positive, negative, cfg, sharpness_scene, socket="model_scene")
        subject = Expert(
            model_subject,
            positive_subject,
            positive,
            cfg,
            sharpness_subject,
            socket="model_subject",
            span=(scene_end, fusion_end),
            takes_over=True,
        )
        super().__init__(scene, [subject], Blending())

    def staged(self, sampler: comfy.samplers.Sampler) -> comfy.samplers.Sampler:
        require_deterministic(sampler)
        staged = copy.copy(sampler)
        staged.sampler_function = staged_function(sampler.sampler_function, self.stage_of)
        return staged

    def stage_of(self, sigma: float) -> int:
        window = self.experts[0].window
        return 2 if window.is_over_at(sigma) else int(window.holds(sigma))


def staged_function(function, stage_of):
    """A sampler function that runs `function` anew from each step at which the stage changes.

    A multistep sampler's history then never holds predictions of two stages.
    """

    @functools.wraps(function)
    def staged(model, x, sigmas, extra_args=None, callback=None, disable=None, **options) -> torch.Tensor:
        stages = [stage_of(float(sigma)) for sigma in sigmas[:-1]]
        changes = [i for i, pair in enumerate(pairwise(stages), 1) if pair[0] != pair[1]]
        for first, last in pairwise([0, *changes, len(stages)]):

            def shifted(state: dict, first: int = first) -> None:
                if callback is not None:
                    callback({**state, "i": state["i"] + first})

            x = function(
                model, x, sigmas[first : last + 1], extra_args=extra_args, callback=shifted, disable=disable, **options
            )
        return x

    return staged
