"""unCLIP Sample Prior on a small random prior in the published layout, with ComfyUI's own CLIP, memory management and interruption."""

from __future__ import annotations

import itertools

import comfy.clip_vision
import comfy.model_base
import comfy.model_management
import comfy.utils
import pytest
import torch
from comfy.ldm.modules.encoders.noise_aug_modules import CLIPEmbeddingNoiseAugmentation
from palimpsest.nodes.unclip.prior.checkpoint import prior
from palimpsest.nodes.unclip.prior.nodes import SamplePrior
from palimpsest.nodes.unclip.prior.prior import (
    CANDIDATES_AT_ONCE,
    TIMES_AT_ONCE,
    Options,
    Prior,
    best,
    draw_noise,
    sample,
)
from palimpsest.nodes.unclip.prior.transformer import PriorTransformer
from support.cases import cases
from support.fixtures import tiny_clip
from support.fixtures.twin_prior import TINY, random_text, twin

import nodes as core_nodes

pytestmark = [pytest.mark.model, pytest.mark.newest]

WIDTH = TINY["embedding"]


def made(dtype: torch.dtype | None = None, seed: int = 0) -> Prior:
    return prior(dict(twin(**TINY, seed=seed).state_dict()), "prior.safetensors", None, dtype)


@pytest.fixture(scope="module")
def model() -> Prior:
    return made()


@torch.inference_mode()
def run(model: Prior, clip, **changed):
    inputs = {"text": "a red cube", "negative_text": "", "steps": 7, "cfg": 4.0, "seed": 5, "candidates": 1}
    output, score = SamplePrior.execute(model, clip, **{**inputs, **changed}).args
    return output.image_embeds, score


def noise(seed: int, count: int, steps: int) -> torch.Tensor:
    return torch.stack([*itertools.islice(draw_noise(seed, count, WIDTH), steps)])


def close(a: torch.Tensor, b: torch.Tensor, tolerance: float = 1e-5) -> bool:
    return float((a - b).abs().max()) < tolerance * float(b.abs().max())


def test_the_output_is_what_clip_vision_gives(model, clip):
    with torch.inference_mode():
        output, score = SamplePrior.execute(model, clip, "a red cube", "", 7, 4.0, 5, 2, batch_size=3).args
    assert isinstance(output, comfy.clip_vision.Output) and isinstance(score, float) and -1.0 <= score <= 1.0
    assert output.image_embeds.shape == (3, WIDTH) and output.image_embeds.dtype == torch.float32
    assert output.image_embeds.device == comfy.model_management.intermediate_device()
    [(_, extra)] = core_nodes.unCLIPConditioning().apply_adm([[torch.zeros(1, 77, 8), {}]], output, 1.0, 0.0)[0]

    augmentor = CLIPEmbeddingNoiseAugmentation(
        noise_schedule_config={"timesteps": 1000, "beta_schedule": "squaredcos_cap_v2"}, timestep_dim=WIDTH
    )
    adm = comfy.model_base.unclip_adm(extra["unclip_conditioning"], torch.device("cpu"), augmentor, seed=1)
    assert adm.shape == (1, 2 * WIDTH) and torch.isfinite(adm).all()


def test_queueing_twice_gives_the_same_and_another_seed_or_text_another(model, clip):
    first, score = run(model, clip)
    again, same_score = run(model, clip)
    assert torch.equal(first, again) and score == same_score
    for changed in (
        {"seed": 6},
        {"text": "a blue ball"},
        {"negative_text": "night"},
        {"cfg": 2.0},
        {"steps": 8},
        {"eta": 0.0},
    ):
        assert not close(run(model, clip, **changed)[0], first, 1e-3), changed


def test_more_candidates_only_add_to_the_choice(model, clip):
    scores = [run(model, clip, candidates=count)[1] for count in (1, 2, 4, 8)]
    assert all(more > fewer - 1e-6 for fewer, more in itertools.pairwise(scores)) and scores[-1] > scores[0] + 1e-3
    assert torch.equal(noise(3, 4, 7)[:, :2], noise(3, 2, 7)) and not torch.equal(
        noise(3, 2, 7)[:, 0], noise(3, 2, 7)[:, 1]
    )


