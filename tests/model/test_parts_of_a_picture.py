"""Transformers that are shown parts of a picture: areas and masks of prompts, and core's context windows."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import comfy.samplers
import pytest
import torch
from comfy_extras.nodes_context_windows import ContextWindowsManualNode
from comfy_extras.nodes_video_model import ConditioningSetAreaPercentageVideo
from palimpsest.nodes.plug_and_play.nodes import CaptureFeatures, PlugAndPlay
from palimpsest.nodes.prompt_to_prompt.attention_mask import found_words
from palimpsest.nodes.prompt_to_prompt.nodes import PromptToPrompt
from palimpsest.nodes.prompt_to_prompt.prompt_edit import prompt_edit
from support.cases import cases
from support.fixtures.plain_words import in_template
from support.fixtures.tiny_transformers import KINDS
from support.fixtures.transformer_edits import begin, path

from nodes import ConditioningSetArea, ConditioningSetMask

pytestmark = pytest.mark.model

TEXT = "a red cat on grass"
SIDES = [
    ("flux", 3, 1),
    pytest.param("sd3", 3, 1, marks=pytest.mark.long),
    ("wan", 2, 6),
    pytest.param("cosmos", 2, 6, marks=pytest.mark.long),
    pytest.param("cosmos", 4, 1, marks=pytest.mark.long),
]


class Step:
    """One step from a picture's first latent. Its own prompt predicts from there what the source's row shows, so that an edit is
    the identity where each call is given the source's values of the part that it sees."""

    def __init__(self, name: str, frames: int = 1, batch: int = 1, blend: str = ""):
        kind = KINDS[name]
        self.kind = kind if kind.frames is None else replace(kind, frames=frames)
        self.model = self.kind.model()
        self.edit = prompt_edit(partial(in_template, parts=3 if kind.llama else 1), TEXT, TEXT, "auto", "", blend)
        self.source = self.prompt(2)
        self.trajectory = path(self.kind, self.model, self.source, 1, batch, 8, 12)

    def prompt(self, seed: int) -> list:
        return self.kind.conditioning(seed, len(in_template(TEXT).ids))

    def plug_and_play(self, model=None, **optional):
        return PlugAndPlay.execute(model or self.model, self.trajectory, 1.0, 1.0, "auto", **optional)[0]

    def prompt_to_prompt(self, model=None, threshold=0.3):
        return PromptToPrompt.execute(
            model or self.model, self.trajectory, self.edit, 1.0, 1.0, 0.0, threshold, source=self.source
        )[0]

    def sample(self, model, positive, negative=None) -> torch.Tensor:
        guider = comfy.samplers.CFGGuider(model)
        guider.set_conds(positive, negative or self.source)
        guider.set_cfg(3.0)
        noise, euler = begin(self.trajectory), comfy.samplers.sampler_object("euler")
        return guider.sample(noise, torch.zeros_like(noise), euler, self.trajectory.sigmas, disable_pbar=True, seed=0)


def in_parts(whole: list, other: list, frames: int | None = None) -> list:
    """A prompt for all of 8 x 12 latent pixels, and another for an area and for a mask. frames: of the latent, if it has any."""
    mask = torch.zeros(1, 8, 12)
    mask[:, 2:6, 3:10] = 0.7
    area = ConditioningSetArea().append(other, 40, 32, 16, 32, 1.5)[0]  # 4 x 5
    if frames and frames > 1:
        area = ConditioningSetAreaPercentageVideo().append(other, 0.5, 1.0, 0.7, 0.5, 0.0, 0.3, 1.0)[0]
    bounds = "default" if frames else "mask bounds"  # core takes no bounds where a latent can have frames
    return [*whole, *area, *ConditioningSetMask().append(other, mask, bounds, 1.0)[0]]


def windowed(model, dim: int, length: int, overlap: int):
    return ContextWindowsManualNode.execute(model, length, overlap, "standard_static", 1, False, "pyramid", dim, False)[
        0
    ]


