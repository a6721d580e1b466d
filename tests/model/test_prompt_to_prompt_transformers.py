"""Prompt-to-Prompt on transformers: the words' part of the joint attention, and q, k of image tokens."""

from __future__ import annotations

from functools import partial

import comfy.model_patcher
import comfy.samplers
import comfy_extras.nodes_custom_sampler as core
import pytest
import torch
from palimpsest.nodes.inversion.nodes import DDIMInvert, SampleTrajectory
from palimpsest.nodes.prompt_to_prompt.nodes import PromptToPrompt
from palimpsest.nodes.prompt_to_prompt.prompt_edit import prompt_edit
from support.fixtures.plain_words import in_template
from support.fixtures.tiny_transformers import KINDS, families
from support.fixtures.twin_transformers import TWINS, PublishedWords, plug_and_play

pytestmark = pytest.mark.model

EULER = comfy.samplers.sampler_object("euler")
STEPS = 3
SOURCE, TARGET = "a red cat on grass", "a fluffy blue cat on some sand"  # of unequal length


class Made:
    """A recorded generation of the source prompt, and an edit of it."""

    def __init__(
        self, name: str, source: str = SOURCE, target: str = TARGET, dtype=torch.float32, steps=STEPS, **words
    ):
        self.kind = KINDS[name]
        self.model = self.kind.model(dtype=dtype)
        read = partial(in_template, parts=3 if self.kind.llama else 1)
        self.edit = prompt_edit(
            read, source, target, "auto", words.pop("reweight", ""), words.pop("blend", ""), **words
        )
        self.source = self.prompt(2, source)
        self.target = self.prompt(2 if source == target else 7, target)
        self.latent = {"samples": torch.zeros_like(self.kind.latent(1))}
        sigmas = comfy.samplers.calculate_sigmas(self.model.get_model_object("model_sampling"), "simple", steps)
        guider = core.CFGGuider.execute(self.model, self.source, self.source, 1.0)[0]
        made = SampleTrajectory.execute(core.Noise_RandomNoise(5), guider, EULER, sigmas, self.latent)
        self.samples, self.trajectory = made[0]["samples"], made[1]

    def prompt(self, seed: int, text: str) -> list:
        return self.kind.conditioning(seed, len(in_template(text).ids))

    def edited(self, cross=1.0, self_end=1.0, blend_start=0.0, threshold=0.3, model=None):
        model = model or self.model
        return PromptToPrompt.execute(model, self.trajectory, self.edit, cross, self_end, blend_start, threshold)[0]

    def sample(self, model, cfg=1.0, negative=None, batch=1, positive=None):
        latent = self.latent["samples"]
        latent = {"samples": latent.repeat(batch, *[1] * (latent.ndim - 1))}
        noise = core.Noise_RandomNoise(5).generate_noise(self.latent).repeat(batch, *[1] * (latent["samples"].ndim - 1))

        class Noise:
            seed = 5

            def generate_noise(self, latent):
                return noise

        guider = core.CFGGuider.execute(model, positive or self.target, negative or self.source, cfg)[0]
        return core.SamplerCustomAdvanced.execute(Noise(), guider, EULER, self.trajectory.sigmas, latent)[0]["samples"]


def relative(a, b):
    return float((a - b).norm() / b.norm())


@families("sd35_medium", "z_image")
@torch.inference_mode()
def test_the_same_prompt_and_noise_give_the_source_bit_for_bit(name):
    made = Made(name, target=SOURCE, reweight="cat: 1")
    assert torch.equal(made.sample(made.edited()), made.samples)
    changed = Made(name, target=SOURCE, reweight="cat: 3")
    assert relative(changed.sample(changed.edited(1.0, 0.0)), made.samples) > 1e-4


@families("flux", "wan")
@torch.inference_mode()
def test_words_and_self_attention_act_and_the_node_taken_away_does_not(name):
    made = Made(name)
    free = made.sample(made.model, 3.0)
    words, layout = made.sample(made.edited(1.0, 0.0), 3.0), made.sample(made.edited(0.0, 1.0), 3.0)
    assert relative(words, free) > 1e-4 and relative(layout, free) > 1e-4 and relative(words, layout) > 1e-4
    off = made.edited(0.0, 0.0)
    assert off.wrappers == made.model.wrappers
    assert torch.equal(made.sample(off, 3.0), free) and torch.equal(made.sample(made.model, 3.0), free)


@families("lumina2")
@torch.inference_mode()
def test_batches_and_split_calls_agree_for_prompts_of_unequal_length(name, monkeypatch):
    made = Made(name, reweight="fluffy: 2", blend="cat, sand")
    edited = made.edited(threshold=0.5)
    negative = made.kind.conditioning(8, 33)
    one = made.sample(edited, 3.0, negative)
    torch.testing.assert_close(made.sample(edited, 3.0, negative, batch=2), torch.cat([one, one]), rtol=0, atol=1e-4)
    same_length = made.kind.conditioning(8, len(made.edit.target.ids))  # shares the positive's calls
    together = made.sample(edited, 3.0, same_length)
    monkeypatch.setattr(comfy.model_patcher.ModelPatcher, "get_free_memory", lambda *args: 0)
    torch.testing.assert_close(made.sample(edited, 3.0, same_length), together, rtol=0, atol=1e-4)


