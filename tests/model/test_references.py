"""Edit models: prompts with reference pictures (Kontext, Flux.2, Qwen-Image-Edit), whose tokens follow those of the picture."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from types import MappingProxyType

import comfy.samplers
import comfy_extras.nodes_custom_sampler as core
import pytest
import torch
from palimpsest.nodes.inversion.nodes import DDIMInvert, SampleTrajectory
from palimpsest.nodes.inversion.trajectory_io import load_trajectory, save_trajectory
from palimpsest.nodes.plug_and_play.nodes import PlugAndPlay
from palimpsest.nodes.prompt_to_prompt.nodes import AttentionMask, PromptToPrompt
from palimpsest.nodes.prompt_to_prompt.prompt_edit import prompt_edit
from palimpsest.nodes.retracing.nodes import ExactRetracing
from support.cases import cases
from support.fixtures.evaluated import Evaluated
from support.fixtures.inversions import relative, sample_back, schedule
from support.fixtures.plain_words import in_template
from support.fixtures.tiny_transformers import KINDS
from support.fixtures.transformer_edits import SOURCE, Pictured

pytestmark = pytest.mark.model

EULER = comfy.samplers.sampler_object("euler")
METHODS = {  # of core's FluxKontextMultiReferenceLatentMethod; the first is the family's own
    "flux": ("offset", "index", "uxo"),
    "flux2": ("index", "offset"),
    "qwen_image": ("index", "negative_index", "index_timestep_zero"),
}
ALL = [(name, method) for name, methods in METHODS.items() for method in methods]
DAILY = [("flux", "offset"), ("flux2", "index"), ("qwen_image", "index_timestep_zero")]


def references(name: str, method: str | None = None, pictures: int = 1) -> dict:
    """None of the latent's size."""
    sizes = ((6, 10), (10, 4))[:pictures]
    latents = [KINDS[name].latent(30 + i, height=h, width=w) for i, (h, w) in enumerate(sizes)]
    return {"reference_latents": latents, **({"reference_latents_method": method} if method else {})}


@pytest.mark.parametrize(("name", "method"), cases(ALL, *DAILY))
@torch.inference_mode()
def test_queries_of_the_picture_are_read_and_not_those_of_references(name, method):
    """In the first block they do not depend on what stands beside them."""
    kind = KINDS[name]
    x, first = kind.latent(1), {"query": {0}, "key": {0}}
    with_some = Evaluated(kind, kind.conditioning(2, **references(name, method, 2)))
    alone = Evaluated(kind, kind.conditioning(2))
    assert not torch.equal(with_some.predict(x)[0], alone.predict(x)[0])
    one, other = with_some.recorded(x, first), alone.recorded(x, first)
    assert one["query", 0, 0].shape[2] == torch.Size(with_some.family.grid(x)).numel()
    for place in (("query", 0, 0), ("key", 0, 0)):
        torch.testing.assert_close(one[place], other[place], rtol=0, atol=2e-6)


@pytest.mark.parametrize(("name", "method"), cases(ALL, *DAILY))
@torch.inference_mode()
def test_the_same_prompt_and_references_give_the_source_bit_for_bit(name, method):
    kind = KINDS[name]
    model = kind.model()
    edit = prompt_edit(in_template, SOURCE, SOURCE, "auto", "cat: 1", "")
    prompt = kind.conditioning(2, len(edit.source.ids), **references(name, method))
    latent = {"samples": torch.zeros_like(kind.latent(1, height=8, width=12))}
    noise, sigmas = core.Noise_RandomNoise(5), schedule(model, 3, "simple")

    def guider(model):
        return core.CFGGuider.execute(model, prompt, prompt, 1.0)[0]

    made, trajectory = SampleTrajectory.execute(noise, guider(model), EULER, sigmas, latent).args
    for edited in (
        PlugAndPlay.execute(model, trajectory, 1.0, 1.0, "auto")[0],
        PromptToPrompt.execute(model, trajectory, edit, 1.0, 1.0, 0.0, 0.3)[0],
    ):
        again = core.SamplerCustomAdvanced.execute(noise, guider(edited), EULER, sigmas, latent)[0]["samples"]
        assert torch.equal(again, made["samples"])


@pytest.mark.parametrize("name", cases(METHODS, "qwen_image"))
@torch.inference_mode()
def test_a_photo_is_inverted_saved_and_retraced_with_its_references(name, tmp_path):
    kind = KINDS[name]
    model = kind.model()
    prompt, picture = kind.conditioning(2, **references(name)), {"samples": kind.latent(1, height=8, width=12)}
    trajectory = DDIMInvert.execute(model, prompt, picture, schedule(model, 3, "simple"), "ddim", 1)[0]
    save_trajectory(trajectory, tmp_path / "a.trajectory.safetensors")
    loaded = load_trajectory(tmp_path / "a.trajectory.safetensors")
    exact = ExactRetracing.execute(model, loaded)[0]
    assert relative(sample_back(exact, loaded, picture["samples"]).latents[-1], trajectory.latents[-1]) < 1e-5
    without = [[prompt[0][0], {k: v for k, v in prompt[0][1].items() if k != "reference_latents"}]]
    plain = DDIMInvert.execute(model, without, picture, trajectory.sigmas, "ddim", 1)[0]
    assert relative(plain.start, trajectory.start) > 1e-3