def test_the_kept_candidate_is_the_nearest_to_the_text_of_each_group():
    generator = torch.Generator().manual_seed(0)
    candidates, text = torch.randn(6, 16, generator=generator), torch.randn(16, generator=generator)
    kept, scores = best(candidates, text, 2)
    units = candidates / candidates.norm(dim=1, keepdim=True) @ (text / text.norm())
    for group in range(2):
        chosen = int(units[3 * group : 3 * group + 3].argmax()) + 3 * group
        assert torch.equal(kept[group], candidates[chosen])
        assert float(scores[group]) == pytest.approx(float(units[chosen]), abs=1e-6)


def test_rows_of_a_batch_are_what_they_are_alone(model, clip):
    batch, score = run(model, clip, batch_size=2, candidates=2)
    alone, _ = run(model, clip, candidates=2)
    four = run(model, clip, batch_size=4)[0]
    assert close(batch[:1], alone)
    assert any(close(batch[1], row) for row in four[2:])
    text = random_text(WIDTH, (5, 2))
    with torch.inference_mode():
        drawn = noise(1, 5, 7)
        together = sample(model, text, drawn, Options(7))
        for i in range(5):
            assert close(sample(model, text, drawn[:, i : i + 1], Options(7)), together[i : i + 1])


def test_many_candidates_are_worked_out_in_parts(model):
    count = CANDIDATES_AT_ONCE + 3
    text, drawn = random_text(WIDTH, (5, 2)), noise(1, count, 3)
    with torch.inference_mode():
        together = sample(model, text, drawn, Options(3))
        assert together.shape == (count, WIDTH)
        assert close(sample(model, text, drawn[:, -4:], Options(3)), together[-4:])


def test_at_cfg_1_the_negative_text_has_no_part(model, clip):
    assert torch.equal(run(model, clip, cfg=1.0)[0], run(model, clip, cfg=1.0, negative_text="night")[0])
    assert close(run(model, clip, cfg=1.0)[0], run(model, clip, cfg=1.0 + 1e-7)[0])
    assert close(run(model, clip, cfg=0.0)[0], run(model, clip, cfg=1.0, text="")[0])


def test_the_same_text_on_both_sides_makes_guidance_nothing(model, clip):
    assert close(run(model, clip, negative_text="a red cube", cfg=9.0)[0], run(model, clip, cfg=1.0)[0])


def test_how_the_tokeniser_pads_makes_no_difference(model):
    text = random_text(WIDTH, (9, 2))
    other = torch.where(text.mask[..., None], text.states, 100.0)
    changed = type(text)(other, text.pooled, text.mask, text.unread)
    with torch.inference_mode():
        drawn = noise(1, 2, 7)
        assert torch.equal(sample(model, changed, drawn, Options(7)), sample(model, text, drawn, Options(7)))


def test_what_a_token_sees_is_what_comes_before_it(model):
    text = random_text(WIDTH, (9,))
    later = text.states.clone()
    later[0, 8] += 1.0
    with torch.inference_mode():
        a, b = (model.model.read(states, text.pooled, text.mask) for states in (text.states, later))
        for (k, v), (k_later, v_later) in zip(a.layers, b.layers, strict=True):
            assert torch.equal(k[:, :8], k_later[:, :8]) and torch.equal(v[:, :8], v_later[:, :8])
            assert not torch.equal(k[:, 8:], k_later[:, 8:])


def test_the_text_is_read_once_and_the_times_in_few_passes(model, monkeypatch):
    tokens = []
    first = model.model.blocks[0]
    handle = first.register_forward_pre_hook(lambda _, inputs: tokens.append(inputs[0].shape[:2]))
    steps = TIMES_AT_ONCE + 8
    with torch.inference_mode():
        sample(model, random_text(WIDTH, (9, 2)), noise(1, 3, steps), Options(steps))
    handle.remove()
    assert tokens[:2] == [(1, 10 + 3), (1, 2 * TIMES_AT_ONCE)] and tokens.count((1, 2 * 8)) == 1
    assert tokens.count((1, 2 * 6)) == steps and len(tokens) == steps + 3


@pytest.mark.parametrize("dtype", cases([torch.float16, torch.bfloat16], torch.float16))
def test_half_precision_weights_come_close(model, clip, dtype):
    exact = run(model, clip, steps=25)[0]
    half = run(made(dtype), clip, steps=25)[0]
    assert half.dtype == torch.float32
    bound = {torch.float16: 0.02, torch.bfloat16: 0.1}[dtype]
    assert 0 < float((half - exact).norm() / exact.norm()) < bound