@pytest.mark.parametrize(
    "name",
    cases(["flux", "sd3", "qwen_image", "lumina2", "z_image", "wan", "cosmos", "hidream"], "flux", "sd3", "cosmos"),
)
@torch.inference_mode()
def test_areas_and_masks_are_given_the_source_of_their_part(name):
    step = Step(name, frames=3 if name in ("wan", "cosmos") else 1)
    frames = step.kind.frames
    edits = (step.plug_and_play(), step.prompt_to_prompt())
    own, other = in_parts(step.source, step.source, frames), in_parts(step.source, step.prompt(7), frames)
    free, changed = step.sample(step.model, own), step.sample(step.model, other)
    for edited in edits:
        torch.testing.assert_close(step.sample(edited, own), free, rtol=0, atol=1e-4)
        assert not torch.allclose(step.sample(edited, other), changed, rtol=0, atol=1e-3)


@pytest.mark.parametrize(("name", "dim", "frames"), SIDES)
@torch.inference_mode()
def test_context_windows_are_given_the_source_of_their_part(name, dim, frames):
    step = Step(name, frames)
    model = windowed(step.model, dim, 4 if frames > 1 else 8, 2)
    free, changed = step.sample(model, step.source), step.sample(model, step.prompt(7))
    assert not torch.allclose(free, step.sample(step.model, step.source), rtol=0, atol=1e-3)
    features = CaptureFeatures.execute(model, step.trajectory, 1.0, 1.0, "auto", "fp32")[0]
    edits = (step.plug_and_play(model), step.plug_and_play(model, features=features), step.prompt_to_prompt(model))
    for edited in edits:
        torch.testing.assert_close(step.sample(edited, step.source), free, rtol=0, atol=1e-4)
        assert not torch.allclose(step.sample(edited, step.prompt(7)), changed, rtol=0, atol=1e-3)
    prompt = step.edit.source
    maps = [
        found_words(m, step.trajectory, step.source, prompt.words, prompt, range(1), "all")[0]
        for m in (model, step.model)
    ]
    assert torch.equal(*maps)
    blended = Step(name, frames, blend="cat")
    with pytest.raises(ValueError, match=r"^blend_words: expected context windows over pictures \(dim 0\)"):
        blended.sample(blended.prompt_to_prompt(windowed(blended.model, dim, 4, 2)), blended.source)


@torch.inference_mode()
def test_windows_over_a_batch_edit_each_picture_as_without_them():
    step = Step("sd3", batch=4, blend="cat")
    model = windowed(step.model, 0, 2, 1)
    for edit in (step.plug_and_play, step.prompt_to_prompt):
        expected = step.sample(edit(), step.prompt(7))
        torch.testing.assert_close(step.sample(edit(model), step.prompt(7)), expected, rtol=0, atol=1e-4)


@torch.inference_mode()
def test_an_area_is_refused_where_the_whole_picture_is_read():
    step = Step("flux")
    prompt, corner = step.edit.source, in_parts([], step.source)
    with pytest.raises(
        ValueError, match=r"^positive: expected one prompt for the whole picture, .* plain prompt to `positive`"
    ):
        found_words(step.model, step.trajectory, corner, prompt.words, prompt, range(1), "all")
    with pytest.raises(
        ValueError, match=r"^source: expected one prompt for the whole picture, .* plain prompt to `source`"
    ):
        CaptureFeatures.execute(step.model, step.trajectory, 1.0, 1.0, "auto", "fp32", source=corner)


@torch.inference_mode()
def test_the_local_blend_reads_the_prompt_of_the_whole_picture():
    step = Step("flux", blend="cat")
    kept = step.sample(step.prompt_to_prompt(threshold=1.0), in_parts(step.source, step.prompt(7)))
    source = step.model.model.process_latent_out(step.trajectory.latents[-1])
    torch.testing.assert_close(kept, source, rtol=0, atol=1e-4)
    corner = ConditioningSetArea().append(step.source, 40, 32, 16, 32, 1.5)[0]
    with pytest.raises(ValueError, match=r"^blend_words: expected a positive prompt for the whole picture"):
        step.sample(step.prompt_to_prompt(), corner)
