import pytest
import torch
from palimpsest.nodes.attention.unet_sites import decoder_depths, parse_sites
from palimpsest.nodes.plug_and_play.injection import plug_and_play
from palimpsest.nodes.plug_and_play.windows import Windows
from support.cases import cases
from support.fixtures.sampling import random_trajectory, sample
from support.fixtures.tiny_models import conditioning, sd15
from support.fixtures.twin_unet import PublishedPlugAndPlay, sd15_twin

pytestmark = pytest.mark.model

CFG = 7.5


@pytest.mark.parametrize("batch", cases([1, 2], 2))
def test_equals_published_batch_of_three_rows(batch):
    model = sd15()
    source, negative, positive = (conditioning(model, seed) for seed in (1, 2, 3))
    trajectory = random_trajectory(model, source, steps=10, batch=batch)
    sites = parse_sites("auto", decoder_depths(model))
    patched = plug_and_play(model, trajectory, Windows.of(sites, 0.8, 0.5, 10))
    path = sample(patched, trajectory.start, positive, negative, CFG, trajectory.sigmas)

    timesteps = model.get_model_object("model_sampling").timestep(trajectory.sigmas[:-1])
    text = torch.cat([rows[0][0].repeat(batch, 1, 1) for rows in (source, negative, positive)])
    expected = PublishedPlugAndPlay(sd15_twin(model)).denoise(
        trajectory.start,
        trajectory.latents,
        trajectory.sigmas,
        timesteps,
        text,
        CFG,
        feature_steps=8,
        attention_steps=5,
    )

    assert len(path) == len(expected) == 11
    for ours, theirs in zip(path, expected, strict=True):
        assert (ours - theirs).norm() <= 1e-5 * theirs.norm()
    plain = sample(model, trajectory.start, positive, negative, CFG, trajectory.sigmas)
    assert (path[-1] - plain[-1]).norm() > 0.05 * plain[-1].norm()
