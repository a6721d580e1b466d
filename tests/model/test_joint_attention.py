"""A transformer's attention, read and overwritten, in every family that the pack knows."""

from __future__ import annotations

from dataclasses import replace
from itertools import cycle, product

import comfy.ldm.modules.attention as kernels
import comfy.model_patcher
import comfy.supported_models
import pytest
import torch
from palimpsest.nodes.attention.calls import AllSeen, Columns
from palimpsest.nodes.attention.joint_attention import Attention, on_attention, text_groups
from palimpsest.nodes.attention.joint_text import TextCall, change_text, record_text
from support.cases import cases
from support.fixtures.evaluated import Evaluated
from support.fixtures.tiny_transformers import KINDS

pytestmark = pytest.mark.model

FAMILIES = pytest.mark.parametrize("name", KINDS)


@FAMILIES
@torch.inference_mode()
def test_every_block_is_seen_once_and_reading_changes_nothing(name):
    kind = KINDS[name]
    evaluated = Evaluated(kind, kind.conditioning(2))
    x = kind.latent(1)
    plain = evaluated.predict(x)[0]
    seen: list[Attention] = []
    options = evaluated.options()
    on_attention(options, evaluated.family, lambda call: seen.append(call))
    assert torch.equal(evaluated.predict(x, options)[0], plain)
    assert [call.place[0] for call in seen if call.place[1] == 0] == list(range(kind.blocks))
    assert {call.place[0] for call in seen if call.has_text} == set(range(kind.blocks))
    assert {key[1] for key in evaluated.recorded(x) if len(key) > 1} == set(range(kind.blocks))
    assert torch.equal(evaluated.predict(x)[0], plain)


@pytest.mark.long
@pytest.mark.newest
@torch.inference_mode()
def test_anima_is_its_backbone_behind_an_adapter_of_its_text():
    """The adapter's width is fixed. Its attention is none of the main blocks', and turns 20 tokens of T5 into 512 columns."""
    cosmos = KINDS["cosmos"]
    unet = {**cosmos.unet, "image_model": "anima", "crossattn_emb_channels": 1024}
    kind = replace(cosmos, config=comfy.supported_models.Anima, unet=unet, text=1024)
    tokens = {"t5xxl_ids": torch.arange(3, 23), "t5xxl_weights": torch.ones(20)}
    evaluated = Evaluated(kind, kind.conditioning(2, **tokens))
    assert evaluated.family.name == "Anima"
    x, seen, options = kind.latent(1), [], evaluated.options()
    plain = evaluated.predict(x)[0]
    on_attention(options, evaluated.family, lambda call: seen.append((call.place, call.text)))
    assert torch.equal(evaluated.predict(x, options)[0], plain)
    assert [text for (_, call), text in seen if call == 1] == [slice(0, 512)] * kind.blocks
    assert [block for (block, call), _ in seen if call == 0] == list(range(kind.blocks))
    chunks = evaluated.chunks()
    assert torch.equal(evaluated.injected(x, evaluated.recorded(x), chunks)[0], plain)
    assert not torch.equal(evaluated.injected(x, evaluated.recorded(kind.latent(5)), chunks)[0], plain)


@torch.inference_mode()
def test_wan_2_2_is_read_as_wan_2_1_is():
    """Its 5B model has latents of 48 channels, here of three frames."""
    wan = KINDS["wan"]
    unet = {**wan.unet, "in_dim": 48, "out_dim": 48}
    kind = replace(wan, config=comfy.supported_models.WAN22_T2V, unet=unet, channels=48, frames=3)
    evaluated = Evaluated(kind, kind.conditioning(2))
    assert evaluated.family.name == "Wan" and type(evaluated.model.model).__name__ == "WAN22"
    x, chunks = kind.latent(1), evaluated.chunks()
    plain, record = evaluated.predict(x)[0], evaluated.recorded(x)
    assert {key[1] for key in record if len(key) > 1} == set(range(kind.blocks))
    assert record["query", 0, 0].shape[2] == 3 * 6 * 8
    assert torch.equal(evaluated.injected(x, record, chunks)[0], plain)
    assert not torch.equal(evaluated.injected(x, evaluated.recorded(kind.latent(5)), chunks)[0], plain)


@FAMILIES
@torch.inference_mode()
def test_image_tokens_are_the_latents_and_not_the_texts(name):
    kind = KINDS[name]
    base, other_prompt = Evaluated(kind, kind.conditioning(2)), Evaluated(kind, kind.conditioning(3))
    if kind.pooled:  # it modulates the image's tokens too
        pooled = base.conds[0][0]["model_conds"].get("y")
        other_prompt.conds[0][0]["model_conds"] |= {"y": pooled} if pooled is not None else {}
    first = {"query": {0}}
    queries = base.recorded(kind.latent(1), first)["query", 0, 0]
    frames, rows, columns = base.family.grid(kind.latent(1))
    assert queries.shape[2] == frames * rows * columns
    moved = base.recorded(kind.latent(9), first)["query", 0, 0]
    assert all(not torch.equal(queries[:, :, i], moved[:, :, i]) for i in range(queries.shape[2]))
    assert torch.equal(queries, other_prompt.recorded(kind.latent(1), first)["query", 0, 0])


