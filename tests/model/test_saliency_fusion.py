"""What a fusion samples, and what it leaves alone."""

from dataclasses import replace

import comfy.model_management
import comfy_extras.nodes_model_advanced as advanced
import pytest
import torch
from palimpsest.nodes.saliency_fusion.blending import Mask
from palimpsest.nodes.saliency_fusion.saliency import log_saliency, strength
from support.cases import cases
from support.fixtures.fusion import PUBLISHED, expert, fuse, general, plain, run, start_for
from support.fixtures.sampling import schedule
from support.fixtures.tiny_models import flow_dit, sd15, small_sdxl, two_level, two_level_v
from support.fixtures.unet_probe import fingerprint, same

pytestmark = pytest.mark.model

STEPS = 3
EVERYWHERE = Mask(torch.ones(1, 8, 8), "decide")
NOWHERE = Mask(torch.zeros(1, 8, 8), "restrict")
LEFT = Mask(torch.cat([torch.ones(1, 8, 4), torch.zeros(1, 8, 4)], -1), "decide")


@pytest.fixture(scope="module")
def model():
    return two_level(0)


@pytest.fixture(scope="module")
def other():
    return two_level(1)


@pytest.fixture(scope="module")
def sigmas(model):
    return schedule(model, STEPS)


def start(model, sigmas, batch=1):
    return start_for(model, sigmas, batch, (8, 8))


class Evaluations:
    """Rows of each UNet call of a model."""

    def __init__(self, model):
        self.unet = model.model.diffusion_model
        self.rows = []

    def __enter__(self):
        self.handle = self.unet.register_forward_pre_hook(lambda module, args: self.rows.append(len(args[0])))
        return self.rows

    def __exit__(self, *exception):
        self.handle.remove()


def test_a_model_fused_with_its_equal_ties_everywhere_and_is_the_single_model(model, sigmas):
    one = general(model)
    made = run(fuse(one, expert(two_level(0), seed=2)), start(model, sigmas), sigmas)
    assert all(torch.equal(decision.weights[0], torch.ones(1, 8, 8)) for decision in made.decisions)
    assert torch.equal(made.result, run(plain(one), start(model, sigmas), sigmas).result)


@pytest.mark.parametrize("kind", cases([sd15, small_sdxl, two_level_v, flow_dit], small_sdxl, flow_dit))
def test_every_pixel_is_one_model_s_own_prediction(kind):
    one, second = general(kind(0), 4.0), expert(kind(1), 4.0)
    step = schedule(one.model, 2, "simple")[[0, -1]]
    x = start(one.model, step, 2)
    made = run(fuse(one, second), x, step)  # one step to sigma 0: the result is the prediction
    assert made.decisions[0].weights.shape == (2, 2, 8, 8) and 0 < float(made.decisions[0].weights[1].mean()) < 1
    chosen = made.decisions[0].weights[1][:, None].bool()
    alone = [run(plain(side), x, step).result for side in (one, second)]
    assert torch.equal(made.result, torch.where(chosen, alone[1], alone[0]))


def test_sdxl_models_read_their_own_pooled_prompts_and_sizes(sigmas):
    def other_extras(prompt):
        [[text, extras]] = prompt
        return [[text, {"pooled_output": -extras["pooled_output"], "width": 512, "crop_w": 64}]]

    one, second = general(small_sdxl(0)), expert(small_sdxl(1), mask=LEFT)
    x, step = start(one.model, sigmas), sigmas[[0, -1]]
    plainly = run(fuse(one, second), x, step).result
    of_expert = replace(second, positive=other_extras(second.positive))
    of_general = replace(one, positive=other_extras(one.positive))
    changed = [run(fuse(*sides), x, step).result for sides in ((one, of_expert), (of_general, second))]
    assert torch.equal(changed[0][..., 4:], plainly[..., 4:]) and not same(changed[0][..., :4], plainly[..., :4], 1e-3)
    assert torch.equal(changed[1][..., :4], plainly[..., :4]) and not same(changed[1][..., 4:], plainly[..., 4:], 1e-3)