@families("flux")
@pytest.mark.parametrize("dtype", [pytest.param(torch.float16, marks=pytest.mark.long), torch.bfloat16])
@torch.inference_mode()
def test_half_precision(name, dtype):
    if name == "hidream" and dtype == torch.float16:
        dtype = torch.bfloat16  # core does not list fp16 for it
    made = Made(name, target=SOURCE, dtype=dtype, steps=2)
    assert torch.equal(made.sample(made.edited()), made.samples)
    made = Made(name, dtype=dtype, steps=2, blend="cat")
    result = made.sample(made.edited(), 3.0)
    assert bool(torch.isfinite(result).all()) and relative(result, made.sample(made.model, 3.0)) > 1e-3


@families("chroma")
@torch.inference_mode()
def test_another_packs_override_is_kept_before_and_after(name):
    made = Made(name, steps=2)
    plain = made.sample(made.edited(), 2.0)
    calls = []

    def foreign(func, q, k, v, *args, **kwargs):
        calls.append(1)
        return func(q, k, v, *args, **kwargs)

    def with_override(model):
        model = model.clone()
        model.model_options["transformer_options"]["optimized_attention_override"] = foreign
        return model

    assert torch.equal(made.sample(made.edited(model=with_override(made.model)), 2.0), plain)
    before, calls[:] = len(calls), []
    assert torch.equal(made.sample(with_override(made.edited()), 2.0), plain)
    assert len(calls) == before > 0


@families("sd3", "qwen_image")
@torch.inference_mode()
def test_local_blend_keeps_the_source_outside_the_words(name):
    made = Made(name, blend="cat, sand")
    source = made.trajectory.latents[-1]
    sampled = made.model.model.process_latent_in(made.sample(made.edited(threshold=1.0), 3.0))
    assert relative(sampled, source) < 1e-5
    whole = made.sample(made.edited(threshold=0.0), 3.0)
    assert relative(made.model.model.process_latent_in(whole), source) > 1e-2
    part = made.model.model.process_latent_in(made.sample(made.edited(threshold=0.6), 3.0))
    kept = ((part - source).abs().amax(1) < 1e-4).float().mean()
    assert 0.0 < float(kept) < 1.0


@torch.inference_mode()
def test_auto_windows_are_short_on_transformers():
    made = Made("flux", steps=10)
    auto, shares = made.edited(-1.0, -1.0), made.edited(0.35, 0.2)
    assert torch.equal(made.sample(auto), made.sample(shares))
    few = Made("flux", steps=2)
    assert relative(few.sample(few.edited(-1.0, 0.0)), few.sample(few.model)) > 1e-5


@torch.inference_mode()
def test_what_does_not_fit_is_refused():
    made = Made("flux")
    longer = made.kind.conditioning(3, 40)
    with pytest.raises(
        ValueError, match=r"^positive: expected `target` of the connected .* tokens, got conditioning of 40"
    ):
        made.sample(made.edited(), positive=longer)
    other = Made("sd3")
    with pytest.raises(ValueError, match=r"^model: expected the kind of model the trajectory was made with"):
        PromptToPrompt.execute(other.model, made.trajectory, made.edit, 1.0, 1.0, 0.0, 0.3)


@pytest.mark.parametrize("name", TWINS)
@pytest.mark.parametrize("steps", [3, pytest.param(10, marks=pytest.mark.long)])
@torch.inference_mode()
def test_it_is_the_published_edit_on_diffusers_transformers(name, steps):
    """Rows [source, negative, positive] share a call there, so that their prompts have one length."""
    kind = KINDS[name]
    model = kind.model()
    source_text, target_text = "a red cat on grass", "a blue birds on sand"
    edit = prompt_edit(in_template, source_text, target_text, "auto", "birds: 2", "")
    columns = len(edit.source.ids)
    assert len(edit.target.ids) == columns
    source, positive, negative = (kind.conditioning(seed, columns) for seed in (2, 3, 4))
    velocity, words = TWINS[name].velocity(model), TWINS[name].injection(PublishedWords, tokens=16)
    picture = {"samples": kind.latent(1, height=8, width=8)}
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "simple", steps)
    trajectory, noise, *_ = DDIMInvert.execute(model, source, picture, sigmas, "ddim", 1).args
    edited = PromptToPrompt.execute(model, trajectory, edit, 0.7, 0.4, 0.0, 0.3)[0]
    guider = core.CFGGuider.execute(edited, positive, negative, 3.0)[0]
    result = core.SamplerCustomAdvanced.execute(noise, guider, EULER, sigmas, picture)[0]["samples"]

    mapper, weights = edit.alignment.mapper, edit.equalizer
    own_columns = torch.zeros(columns, dtype=torch.bool)
    own_columns[list(edit.target.content)] = True

    def exchange(attention: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
        edited = (attention @ mapper * edit.alignment.aligned + own * (1.0 - edit.alignment.aligned)) * weights
        return torch.where(own_columns, edited, own)

    def values_at(step: int) -> dict[str, set[int]]:
        words.edit = exchange if step < int(0.7 * steps) else None
        words.blocks = set(range(round(13 / 57 * kind.blocks), round(45 / 57 * kind.blocks)))
        return {"query": set(range(kind.blocks)) if step < int(0.4 * steps) else set()}

    with words:
        wanted = plug_and_play(
            velocity,
            words,
            trajectory.latents,
            trajectory.start,
            sigmas,
            trajectory.positive,
            positive,
            negative,
            3.0,
            values_at,
        )
    assert relative(model.model.process_latent_in(result), wanted) < 1e-5
    plain = core.CFGGuider.execute(model, positive, negative, 3.0)[0]
    free = core.SamplerCustomAdvanced.execute(noise, plain, EULER, sigmas, picture)[0]["samples"]
    assert relative(result, free) > 1e-3