@FAMILIES
@pytest.mark.parametrize("dtype", cases([torch.float32, torch.bfloat16], torch.float32))
@torch.inference_mode()
def test_its_own_values_change_nothing_and_another_pictures_do(name, dtype):
    kind = KINDS[name]
    evaluated = Evaluated(kind, kind.conditioning(2), dtype=dtype)
    x = kind.latent(1)
    plain = evaluated.predict(x)[0]
    chunks = evaluated.chunks()
    assert torch.equal(evaluated.injected(x, evaluated.recorded(x), chunks)[0], plain)
    assert not torch.equal(evaluated.injected(x, evaluated.recorded(kind.latent(5)), chunks)[0], plain)
    assert torch.equal(evaluated.injected(x, {}, [])[0], plain)


@FAMILIES
@torch.inference_mode()
def test_rows_in_one_call_and_in_calls_of_their_own_agree(name, monkeypatch):
    """Only the positive's rows are overwritten; the negative has another length, or the same and shares the call."""
    kind = KINDS[name]
    for tokens in (20, 33):
        evaluated = Evaluated(kind, kind.conditioning(2), kind.conditioning(4, tokens))
        x = torch.cat([kind.latent(1), kind.latent(6)])
        record = Evaluated(kind, kind.conditioning(2)).recorded(kind.latent(5))
        plain = evaluated.predict(x)
        together = evaluated.injected(x, record, evaluated.chunks()[:1])
        with monkeypatch.context() as patch:
            patch.setattr(comfy.model_patcher.ModelPatcher, "get_free_memory", lambda *args: 0)
            apart = evaluated.injected(x, record, evaluated.chunks()[:1])
        torch.testing.assert_close(together[1], plain[1], rtol=0, atol=2e-5)
        torch.testing.assert_close(apart, together, rtol=0, atol=2e-5)
        assert not torch.allclose(together[0], plain[0], rtol=0, atol=1e-3)


@FAMILIES
@torch.inference_mode()
def test_shares_of_words_are_those_of_an_explicit_softmax(name):
    kind = KINDS[name]
    options = {"attention_mask": torch.tensor([[1] * 17 + [0] * 3])} if name == "qwen_image" else {}
    evaluated = Evaluated(kind, kind.conditioning(2, **options))
    worst = []

    def compare(call: Attention) -> None:
        if not call.has_text:
            return
        groups = [[2], [5, 7], list(range(call.text.stop - call.text.start))]
        scores = call.q[:, :, call.image] @ call.k.mT * call.q.shape[-1] ** -0.5
        if call.mask is not None:
            scores = scores + (call.mask if call.mask.ndim == 4 else call.mask.unsqueeze(1))
        explicit = scores.softmax(-1)[..., call.text]
        wanted = torch.stack([explicit[..., group].sum(-1) for group in groups], -1)
        worst.append(float((call.shares(groups) - wanted).abs().max()))

    patched = evaluated.options()
    on_attention(patched, evaluated.family, compare)
    evaluated.predict(kind.latent(1), patched)
    assert len(worst) == kind.blocks
    assert max(worst) < 1e-6


@pytest.mark.parametrize(
    ("name", "order"), cases(product(KINDS, ("before", "after")), *zip(KINDS, cycle(("before", "after")), strict=False))
)
@torch.inference_mode()
def test_another_packs_override_is_called_once_a_block_with_the_injected_values(name, order):
    kind = KINDS[name]
    evaluated = Evaluated(kind, kind.conditioning(2))
    x = kind.latent(1)
    calls = []

    def foreign(func, q, k, v, *args, **kwargs):
        calls.append(q)
        return func(q, k, v, *args, **kwargs)

    def add(options):
        previous = options["transformer_options"].get("optimized_attention_override")
        assert previous is None
        options["transformer_options"]["optimized_attention_override"] = foreign

    record = evaluated.recorded(kind.latent(5))
    chunks = evaluated.chunks()
    plain = evaluated.injected(x, record, chunks)[0]
    stacked = evaluated.injected(x, record, chunks, **{order: add})[0]
    assert torch.equal(stacked, plain)
    alone = evaluated.options()
    add(alone)
    count, calls[:] = len(calls), []
    evaluated.predict(x, alone)
    assert len(calls) == count


