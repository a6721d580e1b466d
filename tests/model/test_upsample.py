"""Upsampling in tiles, in batches, in half precision, cancelled, and refused."""

from __future__ import annotations

import comfy.model_management
import comfy.ops
import pytest
import torch
from lab.benchmarks.live_bytes import LiveBytes
from palimpsest.nodes.unclip.decoder.adm_unet import UpsamplerNetwork
from palimpsest.nodes.unclip.decoder.upsampling import LIVE_CHANNELS, OVERLAP, even_tile, predict, upsample
from support.fixtures import twin_unclip, unclip
from torch._subclasses.fake_tensor import FakeTensorMode

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def networks():
    return twin_unclip.upsampler(1), twin_unclip.upsampler(2)


@pytest.fixture(scope="module")
def karlo(networks):
    return unclip.upsampler(*networks)


def picture(batch: int = 1, height: int = 16, width: int = 16, seed: int = 0) -> torch.Tensor:
    return torch.rand(batch, height, width, 3, generator=torch.Generator().manual_seed(seed))


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


@torch.inference_mode()
def test_the_first_six_steps_are_the_first_network_s_and_the_last_is_the_other_s(networks, monkeypatch):
    upsampler = unclip.upsampler(*networks)
    calls = []
    for name, patcher in (("first", upsampler.first), ("last", upsampler.last)):
        patcher.model.register_forward_pre_hook(lambda _, args, name=name: calls.append((name, int(args[1][0]))))
    image = upsample(upsampler, picture(), 2, 0, 1, 512)
    grid = [999, 832, 666, 500, 333, 166, 0]
    assert calls == [*(("first", t) for t in grid[:-1]), ("last", 0)]
    other = unclip.upsampler(networks[0], networks[0])
    assert relative(upsample(other, picture(), 2, 0, 1, 512), image) > 1e-3
    assert image.shape == (1, 32, 32, 3) and float(image.min()) >= 0 and float(image.max()) <= 1


@torch.inference_mode()
def test_a_seed_gives_the_same_picture_again_and_another_seed_another(karlo):
    first, again, other = (upsample(karlo, picture(), 2, 0, seed, 512) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert relative(other, first) > 1e-2


@torch.inference_mode()
def test_a_batch_goes_through_in_parts_as_large_as_a_tile(karlo):
    image = picture(3)
    whole = upsample(karlo, image, 2, 0, 1, 512)
    parts = upsample(karlo, image, 2, 0, 1, 32)
    assert relative(parts, whole) < 1e-3


@torch.inference_mode()
def test_tiles_of_a_network_that_looks_at_one_pixel_are_the_whole_picture():
    """Blending adds nothing of its own: weights of overlapping tiles sum to one."""
    network = twin_unclip.upsampler(1)
    for name, weight in network.named_parameters():
        if name.startswith("conv_out"):
            weight.data.zero_()
        if name == "conv_out.bias":
            weight.data.copy_(torch.tensor([0.3, -0.2, 0.1]))
    patcher = unclip.upsampler(network).first
    x = torch.randn(2, 6, 200, 152)
    eps = predict(patcher, x, 500, 96)
    torch.testing.assert_close(eps, torch.tensor([0.3, -0.2, 0.1]).view(1, 3, 1, 1).expand(2, 3, 200, 152))


@torch.inference_mode()
def test_tiles_are_near_the_whole_picture(karlo):
    """What is left is each tile's own normalisation, which on a picture of one texture differs little."""
    x = torch.randn(1, 6, 160, 160, generator=torch.Generator().manual_seed(0))
    whole, tiled = predict(karlo.first, x, 500, 160), predict(karlo.first, x, 500, 96)
    assert relative(tiled, whole) < 0.05
    assert not torch.equal(tiled, whole)


@pytest.mark.parametrize(("side", "tile"), [(1024, 512), (1024, 640), (600, 512), (2048, 512), (513, 512), (520, 256)])
def test_tiles_are_as_few_as_can_be_and_about_equal(side, tile):
    even = even_tile(side, tile, 8)
    assert even <= tile and even % 8 == 0
    starts = range(0, side - OVERLAP, even - OVERLAP)
    assert len(starts) == len(range(0, side - OVERLAP, tile - OVERLAP))
    assert side - starts[-1] >= even - 8 * len(starts)


@torch.inference_mode()
def test_half_precision_weights(networks):
    full = upsample(unclip.upsampler(*networks), picture(), 2, 0, 1, 512)
    for dtype, bound in ((torch.float16, 0.05), (torch.bfloat16, 0.3)):
        upsampler = unclip.upsampler(*networks, dtype=dtype)
        assert next(upsampler.first.model.parameters()).dtype == dtype
        assert relative(upsample(upsampler, picture(), 2, 0, 1, 512), full) < bound


@torch.inference_mode()
def test_a_cancelled_run_leaves_the_networks_as_they_were(karlo):
    before = upsample(karlo, picture(), 2, 0, 1, 512)
    calls = []

    def cancel(*_):
        calls.append(None)
        if len(calls) == 3:
            comfy.model_management.interrupt_current_processing()

    handle = karlo.first.model.register_forward_pre_hook(cancel)
    try:
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            upsample(karlo, picture(), 2, 0, 1, 512)
    finally:
        handle.remove()
        comfy.model_management.interrupt_current_processing(False)
    assert len(calls) == 3
    assert torch.equal(upsample(karlo, picture(), 2, 0, 1, 512), before)


DALLE2 = {
    "in_channels": 6, "out_channels": 3, "model_channels": 192, "time_width": 768, "widths": (192, 192, 384, 384, 768, 768),
    "blocks_per_level": 2, "attention": (False,) * 6, "context_width": 0, "scale_shift": True,
}  # fmt: skip
KARLO = {
    "in_channels": 6, "out_channels": 3, "model_channels": 320, "time_width": 1280, "widths": (320, 640, 960, 1280),
    "blocks_per_level": 3, "attention": (False,) * 4, "context_width": 0, "scale_shift": False,
}  # fmt: skip


@pytest.mark.parametrize(("sizes", "parameters"), [(DALLE2, 282.1), (KARLO, 691.6)])
@torch.no_grad()
def test_a_tile_at_the_published_sizes_fits_8_gb_in_float32(sizes, parameters):
    """Counted on tensors without values: weights and activations of the largest tile, and the pictures of 1024 pixels beside it."""
    side, shell = 512, {"dtype": torch.float32, "device": "cpu", "operations": comfy.ops.disable_weight_init}
    with FakeTensorMode(), LiveBytes() as live:
        network = UpsamplerNetwork(**sizes, **shell)
        weights = live.now
        network(torch.empty(1, 6, side, side), torch.empty(1))
        activations = live.peak - weights
    assert round(weights / 4e6, 1) == parameters
    assert activations <= LIVE_CHANNELS * sizes["model_channels"] * side**2 * 4 < 1.8 * activations
    pictures = 10 * 6 * 1024**2 * 4
    assert weights + activations + pictures < 8 * 2**30


def test_what_is_no_picture_and_too_few_steps_are_refused(karlo):
    with pytest.raises(ValueError, match=r"^image: expected one or more pictures, .* got \[0, 16, 16, 3\]\. Connect "):
        upsample(karlo, torch.zeros(0, 16, 16, 3), 2, 0, 1, 512)
    with pytest.raises(ValueError, match=r"^steps: expected 2 to 1000, .* got 1\. "):
        upsample(karlo, picture(), 2, 1, 1, 512)
