import math

import numpy as np
import pytest
import torch
from palimpsest.nodes.comparison.measures import error_image, match, psnr, ssim
from skimage import data
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from support.fixtures.without_float64 import WithoutFloat64

pytestmark = pytest.mark.unit


def pictures() -> tuple[torch.Tensor, torch.Tensor]:
    picture = torch.from_numpy(data.astronaut()[100:228, 150:310]).float() / 255
    noise = torch.randn(picture.shape, generator=torch.Generator().manual_seed(0))
    return picture[None], (picture + 0.05 * noise).clamp(0, 1)[None]


def test_psnr_and_ssim_equal_scikit_image():
    a, b = pictures()
    x, y = (image[0].double().numpy() for image in (a, b))
    assert psnr(a, b) == pytest.approx(peak_signal_noise_ratio(x, y, data_range=1.0), abs=1e-4)
    expected = structural_similarity(
        x, y, data_range=1.0, channel_axis=-1, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
    )
    assert ssim(a, b) == pytest.approx(expected, abs=1e-6)


def test_equal_pictures():
    a, _ = pictures()
    assert psnr(a, a) == math.inf
    assert ssim(a, a) == pytest.approx(1.0, abs=1e-12)
    assert not error_image(a, a, 4.0).any()


def test_ssim_of_a_batch_is_the_mean_of_its_pictures():
    a, b = pictures()
    both = ssim(torch.cat([a, a]), torch.cat([b, a]))
    assert both == pytest.approx(np.mean([ssim(a, b), 1.0]), abs=1e-9)


def test_match_repeats_one_picture_drops_alpha_and_names_other_sizes():
    a, b = pictures()
    rgba = torch.cat([torch.cat([b, b]), torch.ones(2, *b.shape[1:3], 1)], dim=-1)
    x, y = match(a, rgba)
    assert x.shape == y.shape == (2, *a.shape[1:])
    with pytest.raises(ValueError, match=r"image_a, image_b: .*1 of 160x128 and 1 of 100x128"):
        match(a, b[:, :, :100])


def test_a_device_without_float64_is_enough_E1():
    a, b = torch.rand(2, 1, 16, 16, 3, generator=torch.Generator().manual_seed(1))
    there = [x.as_subclass(WithoutFloat64) for x in (a, b)]
    assert (psnr(*there), ssim(*there)) == (psnr(a, b), ssim(a, b))
