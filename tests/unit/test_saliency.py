import math

import pytest
import torch
import torch.nn.functional as F
from palimpsest.nodes.saliency_fusion.blending import Mask, blend, hard_weights, keeps_out, soft_weights
from palimpsest.nodes.saliency_fusion.saliency import (
    BLURS,
    QUIET,
    Sharpness,
    box_blur,
    gaussian_blur,
    log_saliency,
    strength,
)
from palimpsest.nodes.saliency_fusion.windows import Window

pytestmark = pytest.mark.unit

SIZES = [(64, 64), (16, 16), (7, 12), (2, 2)]


def response(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def published(strengths, k, cfg=1.0):
    return log_saliency(strengths, Sharpness(k, relative=False), cfg)


def relative(strengths, sharpness, cfg=1.0):
    return log_saliency(strengths, Sharpness(sharpness), cfg)


def published_box(x):
    """AvgPool2d(4, stride 1, padding 1), then back to H x W, written out pixel by pixel."""
    height, width = x.shape
    padded = torch.zeros(height + 2, width + 2, dtype=x.dtype)
    padded[1:-1, 1:-1] = x
    means = torch.stack(
        [torch.stack([padded[i : i + 4, j : j + 4].mean() for j in range(width - 1)]) for i in range(height - 1)]
    )

    def positions(size):
        for i in range(size):
            at = max((i + 0.5) * (size - 1) / size - 0.5, 0.0)
            low = min(int(at), size - 2)
            yield low, min(low + 1, size - 2), at - low

    return torch.stack(
        [
            torch.stack(
                [
                    (1 - v) * ((1 - u) * means[a, c] + u * means[a, d]) + v * ((1 - u) * means[b, c] + u * means[b, d])
                    for c, d, u in positions(width)
                ]
            )
            for a, b, v in positions(height)
        ]
    )


@pytest.mark.parametrize("size", SIZES)
def test_box_is_the_published_one_with_its_edges(size):
    x = response(*size).double()
    assert torch.allclose(box_blur(x[None, None])[0, 0], published_box(x), atol=1e-12)


def test_box_keeps_a_constant_inside_and_darkens_its_border():
    blurred = box_blur(torch.ones(1, 1, 64, 64))[0, 0]
    assert torch.allclose(blurred[3:-3, 3:-3], torch.ones(58, 58))
    assert float(blurred[0, 0]) == pytest.approx(0.75**2) and float(blurred[0, 32]) == pytest.approx(0.75)


def test_gaussian_keeps_a_constant_everywhere_and_is_as_wide_as_the_box():
    assert torch.allclose(gaussian_blur(torch.ones(2, 3, 9, 17)), torch.ones(2, 3, 9, 17))
    point = torch.zeros(1, 1, 33, 33)
    point[..., 16, 16] = 1.0
    offsets = torch.arange(33.0) - 16
    spread = (gaussian_blur(point)[0, 0].sum(0) * offsets**2).sum()
    assert float(spread) == pytest.approx(1.25, rel=0.02)


@pytest.mark.parametrize("blur", list(BLURS))
@pytest.mark.parametrize("size", SIZES)
def test_maps_sum_to_one_per_row_and_rows_do_not_mix(blur, size):
    responses = response(2, 4, *size)
    maps = published(strength(responses, blur), 2.0).exp()
    assert maps.shape == (2, *size)
    assert torch.allclose(maps.sum((1, 2)), torch.ones(2))
    alone = [published(strength(row[None], blur), 2.0).exp() for row in responses]
    assert torch.allclose(maps, torch.cat(alone), rtol=1e-6, atol=0)


def test_strength_is_the_mean_over_channels_of_the_blurred_sizes():
    responses = response(2, 4, 16, 16)
    expected = F.interpolate(F.avg_pool2d(responses.abs(), 4, 1, 1), (16, 16), mode="bilinear").mean(1)
    assert torch.allclose(strength(responses, "box"), expected)
    frames = response(1, 4, 3, 16, 16)
    apart = torch.stack([strength(frames[:, :, i], "box") for i in range(3)], 1)
    assert torch.allclose(strength(frames, "box"), apart)


def logs(*seeds, k=1.0, size=(16, 16), batch=2):
    maps = [published(strength(response(batch, 4, *size, seed=seed), "box"), k) for seed in seeds]
    return torch.stack(maps)


def test_hard_mask_is_the_softmax_s_argmax_and_ties_are_the_general_model_s():
    maps = logs(1, 2)
    assert torch.equal(hard_weights(maps, [None])[1], (maps[1].exp() > maps[0].exp()).float())
    assert torch.equal(hard_weights(maps[:1].repeat(3, 1, 1, 1), [None, None])[0], torch.ones(2, 16, 16))
    assert torch.equal(hard_weights(logs(1, 2, 3), [None, None]).sum(0), torch.ones(2, 16, 16))


def test_swapping_two_models_complements_the_mask():
    maps = logs(1, 2)
    assert torch.equal(hard_weights(maps, [None])[1], hard_weights(maps.flip(0), [None])[0])


def test_with_k_near_zero_an_expert_has_what_the_general_model_leaves_below_the_mean():
    general, expert = (strength(response(1, 4, 16, 16, seed=seed), "box") for seed in (1, 2))
    maps = torch.stack([published(general, 1.0), published(expert, 1e-7)])
    assert torch.equal(hard_weights(maps, [None])[1], (maps[0].exp() < 1 / 256).float())


def test_scaling_both_responses_by_sigma_would_change_the_mask():
    """Why responses are divided by sigma: the softmax is not linear."""
    general, expert = (strength(response(1, 4, 16, 16, seed=seed), "box") for seed in (1, 2))
    masks = [
        hard_weights(torch.stack([published(scale * general, 1.0), published(scale * expert, 1.0)]), [None])[1]
        for scale in (1.0, 14.6)
    ]
    assert not torch.equal(*masks)


def test_soft_weights_run_from_the_hard_mask_to_the_plain_average():
    maps = logs(1, 2, 3)
    hard = hard_weights(maps, [None, None])
    assert torch.equal(soft_weights(maps, [None, None], 0.0), hard)
    assert float((soft_weights(maps, [None, None], 1e-6) - hard).abs().max()) < 1e-3
    assert torch.allclose(soft_weights(maps, [None, None], 1e6), torch.full_like(maps, 1 / 3), atol=1e-5)
    assert torch.allclose(soft_weights(maps, [None, None], 1.0), maps.exp() / maps.exp().sum(0), atol=1e-6)


@pytest.mark.parametrize("weigh", [hard_weights, lambda maps, masks: soft_weights(maps, masks, 0.7)])
def test_masks_restrict_force_and_decide(weigh):
    maps = logs(1, 2, 3)
    left = torch.zeros(2, 16, 16)
    left[..., :8] = 1.0
    free = weigh(maps, [None, None])
    restricted = weigh(maps, [("restrict", left), None])
    assert torch.equal(restricted[:, ..., :8], free[:, ..., :8])
    assert torch.equal(restricted[1, ..., 8:], torch.zeros(2, 16, 8))
    assert torch.allclose(restricted[[0, 2], ..., 8:], weigh(maps[[0, 2]], [None])[..., 8:])
    forced = weigh(maps, [("force", left), None])
    assert torch.equal(forced[1, ..., :8], torch.ones(2, 16, 8))
    assert torch.equal(forced[..., 8:], free[..., 8:])
    decided = weigh(maps, [("decide", left), None])
    assert torch.equal(decided[1], left)
    assert torch.allclose(decided.sum(0), torch.ones(2, 16, 16))


def test_a_soft_mask_s_values_are_kept_and_a_hard_one_s_rounded():
    maps = logs(1, 2)
    slope = torch.linspace(0, 1, 16).expand(2, 16, 16)
    assert torch.allclose(soft_weights(maps, [("decide", slope)], 1.0)[1], slope)
    assert torch.equal(hard_weights(maps, [("decide", slope)])[1], (slope >= 0.5).float())


def test_masks_are_resized_and_broadcast():
    mask = Mask(torch.ones(128, 256), "force")
    assert mask.resized(torch.zeros(3, 4, 16, 32)).shape == (3, 16, 32)
    assert mask.resized(torch.zeros(3, 16, 5, 16, 32)).shape == (3, 5, 16, 32)
    with pytest.raises(ValueError, match="mask: expected one for all pictures"):
        Mask(torch.ones(2, 8, 8), "force").resized(torch.zeros(3, 4, 16, 16))


@pytest.mark.parametrize(
    ("use", "values", "hard", "soft"),
    [
        ("restrict", 0.0, True, True),
        ("decide", 0.0, True, True),
        ("restrict", 0.3, True, False),
        ("decide", 0.3, True, False),
        ("force", 0.0, False, False),
        ("force", 0.3, False, False),
        ("restrict", 0.5, False, False),
    ],
)
def test_a_mask_that_rounds_to_nothing_keeps_its_expert_out_F17(use, values, hard, soft):
    mask = (use, torch.full((1, 8, 8), values))
    assert (keeps_out(mask, True), keeps_out(mask, False)) == (hard, soft)
    never = bool((hard_weights(logs(1, 2, size=(8, 8)), [mask])[1] == 0).all())
    assert never == hard or use == "force"


def test_relative_sharpness_is_not_changed_by_guidance_or_by_the_number_of_pixels_F12():
    strengths = strength(response(2, 4, 16, 16), "box")
    assert torch.equal(relative(strengths, 3.0, cfg=5.0), relative(strengths, 3.0, cfg=10.0))
    assert torch.allclose(relative(strengths, 3.0), relative(7.0 * strengths, 3.0), atol=1e-5)
    assert not torch.allclose(published(strengths, 3.0, 5.0), published(strengths, 3.0, 10.0), atol=1e-2)
    one, other = strength(response(1, 4, 16, 16, seed=1), "box"), strength(response(1, 4, 16, 16, seed=2), "box")
    coarse, fine = (
        hard_weights(torch.stack([relative(side, 3.0) for side in sides]), [None])
        for sides in ((one, other), [side.repeat_interleave(4, -1).repeat_interleave(4, -2) for side in (one, other)])
    )
    assert torch.equal(coarse.repeat_interleave(4, -1).repeat_interleave(4, -2), fine)


def test_published_k_counts_guidance_in():
    strengths = strength(response(1, 4, 16, 16), "box")
    assert torch.allclose(published(strengths, 2.0, 5.0), published(5.0 * strengths, 2.0), atol=1e-5)


def test_a_response_of_rounding_errors_has_nothing_to_say():
    """As of a model whose two prompts are the same: its map is even, instead of a picture of the errors."""
    errors = 0.01 * QUIET * strength(response(1, 4, 8, 8), "box")
    assert torch.allclose(relative(errors, 3.0).exp(), torch.full((1, 8, 8), 1 / 64), rtol=0.1)
    assert torch.equal(relative(torch.zeros(1, 8, 8), 3.0), published(torch.zeros(1, 8, 8), 1.0))


@pytest.mark.parametrize(("is_relative", "name"), [(True, "sharpness"), (False, "k")])
def test_a_sharpness_of_nothing_is_refused(is_relative, name):
    with pytest.raises(ValueError, match=f"^{name}: expected a number above 0, got 0"):
        Sharpness(0.0, is_relative)


def test_a_hard_blend_gathers_bit_for_bit_and_a_soft_one_adds_up():
    predictions = [response(2, 4, 16, 16, seed=seed) for seed in (4, 5, 6)]
    maps = logs(1, 2, 3)
    hard = hard_weights(maps, [None, None])
    gathered = blend(predictions, hard, hard=True)
    for prediction, weight in zip(predictions, hard, strict=True):
        assert torch.equal(gathered * weight[:, None], prediction * weight[:, None])
    soft = soft_weights(maps, [None, None], 1.0)
    expected = sum(p * w[:, None] for p, w in zip(predictions, soft, strict=True))
    assert torch.allclose(blend(predictions, soft, hard=False), expected)


class Sampling:
    """SD's levels: sigma of t in 0..999, log-linear between two of them, as ModelSamplingDiscrete has them."""

    sigmas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000).double().square().neg().add(1).cumprod(0)
    sigmas = ((1 - sigmas) / sigmas).sqrt()

    def get_model_object(self, name):
        assert name == "model_sampling"
        return self

    def percent_to_sigma(self, percent):
        if percent <= 0.0 or percent >= 1.0:
            return 999999999.9 if percent <= 0.0 else 0.0
        t = (1.0 - percent) * 999.0
        low, share = math.floor(t), t - math.floor(t)
        return math.exp((1 - share) * self.sigmas[low].log() + share * self.sigmas[math.ceil(t)].log())