@pytest.mark.parametrize(
    "neutral",
    [
        {"span": (0.0, 0.0)},
        {"span": (0.4, 0.4)},
        {"mask": NOWHERE},
        {"mask": Mask(torch.full((1, 8, 8), 0.3), "decide")},
    ],
    ids=["never", "empty window", "mask", "mask that rounds to nothing (F17)"],
)
@pytest.mark.parametrize("cfg", cases([7.5, 1.0], 7.5))
def test_a_neutral_fusion_is_the_plain_guider_and_its_expert_is_not_even_loaded(model, other, sigmas, neutral, cfg):
    comfy.model_management.unload_all_models()
    one = general(model, cfg)
    with Evaluations(other) as rows:
        made = run(
            fuse(one, expert(other, **neutral)),
            start(model, sigmas),
            sigmas,
            on_step=lambda step: loaded_models(model, other),
        )
    assert rows == []
    assert loaded_models(model, other) == [True, False]
    assert torch.equal(made.result, run(plain(one), start(model, sigmas), sigmas).result)


def loaded_models(*models):
    return [
        any(
            loaded.model is not None and loaded.model.is_clone(model)
            for loaded in comfy.model_management.current_loaded_models
        )
        for model in models
    ]


def test_a_model_is_evaluated_only_inside_its_window(model, other):
    sigmas = schedule(model, 10)
    with Evaluations(model) as general_rows, Evaluations(other) as rows:
        made = run(fuse(general(model), expert(other, span=(0.3, 0.7))), start(model, sigmas), sigmas)
    acted = [decision is not None for decision in made.decisions]
    assert acted == [False] * 3 + [True] * 4 + [False] * 3  # t = 901, 801, ..., 1; the window is 699.3 to 299.7
    assert general_rows == [2] * 10 and rows == [2] * 4


def test_general_uncond_needs_no_further_evaluation(model, other, sigmas):
    with Evaluations(model) as general_rows, Evaluations(other) as rows:
        run(fuse(general(model), expert(other), general_uncond=True), start(model, sigmas), sigmas)
    assert general_rows == rows == [2] * STEPS


def test_swapping_own_uncond_roles_complements_the_mask(model, other, sigmas):
    x = start(model, sigmas)
    masks = [
        run(fuse(general(one, seed=a), expert(two, seed=b)), x, sigmas[:2]).decisions[0].weights[1]
        for one, a, two, b in ((model, 2, other, 4), (other, 4, model, 2))
    ]
    assert torch.equal(masks[0], 1 - masks[1])


def test_a_batch_of_two_is_two_of_one(model, other, sigmas):
    x = start(model, sigmas, 2)
    both = run(fuse(general(model), expert(other)), x, sigmas).result
    apart = [run(fuse(general(model), expert(other)), row[None], sigmas).result for row in x]
    assert same(both, torch.cat(apart))


def test_batched_and_split_calls_agree(model, other, sigmas):
    """Prompts of different lengths go through the UNet one after another."""
    together = expert(other)
    # Core joins no prompts whose lengths differ five times; attention to repeated tokens is the same.
    apart = replace(together, positive=[[together.positive[0][0].repeat(1, 5, 1), {}]])
    with Evaluations(other) as rows:
        split = run(fuse(general(model), apart), start(model, sigmas), sigmas)
    assert rows == [1] * 2 * STEPS
    assert same(split.result, run(fuse(general(model), together), start(model, sigmas), sigmas).result)


@pytest.mark.parametrize("dtype", cases([torch.float16, torch.bfloat16], torch.float16))
def test_low_precision_weights(dtype, sigmas):
    low, high = [[two_level(seed, kind) for seed in (0, 1)] for kind in (dtype, torch.float32)]
    x = start(low[0], sigmas)
    made, exact = (run(fuse(general(one), expert(two)), x, sigmas[:2]) for one, two in (low, high))
    assert bool(torch.isfinite(made.result).all())
    agree = (made.decisions[0].weights[1:] == exact.decisions[0].weights[1:]).float()
    assert float(agree.mean()) > 0.9 and same(agree * made.result, agree * exact.result, 0.05)


