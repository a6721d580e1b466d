"""The committed weights of the toy's unCLIP: what its demonstration and its tables rely on."""

import itertools
from dataclasses import replace

import pytest
import torch
from lab.evidence.unclip_tables import Row
from lab.evidence.unclip_world import UnCLIP, small_pictures
from lab.toy.pack.unclip import FILES
from lab.toy.scenes import caption, render, sample_scenes
from lab.toy.train_clip import trained_pair
from lab.toy.train_prior import answer
from lab.toy.unclip_scenes import ATTRIBUTES, shrunk
from palimpsest.nodes.text.text_states import text_states

pytestmark = [pytest.mark.model, pytest.mark.newest]


@pytest.fixture(scope="module")
def world() -> UnCLIP:
    with torch.inference_mode():
        return UnCLIP.load()


@pytest.fixture(scope="module")
def scenes():
    return sample_scenes(24, 206, split="held_out")


@pytest.fixture(scope="module")
def pictures(scenes):
    return render(scenes)[0]


def cosines(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.cosine_similarity(a, b, dim=-1)


def test_loading_leaves_the_arithmetic_of_the_process_alone(world) -> None:
    """Denormal numbers that are flushed to 0 failed the tests of the sphere, when they ran in the same process."""
    assert float(torch.tensor(1e-40) * 1) > 0


def test_the_training_reads_a_text_as_comfyui_does(world, scenes) -> None:
    words = [caption(scenes[0]), "", caption(scenes[1], position=False)]
    with torch.inference_mode():
        theirs, ours = (
            text_states(world.clip, words, world.prior.width, "this test"),
            trained_pair(FILES["clip"]).read(words),
        )
    tokens = ours.mask.shape[1]
    assert torch.equal(theirs.mask[:, :tokens], ours.mask) and not theirs.mask[:, tokens:].any()
    assert torch.allclose(theirs.pooled, ours.pooled, atol=1e-4)
    assert torch.allclose(theirs.states[:, :tokens][ours.mask], ours.states[ours.mask], atol=1e-4)


def test_the_training_runs_the_prior_as_sampling_does(world, scenes) -> None:
    pair, model = trained_pair(FILES["clip"]), world.prior.model
    z, timesteps = (
        torch.randn(2, world.prior.width, generator=torch.Generator().manual_seed(0)),
        torch.tensor([700, 20]),
    )
    with torch.inference_mode():
        read = pair.read([caption(scene) for scene in scenes[:2]])
        together = answer(model, z, read, timesteps)
        reading = model.read(read.states, read.pooled, read.mask)
        times = model.read_times(reading, timesteps)
        mask = model.mask(reading, len(z))
        apart = torch.stack([model(z, reading, times, i, mask)[i, i] for i in range(2)])
    assert torch.allclose(together, apart, atol=1e-4)


def test_clip_tells_a_held_out_picture_from_what_it_is_not(world, scenes, pictures) -> None:
    """By one word of the caption at a time."""
    with torch.inference_mode():
        seen = world.see(pictures)
        for attribute, values in ATTRIBUTES.items():
            texts = [caption(replace(scene, **{attribute: value})) for scene in scenes for value in values]
            pooled = text_states(world.clip, texts, world.prior.width, "this test").pooled.unflatten(
                0, (len(scenes), -1)
            )
            chosen = cosines(pooled, seen[:, None]).argmax(1)
            right = [values[i] == getattr(scene, attribute) for i, scene in zip(chosen, scenes, strict=True)]
            assert sum(right) >= 0.9 * len(scenes), attribute


@pytest.mark.long
def test_the_prior_comes_nearer_to_the_picture_than_the_text_is(world, scenes, pictures) -> None:
    words = [caption(scene) for scene in scenes]
    with torch.inference_mode():
        seen, imagined = world.see(pictures), world.imagine(words)
        texts = text_states(world.clip, words, world.prior.width, "this test").pooled
        own, others = cosines(imagined, seen), cosines(imagined.roll(1, 0), seen)
        assert own.mean() > cosines(texts, seen).mean()
        assert own.mean() > others.mean() + 0.2
        length = imagined.norm(dim=1).mean() / seen.norm(dim=1).mean()
    assert 0.9 < length < 1.1


@pytest.mark.long
def test_held_out_texts_are_painted(world, scenes) -> None:
    words = [caption(scene) for scene in scenes[:8]]
    with torch.inference_mode():
        told = world.tell(words, world.imagine(words, 2))
        row = Row.of("", world.paint(told, len(words)), scenes[:8])
    assert row.both >= 7 / 8 and row.same["background"] >= 7 / 8


@pytest.mark.long
def test_a_picture_comes_back_from_its_embedding_and_noise(world, scenes, pictures) -> None:
    small = small_pictures(pictures[:4])
    with torch.inference_mode():
        told = world.tell([""] * 4, world.see(pictures[:4]))
        again = world.paint_from(world.start(small, told), told)
    assert (again - small).square().mean() < 0.01**2  # 40 dB


def upsampled(world: UnCLIP, i: int, small: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return replace(world, upsamplers=(world.upsamplers[i],)).upsample(small)


@pytest.mark.long
def test_the_first_upsampler_is_nearer_to_the_edges_than_interpolation(world, pictures) -> None:
    small, large = shrunk(pictures[:8], 32), shrunk(pictures[:8], 64)
    plain = torch.nn.functional.interpolate(small, scale_factor=2, mode="bicubic", antialias=True).clamp(0, 1)
    edges = (large.diff(dim=-1).abs() > 0.2).any(1)
    ours, theirs = (
        (image - large).square().mean(1)[..., 1:][edges].mean() for image in (upsampled(world, 0, small), plain)
    )
    assert ours < theirs


@pytest.mark.long
def test_upsamplers_keep_the_colours_and_leave_flat_parts_flat(world, pictures) -> None:
    sizes = [shrunk(pictures[:4], 32), shrunk(pictures[:4], 64), pictures[:4]]
    for i, (most, (small, large)) in enumerate(zip((0.02, 0.03), itertools.pairwise(sizes), strict=True)):
        made = upsampled(world, i, small)
        assert (torch.nn.functional.avg_pool2d(made, 2) - small).square().mean() < most**2
        flat = (large.diff(dim=-1).abs() < 0.02).all(1)
        assert made.diff(dim=-1).abs().amax(1)[flat].mean() < 0.02


@pytest.mark.long
def test_the_last_step_has_learnt_something_of_its_own(world) -> None:
    first, last = (patcher.model.state_dict() for patcher in (world.upsamplers[0].first, world.upsamplers[0].last))
    assert any(not torch.equal(first[name], last[name]) for name in first)
    assert world.upsamplers[1].last is None
