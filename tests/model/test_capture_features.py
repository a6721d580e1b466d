import dataclasses

import comfy.model_management
import pytest
import torch
from palimpsest.nodes.attention.unet_sites import decoder_depths, parse_sites
from palimpsest.nodes.plug_and_play.features import capture
from palimpsest.nodes.plug_and_play.nodes import PlugAndPlay
from palimpsest.nodes.plug_and_play.windows import Windows
from support.fixtures.sampling import random_trajectory, sample
from support.fixtures.tiny_models import conditioning, flow_dit, sd15
from support.fixtures.unet_probe import UNetProbe, same

pytestmark = pytest.mark.model
UNET = sd15

CFG = 7.5
STEPS = 5


@pytest.fixture(scope="module")
def trajectory(model):
    return random_trajectory(model, conditioning(model, 1), STEPS)


def captured(model, trajectory, feature_end=0.8, attention_end=0.4, blocks="auto", dtype=torch.float32, source=None):
    sites = parse_sites(blocks, decoder_depths(model))
    windows = Windows.of(sites, feature_end, attention_end, trajectory.steps)
    return capture(model, trajectory, windows, dtype, source)


def edit(model, trajectory, feature_end=0.8, attention_end=0.4, blocks="auto", **optional):
    patched = PlugAndPlay.execute(model, trajectory, feature_end, attention_end, blocks, **optional)[0]
    positive, negative = conditioning(model, 2), conditioning(model, 3)
    return sample(patched, trajectory.start, positive, negative, CFG, trajectory.sigmas)[-1]


def test_edits_equal_those_with_a_live_source_and_never_evaluate_it(model, trajectory):
    features = captured(model, trajectory)
    with UNetProbe(model) as probe:
        result = edit(model, trajectory, features=features)
    assert [len(call.x) for call in probe.calls] == [2] * STEPS
    assert torch.equal(result, edit(model, trajectory))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 1e-2), (torch.bfloat16, 5e-2)])
def test_half_precision_storage_is_close(model, trajectory, dtype, tolerance):
    features = captured(model, trajectory, dtype=dtype)
    assert {value.dtype for record in features.records for value in record.values()} == {dtype}
    assert same(edit(model, trajectory, features=features), edit(model, trajectory), tolerance)


def test_a_longer_capture_serves_shorter_windows_and_fewer_blocks(model, trajectory):
    features = captured(model, trajectory, 1.0, 1.0)
    for choice in ((0.2, 0.6, "auto"), (1.0, 0.0, "features 4")):
        assert torch.equal(edit(model, trajectory, *choice, features=features), edit(model, trajectory, *choice))


def test_holds_one_tensor_per_site_and_step_and_nothing_more(model, trajectory):
    features = captured(model, trajectory, dtype=torch.float16)
    assert [len(record) for record in features.records] == [9, 9, 1, 1]
    # Blocks 4, 5 at 4x4 with 128 channels, 6-8 at 8x8 with 64, 9-11 at 16x16 with 32; the feature is block 4's.
    attention = 2 * 16 * 128 + 3 * 64 * 64 + 3 * 256 * 32
    assert features.nbytes == 2 * (2 * attention + 4 * 16 * 128)
    assert {value.device.type for record in features.records for value in record.values()} == {"cpu"}


def test_batches_keep_their_rows(model):
    trajectory = random_trajectory(model, conditioning(model, 1), STEPS, batch=2)
    features = captured(model, trajectory)
    assert torch.equal(edit(model, trajectory, features=features), edit(model, trajectory))


def test_source_prompt_may_be_another_than_the_trajectory_s(model, trajectory):
    source = conditioning(model, 9)
    features = captured(model, trajectory, source=source)
    assert torch.equal(edit(model, trajectory, features=features), edit(model, trajectory, source=source))
    assert not same(edit(model, trajectory, features=features), edit(model, trajectory))


def test_interrupted_capture_leaves_the_model_as_it_was(model, trajectory):
    before = edit(model, trajectory)
    unet = model.model.diffusion_model
    handle = unet.input_blocks[0][0].register_forward_hook(
        lambda *_: comfy.model_management.interrupt_current_processing()
    )
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        captured(model, trajectory)
    handle.remove()
    assert sum(len(module._forward_hooks) for module in unet.modules()) == 0
    assert model.wrappers == {} and model.model_options == {"transformer_options": {}}
    assert torch.equal(edit(model, trajectory), before)


def test_refuses_what_was_not_captured(model, trajectory):
    features = captured(model, trajectory)
    other = dataclasses.replace(trajectory, latents=trajectory.latents + 1e-6)
    cases = [
        ({"trajectory": other}, "captured along another one"),
        ({"blocks": "features 4; attention 3-11"}, "blocks that include 'features 4; attention 3,4"),
        ({"feature_end": 1.0}, "feature values of the first 5 steps, got 4"),
        ({"attention_end": 0.6}, "attention values of the first 3 steps, got 2"),
    ]
    for change, says in cases:
        with pytest.raises(ValueError, match=f"^features: expected .*{says}"):
            edit(**{"model": model, "trajectory": trajectory, "features": features, **change})
    with pytest.raises(ValueError, match=r"^source: expected nothing beside `features`"):
        edit(model, trajectory, features=features, source=conditioning(model, 1))


def test_the_memory_of_all_steps_is_known_after_the_first_and_refused_where_there_is_none(
    model, trajectory, monkeypatch
):
    windows = Windows.of(parse_sites("auto", decoder_depths(model)), 0.8, 0.4, trajectory.steps)
    told = []
    features = capture(model, trajectory, windows, torch.float32, tell=told.append)
    assert told == [features.nbytes]

    def little(device=None, torch_free_too=False):
        return (2**40, 2**40) if torch_free_too else features.nbytes // 10  # kernels ask for both

    monkeypatch.setattr(comfy.model_management, "get_free_memory", little)
    with pytest.raises(ValueError, match=r"^features: expected memory for .* GB of captured values, got .* GB free"):
        capture(model, trajectory, windows, torch.float32)


def test_areas_are_read_from_the_source_itself(model, trajectory):
    """What was captured is of the whole picture."""
    corner = [[conditioning(model, 4)[0][0], {"area": (8, 8, 4, 2), "strength": 1.0}]]

    def drawn(**features):
        patched = PlugAndPlay.execute(model, trajectory, 0.8, 0.4, "auto", **features)[0]
        return sample(patched, trajectory.start, corner, conditioning(model, 3), CFG, trajectory.sigmas)[-1]

    assert torch.equal(drawn(features=captured(model, trajectory)), drawn())


def test_refuses_other_models_and_sources_of_several_prompts(model, trajectory):
    with pytest.raises(ValueError, match=r"^model: expected an image model with a UNet"):
        captured(flow_dit(), trajectory)
    area = [[conditioning(model, 4)[0][0], {"area": (8, 8, 4, 2), "strength": 1.0}]]
    for source, says in ((conditioning(model, 1) + conditioning(model, 2), "got 2 active"), (area, "one with an area")):
        with pytest.raises(ValueError, match=rf"^source: expected one prompt .*{says}"):
            captured(model, trajectory, source=source)