def test_more_experts_share_the_rest(model, other, sigmas):
    third = two_level(2)
    made = run(fuse(general(model), expert(other), expert(third, seed=6)), start(model, sigmas), sigmas[:2])
    decision = made.decisions[0]
    assert decision.experts == (0, 1) and decision.weights.shape[0] == 3
    assert all(float(weight.mean()) > 0.02 for weight in decision.weights)
    assert torch.equal(decision.weights.argmax(0), decision.log_maps.argmax(0))
    only = run(
        fuse(general(model), expert(other, mask=NOWHERE), expert(third, seed=6)), start(model, sigmas), sigmas[:2]
    ).decisions[0]
    assert only.experts == (1,) and torch.equal(only.log_maps, decision.log_maps[[0, 2]])


def test_soft_blending_runs_from_the_hard_mask_to_the_average(model, other, sigmas):
    x, step = start(model, sigmas), sigmas[[0, -1]]
    one, second = general(model), expert(other)
    hard = run(fuse(one, second), x, step).result
    assert torch.equal(run(fuse(one, second, temperature=0.0), x, step).result, hard)
    average = (run(plain(one), x, step).result + run(plain(second), x, step).result) / 2
    assert same(run(fuse(one, second, temperature=1e6), x, step).result, average, 1e-4)
    between = run(fuse(one, second, temperature=1.0), x, step).result
    assert not same(between, hard, 1e-3) and not same(between, average, 1e-3)


def test_masks_force_restrict_and_decide_in_a_picture(model, other, sigmas):
    x, step = start(model, sigmas), sigmas[[0, -1]]
    one, second = (run(plain(side), x, step).result for side in (general(model), expert(other)))
    free = run(fuse(general(model), expert(other)), x, step).result
    results = {
        use: run(fuse(general(model), expert(other, mask=Mask(LEFT.values, use))), x, step).result
        for use in ("restrict", "force", "decide")
    }
    assert torch.equal(results["decide"], torch.cat([second[..., :4], one[..., 4:]], -1))
    assert torch.equal(results["restrict"], torch.cat([free[..., :4], one[..., 4:]], -1))
    assert torch.equal(results["force"], torch.cat([second[..., :4], free[..., 4:]], -1))


def other_schedule(model, low, high):
    return advanced.ModelSamplingContinuousEDM().patch(model, "v_prediction", high, low)[0]


def test_an_expert_may_have_another_noise_schedule(model, sigmas):
    """Continuous levels up to 120 beside a table of 1000 up to 14.6: each is asked at the sampler's own sigma."""
    one, second, step = general(model), expert(other_schedule(two_level(1), 0.002, 120.0)), sigmas[[1, -1]]
    x = start(model, step)
    made = run(fuse(one, second), x, step)
    chosen = made.decisions[0].weights[1][:, None].bool()
    assert 0 < float(chosen.float().mean()) < 1
    alone = [run(plain(side), x, step).result for side in (one, second)]
    assert torch.equal(made.result, torch.where(chosen, alone[1], alone[0]))


def test_models_without_common_noise_levels_are_refused(model):
    with pytest.raises(
        ValueError, match=r"model_expert: expected a model for noise levels that `model` has, .* 50 to 500"
    ):
        fuse(general(model), expert(other_schedule(two_level(1), 50.0, 500.0)))


def test_an_expert_that_predicts_v_is_read_in_eps(model, sigmas):
    """Against the textbook's eps = sqrt(alpha) v + sqrt(1 - alpha) x, from the network's own output."""
    v_model = two_level_v(1)
    sigma, x = sigmas[0], start(model, sigmas)
    second = expert(v_model, cfg=5.0)
    alpha = 1 / (1 + sigma**2)
    scaled = x * alpha.sqrt()
    t = v_model.get_model_object("model_sampling").timestep(sigma[None])
    with torch.no_grad():
        v = [
            v_model.model.diffusion_model(scaled, t.float(), context=rows[0][0])
            for rows in (second.negative, second.positive)
        ]
    uncond, cond = (alpha.sqrt() * out + (1 - alpha).sqrt() * scaled for out in v)
    noise = uncond + 5.0 * (cond - uncond)
    made = run(fuse(general(model), expert(v_model, cfg=5.0, mask=EVERYWHERE)), x, torch.stack([sigma, sigmas[1]]))
    assert same(made.result, x + (sigmas[1] - sigma) * noise)

    expected = log_saliency(strength(cond - uncond, "box"), second.sharpness, 5.0)
    free = run(fuse(general(model), second), x, torch.stack([sigma, sigmas[1]])).decisions[0]
    assert torch.allclose(free.log_maps[1], expected, atol=1e-4)