@pytest.mark.parametrize("kernel", ["attention_pytorch", "attention_sub_quad", "attention_split"])
@torch.inference_mode()
def test_shares_are_right_in_every_kernel_of_core(kernel):
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 4, 40, 16, generator=generator) for _ in range(3))

    def run(q, k, v):
        return getattr(kernels, kernel)(q, k, v, 4, skip_reshape=True, skip_output_reshape=True)

    call = Attention((0, 0), q, k, v, slice(0, 8), slice(8, 40), {}, run, run, None, (1, 4, 8))
    explicit = (q[:, :, 8:] @ k.mT / 4.0).softmax(-1)
    torch.testing.assert_close(call.shares([[1, 3]])[..., 0], explicit[..., [1, 3]].sum(-1), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["lumina2", "z_image"])
@torch.inference_mode()
def test_positions_that_follow_the_captions_length_are_put_right(name):
    """Without image padding, q of the first block depends on the caption by its rotation alone."""
    kind = KINDS[name]
    x = kind.latent(1, height=16, width=16)
    short, long = (Evaluated(kind, kind.conditioning(2, tokens)) for tokens in (20, 53))
    a, b = (evaluated.recorded(x, {"query": {0}}) for evaluated in (short, long))
    more = int(b["text tokens",]) - int(a["text tokens",])
    assert more == {"lumina2": 33, "z_image": 32}[name]
    q, wanted = a["query", 0, 0], b["query", 0, 0]
    assert float((q - wanted).norm() / wanted.norm()) > 0.1
    assert float((short.family.turned(q, more) - wanted).norm() / wanted.norm()) < 2e-6
    assert torch.equal(short.family.turned(q, 0), q)


@FAMILIES
@torch.inference_mode()
def test_words_are_exchanged_as_in_an_explicit_matrix(name):
    """Source and target of unequal length; one column of the target has no counterpart, and one a factor.

    Each block's attention is held against float64 on the same q, k, v. What the network makes of all of them, each in float32 on
    either side, is the same but for the rounding that the blocks behind carry on.
    """
    kind = KINDS[name]
    texts = 3 if kind.llama else 1
    old, new = Columns(20 * texts, (4, 6, 9)), Columns(23 * texts, (5, 7, 8, 12))
    mapper = torch.tensor([[1.0, 0, 0, 0], [0, 0, 0.5, 0], [0, 0, 0, 2.0]])
    kept = torch.tensor([-1.0, 0.0, -1.0, -1.0])
    source, target = Evaluated(kind, kind.conditioning(2)), Evaluated(kind, kind.conditioning(3, 23))
    blocks, record, options = set(range(1, kind.blocks)), {}, source.options()
    record_text(options, source.family, {}, blocks, old, record)
    with pytest.raises(AllSeen):
        source.predict(kind.latent(5), options)
    x, chunks = kind.latent(1), {chunk: record for chunk in target.chunks()}
    plain, errors = target.predict(x)[0], []

    def edited(call: TextCall) -> torch.Tensor:
        change = record[("cross", *call.layer)] @ mapper + call.probabilities(slice(None)) * kept
        output = call.output.clone()
        call.picture(output)[:] += call.applied(change, slice(None))
        exact = explicit(replace(call.call, **{name: getattr(call.call, name).double() for name in "qkv"}))
        errors.append(float((output - exact).norm() / exact.norm()))
        return output

    def explicit(call: Attention) -> torch.Tensor | None:
        if not call.has_text or call.place[0] not in blocks:
            return None
        scores = call.q @ call.k.mT * call.q.shape[-1] ** -0.5
        attention = (scores if call.mask is None else scores + call.mask).softmax(-1)
        groups = [group for (group,) in text_groups(call, target.family, new.count, [[c] for c in new.read])[:-1]]
        columns = torch.tensor(groups) + call.text.start
        own = attention[:, :, call.image][..., columns]
        rows = torch.arange(call.image.start, call.image.stop)[:, None]
        attention[:, :, rows, columns] = record["cross", call.place[0]].to(own) @ mapper.to(own) + own * (1.0 + kept)
        return attention @ call.v

    def result(add) -> torch.Tensor:
        options = target.options()
        add(options)
        return target.predict(x, options)[0]

    ours = result(lambda options: change_text(options, target.family, {}, blocks, new, chunks, edited))
    wanted = result(lambda options: on_attention(options, target.family, explicit))
    assert len(errors) == len(blocks) and max(errors) < 1e-6
    assert float((ours - wanted).norm() / wanted.norm()) < 2e-6
    assert float((ours - plain).norm() / plain.norm()) > 1e-4
    same = result(
        lambda options: change_text(options, target.family, {}, blocks, new, chunks, lambda call: call.output)
    )
    assert torch.equal(same, plain)
    assert all(float(record["text", block].float().max()) <= 1.0 + 1e-6 for block in blocks)