@pytest.mark.parametrize("threshold", [1, 250, 600, 850, 999])
def test_windows_are_the_published_modes_to_the_timestep(threshold):
    sampling = Sampling()
    border = 1.0 - threshold / 999.0
    fused_late, fused_early = Window.of(border, 1.0, sampling), Window.of(0.0, border, sampling)
    for t, sigma in enumerate(sampling.sigmas.tolist()):
        assert fused_late.holds(sigma) == (t <= threshold)  # mode 1
        assert fused_early.holds(sigma) == (t > threshold)  # mode 2


def test_an_empty_window_holds_nothing_and_a_reversed_one_is_refused():
    sampling = Sampling()
    for percent in (0.0, 0.4, 1.0):
        empty = Window.of(percent, percent, sampling)
        assert not any(empty.holds(float(sigma)) for sigma in sampling.sigmas)
        assert not empty.meets(sampling.sigmas)
    with pytest.raises(ValueError, match="start_percent: expected at most end_percent"):
        Window.of(0.5, 0.4, sampling)


def test_a_window_knows_the_levels_of_a_sampler_in_which_it_acts():
    sampling = Sampling()
    window = Window.of(0.2, 0.5, sampling)
    high, low = (sampling.percent_to_sigma(percent) for percent in (0.2, 0.5))
    assert window.meets(torch.tensor([14.0, 0.0])) and window.meets(torch.tensor([14.0, low * 1.1]))
    assert not window.meets(torch.tensor([low * 0.9, 0.0])) and not window.meets(torch.tensor([14.0, high * 1.1]))