@pytest.mark.parametrize(
    "make, message",
    [
        (
            small_sdxl,
            r"model_expert: expected a model with the latents of `model`, SD15 \(4 channels\), got one with SDXL \(4",
        ),
        (
            flow_dit,
            r"model_expert: expected a model with the latents of `model`, SD15 \(4 channels\), got one with SD3 \(16",
        ),
    ],
)
def test_models_of_other_latents_are_refused(model, make, message):
    with pytest.raises(ValueError, match=message):
        fuse(general(model), expert(make(1)))


def test_a_flow_and_an_eps_model_are_refused(model):
    flow = advanced.ModelSamplingSD3().patch(two_level(1), 3.0)[0]
    with pytest.raises(
        ValueError, match="model_expert: expected a model sampled like `model`, by noise added to the picture"
    ):
        fuse(general(model), expert(flow))


def test_an_expert_without_the_first_levels_is_refused_until_it_starts_later(other):
    from_far = advanced.ModelSamplingDiscrete().patch(two_level(0), "v_prediction", True)[0]
    sigmas = schedule(from_far, 4, "normal")
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1)) * sigmas[0]
    assert float(sigmas[0]) > 1000
    with pytest.raises(ValueError, match=r"model_expert: expected a model for sigma 4\d+, where it starts, got one"):
        run(fuse(general(from_far), expert(other)), x, sigmas)
    made = run(fuse(general(from_far), expert(other, span=(0.2, 1.0))), x, sigmas)
    assert [decision is not None for decision in made.decisions] == [False, True, True, True]


@pytest.mark.parametrize("prompt", ["positive", "negative"])
def test_a_missing_prompt_is_refused(model, other, prompt):
    with pytest.raises(ValueError, match=f"model_expert: expected a {prompt} prompt for it, got empty conditioning"):
        replace(expert(other), **{prompt: []})


@pytest.mark.parametrize("sampler", cases(["heun", "dpmpp_2m", "euler_ancestral"], "dpmpp_2m"))
def test_any_sampler(model, other, sigmas, sampler):
    x = start(model, sigmas)
    first, again = (run(fuse(general(model), expert(other)), x, sigmas, sampler).result for _ in range(2))
    assert bool(torch.isfinite(first).all()) and torch.equal(first, again)


@pytest.mark.parametrize("which", ["both", "general", "expert"])
def test_guidance_changes_no_place_of_the_mask_unless_the_published_constants_are_asked_for_F12(
    model, other, sigmas, which
):
    def shares(cfg, **sharpness):
        of_general, of_expert = (cfg if which in ("both", who) else 7.5 for who in ("general", "expert"))
        sides = general(model, of_general, **sharpness), expert(other, of_expert, **sharpness)
        return run(fuse(*sides), start(model, sigmas), sigmas[:2]).decisions[0].weights

    assert torch.equal(shares(5.0), shares(10.0)) and torch.equal(shares(5.0), shares(1.0))
    assert not torch.equal(shares(5.0, sharpness=PUBLISHED), shares(100.0, sharpness=PUBLISHED))


@pytest.mark.parametrize("end", ["result", "error", "interrupt"])
def test_a_run_leaves_models_and_guider_as_they_were(model, other, sigmas, end):
    x = start(model, sigmas)
    one, second = general(model), expert(other)
    before = [fingerprint(m) for m in (model, other)]
    expected = run(fuse(one, second), x, sigmas).result
    guider = fuse(one, second)

    def stop(step):
        if step == 1 and end == "interrupt":
            comfy.model_management.interrupt_current_processing()
        if step == 1 and end == "error":
            raise RuntimeError("the callback failed")

    if end == "result":
        run(guider, x, sigmas, on_step=stop)
    else:
        with pytest.raises(comfy.model_management.InterruptProcessingException if end == "interrupt" else RuntimeError):
            run(guider, x, sigmas, on_step=stop)
    assert [fingerprint(m) for m in (model, other)] == before
    assert guider.decision is None and guider.active == []
    assert model.model.current_patcher is None and other.model.current_patcher is None
    assert torch.equal(run(guider, x, sigmas).result, expected)  # queued again
    assert torch.equal(run(plain(one), x, sigmas).result, run(plain(general(two_level(0))), x, sigmas).result)