def test_computing_in_half_precision_comes_close(model, clip):
    """What a GPU does; the CPU can, slowly."""
    half = made(torch.bfloat16)
    half.model.compute_dtype = torch.bfloat16
    exact = run(model, clip)[0]
    assert 0 < float((run(half, clip)[0] - exact).norm() / exact.norm()) < 0.1


def test_the_deterministic_path_adds_no_noise(model):
    text, drawn = random_text(WIDTH, (9, 2)), noise(1, 2, 25)
    other = torch.cat([drawn[:1], noise(2, 2, 24)])
    with torch.inference_mode():
        a, b, c, d = (sample(model, text, n, Options(25, eta=eta)) for eta in (0.0, 1.0) for n in (drawn, other))
    assert torch.equal(a, b) and not torch.equal(c, d)


def test_no_number_leaves_the_clamp(model):
    text, drawn = random_text(WIDTH, (9, 2)), noise(1, 4, 7)
    with torch.inference_mode():
        normalised = (sample(model, text, drawn, Options(7, 20.0, 2.0)) - model.mean) / model.std
    assert 1.9 < float(normalised.abs().max()) <= 2.0 + 1e-3


def test_progress_counts_the_steps(model, clip):
    seen = []
    comfy.utils.set_progress_bar_global_hook(lambda value, total, *_, **__: seen.append((value, total)))
    try:
        run(model, clip, steps=5)
    finally:
        comfy.utils.set_progress_bar_global_hook(None)
    assert seen[0] == (1, 5) and seen[-1] == (5, 5) and seen == sorted(seen)  # core leaves some out to save messages


def test_cancelled_half_way_it_runs_again(model, clip):
    expected, _ = run(model, clip)
    before = {name: value.clone() for name, value in model.model.state_dict().items()}
    passes = []

    def cancel(*_):
        passes.append(None)
        if len(passes) == 5:  # the text, the times, and three of seven steps
            comfy.model_management.interrupt_current_processing()

    handle = model.model.blocks[0].register_forward_pre_hook(cancel)
    try:
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            run(model, clip)
    finally:
        handle.remove()
        comfy.model_management.interrupt_current_processing(False)
    assert len(passes) == 5
    assert all(torch.equal(value, before[name]) for name, value in model.model.state_dict().items())
    assert torch.equal(run(model, clip)[0], expected)


def test_after_being_unloaded_it_runs_again(model, clip):
    expected, _ = run(model, clip)
    assert any(loaded.model is model.patcher for loaded in comfy.model_management.current_loaded_models)
    comfy.model_management.unload_all_models()
    assert torch.equal(run(model, clip)[0], expected)


def test_a_text_encoder_of_another_width_is_refused(model):
    with pytest.raises(
        ValueError,
        match=r"^clip: expected a CLIP text encoder of width 64, which the prior was trained with, got 96, 128\.",
    ):
        run(model, tiny_clip.two_encoders(width_l=96))


def test_of_two_text_encoders_the_fitting_one_is_used(model, clip):
    both = tiny_clip.two_encoders()
    assert run(model, both)[0].shape == (1, WIDTH)


@pytest.mark.parametrize(
    ("changed", "message"),
    [({"candidates": 0}, "^candidates: expected one or more"), ({"steps": 1}, "^steps: expected 2 to 1000")],
)
def test_no_candidates_and_too_few_steps_are_refused(model, clip, changed, message):
    with pytest.raises(ValueError, match=message):
        run(model, clip, **changed)


def test_F17_masks_are_built_once_a_run(clip, monkeypatch):
    """Fault F17: at every step. Now: for the texts, for each part of the candidates, and for each block of timesteps."""
    built = []
    mask = PriorTransformer._mask
    monkeypatch.setattr(PriorTransformer, "_mask", lambda self, sees: built.append(sees.shape) or mask(self, sees))
    for steps in (2, TIMES_AT_ONCE):
        built.clear()
        run(made(), clip, steps=steps, candidates=CANDIDATES_AT_ONCE, batch_size=2)
        assert len(built) == 1 + 2 + 1