@pytest.mark.parametrize(
    ("name", "of_source"), cases(product(METHODS, (True, False)), ("flux", True), ("qwen_image", False))
)
@torch.inference_mode()
def test_plug_and_play_with_references_on_one_side_only_is_what_it_is_by_hand(name, of_source):
    """q and k of the picture's tokens are the source's, whatever stands behind them there or here."""
    kind = KINDS[name]
    with_some, without = (kind.conditioning(seed, **options) for seed, options in ((2, references(name)), (3, {})))
    source, target = (with_some, without) if of_source else (without, with_some)
    x, other, tokens = kind.latent(1), kind.latent(5), 512 if name == "flux2" else 20  # which pads its text
    ours, theirs = Evaluated(kind, target), Evaluated(kind, source)
    frames, rows, columns = ours.family.grid(x)
    picture = slice(tokens, tokens + frames * rows * columns)
    values: list[tuple[torch.Tensor, torch.Tensor]] = []

    def read(func, q, k, v, *args, **kwargs):
        values.append((q[:, :, picture].clone(), k[:, :, picture].clone()))
        return func(q, k, v, *args, **kwargs)

    def put(func, q, k, v, *args, **kwargs):
        q, k = q.clone(), k.clone()
        q[:, :, picture], k[:, :, picture] = values.pop(0)
        return func(q, k, v, *args, **kwargs)

    def predicted(evaluated, x, override):
        options = evaluated.options()
        options["transformer_options"]["optimized_attention_override"] = override
        return evaluated.predict(x, options)[0]

    predicted(theirs, other, read)
    assert len(values) == kind.blocks
    wanted = predicted(ours, x, put)
    record = {key: value for key, value in theirs.recorded(other).items() if key[0] != "value"}
    sites = {name: frozenset(range(kind.blocks)) for name in ("query", "key")}
    assert relative(ours.injected(x, record, ours.chunks(), sites=sites)[0], wanted) < 1e-6
    assert relative(wanted, ours.predict(x)[0]) > 1e-3


@pytest.mark.parametrize("name", cases(METHODS, "flux"))
@torch.inference_mode()
def test_every_edit_runs_with_references_and_words_need_them_on_both_sides(name):
    both, of_source, of_target = (
        Pictured(name, own=own, **options)
        for options, own in ((references(name), None), (references(name), {}), ({}, references(name)))
    )
    for edit in (Pictured.plug_and_play, Pictured.flow_edit):
        results = [edit(made) for made in (both, of_source, of_target)]
        assert all(bool(torch.isfinite(result).all()) for result in results)
        assert all(relative(results[0], other) > 1e-4 for other in results[1:])
    assert relative(both.prompt_to_prompt(), both.guided(both.model)) > 1e-3
    with pytest.raises(
        ValueError, match=r"^positive: expected as many reference latents as the source's prompt, 1, got 0\."
    ):
        of_source.prompt_to_prompt()
    with pytest.raises(
        ValueError, match=r"^positive: expected as many reference latents as the source's prompt, 0, got 1\."
    ):
        of_target.prompt_to_prompt()


class Clip:
    """Text encoders that give each text one encoding."""

    def __init__(self, prompt: list):
        self.prompt = prompt

    def tokenize(self, text):
        return text

    def encode_from_tokens_scheduled(self, tokens, add_dict=MappingProxyType({})):
        ((text, options),) = self.prompt
        return [[text, {**options, **add_dict}]]


@torch.inference_mode()
def test_words_are_looked_for_with_the_references_of_the_trajectory(monkeypatch):
    made = Pictured("flux", **references("flux", "index"))
    plain = [[made.source[0][0], {k: v for k, v in made.source[0][1].items() if not k.startswith("reference")}]]
    monkeypatch.setattr("palimpsest.nodes.prompt_to_prompt.nodes.tokenize", lambda clip, text: in_template(text))

    def report(positive=None):
        args = SOURCE, "cat", 0.0, 1.0, 0.0
        return AttentionMask.execute(made.model, Clip(plain), made.trajectory, *args, positive=positive).args[2]

    assert report() == report(made.source) != report(plain)


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("lumina2", "reference_latents"),
        ("z_image", "reference_latents"),
        ("wan", "reference_latents"),
        ("hidream", "concat_latent_image"),
    ],
)
@torch.inference_mode()
def test_families_that_put_references_before_the_picture_are_refused(name, key, monkeypatch):
    picture = KINDS[name].latent(30, height=8, width=12)
    option = {key: [picture] if key == "reference_latents" else picture}
    if name == "wan":
        plain, ignored = Pictured(name), Pictured(name, **option)  # Wan for text alone reads none
        assert torch.equal(ignored.plug_and_play(), plain.plug_and_play())
        monkeypatch.setitem(KINDS, name, replace(KINDS[name], more={"in_dim_ref_conv": 16}))
    for made in (Pictured(name, own={}, **option), Pictured(name, own=option)):
        with pytest.raises(
            ValueError, match=r"^positive, negative, source: expected prompts without reference pictures, because"
        ):
            made.plug_and_play()
