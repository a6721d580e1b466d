"""The local blend: what stays the source's outside of the words' place."""

import pytest
import torch
from palimpsest.nodes.diffusion.context_window import WHOLE
from palimpsest.nodes.prompt_to_prompt.local_blend import Maps
from support.cases import cases
from support.fixtures import tiny_clip
from support.fixtures.sampling import random_trajectory
from support.fixtures.tiny_models import conditioning, sd15
from support.fixtures.unet_probe import same
from support.fixtures.word_edits import SIZE, STEPS, edit_of, prompt_to_prompt, run

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def model():
    return sd15()


@pytest.fixture(scope="module")
def clip():
    return tiny_clip.sd1()


@pytest.fixture(scope="module")
def trajectory(model):
    return random_trajectory(model, conditioning(model, 1), STEPS, size=SIZE)


def test_blending_beside_a_sampler_s_own_noise(model, clip, trajectory):
    """Outside the mask the picture is the source's, and until then what the model is shown there is the source with noise."""
    edit = edit_of(clip, blend="cat, dog")
    patched = prompt_to_prompt(model, trajectory, edit, blend_start=0.0, threshold=1.0)
    for sampler in ("euler_ancestral", "lcm", "dpmpp_2m_sde", "euler_cfg_pp"):
        path = run(patched, trajectory, sampler=sampler)
        assert same(path[-1], trajectory.latents[-1], 1e-5)
        for x, sigma in zip(path[1:-1], trajectory.sigmas[1:-1], strict=True):
            noise = float((x - trajectory.latents[-1]).std() / sigma)
            assert 0.3 < noise < 3.0


def test_a_mask_of_the_whole_picture_changes_nothing(model, clip, trajectory):
    blended = prompt_to_prompt(model, trajectory, edit_of(clip, blend="cat, dog"), threshold=0.0)
    assert torch.equal(
        run(blended, trajectory)[-1], run(prompt_to_prompt(model, trajectory, edit_of(clip)), trajectory)[-1]
    )


@pytest.mark.parametrize("sampler", cases(["euler", "ddim", "dpmpp_2m", "heun"], "euler", "heun"))
def test_an_empty_mask_leaves_the_source(model, clip, trajectory, sampler):
    edit = edit_of(clip, blend="cat, dog")
    path = run(prompt_to_prompt(model, trajectory, edit, blend_start=0.25, threshold=1.0), trajectory, sampler=sampler)
    assert same(path[-1], trajectory.latents[-1], 1e-6)
    if sampler in ("euler", "ddim"):
        assert not same(path[1], trajectory.latents[1], 1e-2)  # step 0 is before blend_start
        for ours, source in zip(path[2:], trajectory.latents[2:], strict=True):
            assert same(ours, source, 1e-6)


def test_blending_keeps_the_source_outside_and_the_edit_inside(model, clip, trajectory):
    edit = edit_of(clip, blend="cat, dog")
    blended = run(prompt_to_prompt(model, trajectory, edit, blend_start=0.0, threshold=0.9), trajectory)[-1]
    kept = (blended - trajectory.latents[-1]).abs().amax(1) < 1e-5
    assert 0 < int(kept.sum()) < kept.numel()


def test_maps_read_on_two_devices_are_added():
    """Fault E20: with core's MultiGPU nodes the layers' maps lie on the devices that made them."""
    maps = Maps(WHOLE)
    for device in ("cpu", "meta"):
        maps.add((2, 3), *torch.ones(2, 1, 6, 2, device=device))
    assert maps.total((2, 3), torch.empty(0, device="meta")).shape == (1, 4, 2, 3)
    alone = Maps(WHOLE)
    alone.add((2, 3), *torch.arange(24.0).view(2, 1, 6, 2))
    assert alone.total((2, 3), torch.empty(0))[0, :, 0, 0].tolist() == [0.0, 12.0, 1.0, 13.0]
