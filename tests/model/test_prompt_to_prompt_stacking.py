"""Prompt-to-prompt beside core's own model patches, other packs' ways to patch, and Plug-and-Play."""

from functools import partial

import pytest
import torch
from palimpsest.nodes.plug_and_play.nodes import PlugAndPlay
from palimpsest.nodes.prompt_to_prompt.nodes import PromptToPrompt
from palimpsest.nodes.prompt_to_prompt.prompt_edit import prompt_edit
from palimpsest.nodes.text.tokens import tokenize
from support.cases import cases
from support.fixtures import other_packs, tiny_clip
from support.fixtures.sampling import random_trajectory, sample
from support.fixtures.tiny_models import SD1_UNET, conditioning, control_net, sd15
from support.fixtures.unet_probe import UNetProbe, rows_equal, same

pytestmark = [pytest.mark.model, pytest.mark.compat]
UNET = sd15

CFG = 7.5
STEPS = 2


@pytest.fixture(scope="module")
def trajectory(model):
    return random_trajectory(model, conditioning(model, 1), STEPS)


@pytest.fixture(scope="module")
def edit():
    return prompt_edit(partial(tokenize, tiny_clip.sd1()), "a red cat", "a blue dog", "auto", "dog: 2", "cat, dog")


def prompt_to_prompt(model, trajectory, edit):
    return PromptToPrompt.execute(model, trajectory, edit, 1.0, 1.0, 0.5, 0.3)[0]


def run(model, trajectory, positive=None, negative=None):
    positive, negative = positive or conditioning(model, 2), negative or conditioning(model, 3)
    return sample(model, trajectory.start.flip(-1), positive, negative, CFG, trajectory.sigmas)[-1]


def longer_context(model):
    """attn2_patch that appends tokens to every prompt, as some style adapters do."""
    patched = model.clone()
    tokens = torch.randn(1, 3, 64, generator=torch.Generator().manual_seed(8))

    def extend(n, context, value, extra_options):
        more = tokens.expand(len(context), -1, -1)
        return n, torch.cat([context, more], 1), torch.cat([value, more], 1)

    patched.set_model_attn2_patch(extend)
    return patched


@pytest.mark.parametrize("other", [*other_packs.OTHERS, longer_context])
def test_keeps_its_effect_and_ours_in_either_order(model, trajectory, edit, other):
    after = run(prompt_to_prompt(other(model), trajectory, edit), trajectory)
    assert torch.equal(after, run(other(prompt_to_prompt(model, trajectory, edit)), trajectory))
    assert not same(after, run(prompt_to_prompt(model, trajectory, edit), trajectory), 1e-3)
    assert not same(after, run(other(model), trajectory), 1e-3)


@pytest.mark.parametrize("size", [(16, 16), (18, 16)])
def test_deep_shrink_with_blend_words(model, edit, size):
    """Fault E8: layers' maps of other sizes, in a step and between steps, could not be added."""
    trajectory = random_trajectory(model, conditioning(model, 1), 4, size=size, scheduler="normal")
    shrunk = other_packs.deep_shrink(model)
    result = run(prompt_to_prompt(shrunk, trajectory, edit), trajectory)
    assert bool(torch.isfinite(result).all()) and not same(result, run(shrunk, trajectory), 1e-3)


def test_an_attention_that_replaces_nothing_changes_nothing(model, trajectory, edit):
    """The edit is added to what a replacement gives, whatever the key it is under."""
    plain = run(prompt_to_prompt(model, trajectory, edit), trajectory)
    for place in (("output", 4), ("output", 4, 0)):
        patched = model.clone()
        calls = []

        def attend(q, k, v, extra_options, calls=calls):
            calls.append(extra_options["block"])
            heads = [t.unflatten(-1, (extra_options["n_heads"], -1)).transpose(1, 2) for t in (q, k, v)]
            return torch.nn.functional.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)

        patched.set_model_attn2_replace(attend, *place)
        assert same(run(prompt_to_prompt(patched, trajectory, edit), trajectory), plain)
        assert calls == [("output", 4)] * 2 * STEPS  # the source's row has it too


def test_disturbed_evaluations_have_a_disturbed_source(model, trajectory, edit):
    """PAG evaluates the positive again with its attention broken: what answers it is the source in that network."""
    with UNetProbe(model) as probe:
        run(prompt_to_prompt(other_packs.perturbed_attention(model), trajectory, edit), trajectory)
    assert [len(call.x) for call in probe.calls] == [1, 2, 1, 1] * STEPS
    first, second = probe.calls[0], probe.calls[2]
    assert same(first.x, second.x) and not same(first.query, second.query, 1e-3)


@pytest.mark.parametrize("both", cases([True, False], False))
def test_control_net_on_the_target(model, trajectory, edit, both):
    positive, negative = conditioning(model, 2), conditioning(model, 3)
    controlled, controlled_negative = other_packs.with_control(control_net(config=SD1_UNET), positive, negative)
    patched = prompt_to_prompt(model, trajectory, edit)
    with UNetProbe(model) as probe:
        result = run(patched, trajectory, controlled, controlled_negative if both else negative)
    assert [len(call.x) for call in probe.calls] == ([1, 2] if both else [1, 1, 1]) * STEPS
    assert not same(result, run(patched, trajectory, positive, negative), 1e-3)


def test_beside_plug_and_play(model, trajectory, edit):
    def plug_and_play(m):
        return PlugAndPlay.execute(m, trajectory, 1.0, 1.0, "features 4; attention 4-11")[0]

    with UNetProbe(model) as probe:
        result = run(plug_and_play(prompt_to_prompt(model, trajectory, edit)), trajectory)
    source, other, target = probe.calls[:3]
    assert [len(call.x) for call in probe.calls] == [1, 1, 2] * STEPS
    assert same(source.x, other.x)
    assert rows_equal(target.query, (source if source.query is not None else other).query)
    assert same(result, run(prompt_to_prompt(plug_and_play(model), trajectory, edit), trajectory))
    assert not same(result, run(plug_and_play(model), trajectory), 1e-3)
    assert not same(result, run(prompt_to_prompt(model, trajectory, edit), trajectory), 1e-3)
