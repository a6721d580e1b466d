"""The toy world's CLIP pair, prior, decoder and upsamplers, trained for two steps, and what the pack's own nodes make of their files."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lab.evidence.unclip_models import UnCLIP, read_small, small
from lab.evidence.unclip_texts import PRIOR, Prompt, Score, agreeing, guidances
from lab.world.pack.unclip import DRAWN, FILES, SEEN, load_clip
from lab.world.render import render
from lab.world.scenes import sample_scenes
from lab.world.train import clip, decoder, pool, prior, upsamplers
from lab.world.train.loop import Run
from lab.world.train.text import token_ids
from palimpsest.nodes.text.text_states import text_states
from safetensors.torch import load_file

from nodes import CLIPVisionEncode

pytestmark = pytest.mark.model

SCENES = 8
TEXTS = ["a red cat and a blue house", "", "in the snow, a pencil drawing of a boat"]


@pytest.fixture(scope="module")
def few() -> Iterator[pytest.MonkeyPatch]:
    """Pools of SCENES scenes, and small pictures for the upsamplers."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pool, "CHUNK", SCENES // 2)
        patch.setattr(pool, "FILE", 2)
        patch.setattr(clip, "SCENES", SCENES)
        patch.setattr(clip, "AT_ONCE", SCENES)
        for name, value in {"PICTURES": 2, "HALFWAY": 2, "MEDIUM": 32, "CROP": 16}.items():
            patch.setattr(upsamplers, name, value)
        yield patch


def a_run(cache: Path) -> Run:
    return Run(cache, 0, torch.device("cpu"), threads=1, steps=2, batch=2)


@pytest.fixture(scope="module")
def weights(few: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files of all parts."""
    folder = tmp_path_factory.mktemp("unclip")
    files = {part: folder / name for part, name in FILES.items()}
    clip.train_clip(a_run(folder), files["clip"])
    prior.train_prior(a_run(folder), files["clip"], files["prior"])
    decoder.train_decoder(a_run(folder), files["clip"], files["decoder"])
    upsamplers.train_upsamplers(a_run(folder), files["upsampler_64"], files["upsampler_128"])
    return folder


@pytest.fixture(scope="module")
def world(weights: Path) -> UnCLIP:
    return UnCLIP.load(weights)


def rows_of(pair: clip.Pair, texts: list[str]) -> torch.Tensor:
    return torch.searchsorted(pair.text.vocabulary, torch.tensor([token_ids(text)[: pool.TOLD] for text in texts]))


@torch.no_grad()
def test_the_pack_s_nodes_draw_from_a_text_to_full_size(world: UnCLIP) -> None:
    quick = replace(world, steps=2, upsampling_steps=2)
    texts = TEXTS[:2]
    pictures = quick.draw(quick.tell(texts, quick.imagine(texts)), len(texts), 4.0)
    assert pictures.shape == (2, 3, DRAWN, DRAWN)
    picture = quick.upsample(pictures[:1])
    assert picture.shape == (1, 3, 128, 128) and picture.isfinite().all() and picture.std() > 0.01
    assert world.upsamplers[0].last is not None and world.upsamplers[1].last is None


def test_the_files_are_small_and_hold_no_answers_to_questions(weights: Path) -> None:
    files = {part: weights / name for part, name in FILES.items()}
    assert sum(file.stat().st_size for file in files.values()) < 13.5e6
    assert not any("questions" in name for name in load_file(files["decoder"]))
    assert {name.split(".")[0] for name in load_file(files["clip"])} == {
        "text_model",
        "text_projection",
        "vision_model",
        "visual_projection",
        "toy",
    }


@torch.no_grad()
def test_the_training_reads_a_text_as_comfyui_does(world: UnCLIP, weights: Path) -> None:
    pair = clip.trained_pair(weights / FILES["clip"])
    theirs, ours = text_states(world.clip, TEXTS, world.prior.width, "this test"), pair.read(rows_of(pair, TEXTS))
    assert torch.equal(theirs.mask[:, : pool.TOLD], ours.mask) and not theirs.mask[:, pool.TOLD :].any()
    assert torch.allclose(theirs.pooled, ours.pooled, atol=1e-4)
    assert torch.allclose(theirs.states[:, : pool.TOLD][ours.mask], ours.states[ours.mask], atol=1e-4)


@torch.no_grad()
def test_the_training_sees_a_picture_as_comfyui_does(weights: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    pair = clip.trained_pair(weights / FILES["clip"])
    for parameter in pair.image.parameters():  # two steps teach nothing
        parameter += 0.1 * torch.randn_like(parameter)
    clip.export(pair, tmp_path / FILES["clip"])
    pictures = render(sample_scenes(2, 3)).pictures
    theirs = CLIPVisionEncode().encode(load_clip(tmp_path)[1], pictures.movedim(1, -1), "center")[0].image_embeds
    ours = clip.embeddings(pair, pool.shrunk((pictures * 255).round().byte(), SEEN))
    assert torch.allclose(theirs, ours, atol=0.03) and (ours[0] - ours[1]).abs().max() > 0.3


@torch.no_grad()
def test_the_training_runs_the_prior_as_sampling_does(world: UnCLIP, weights: Path) -> None:
    pair, model = clip.trained_pair(weights / FILES["clip"]), world.prior.model
    z = torch.randn(2, world.prior.width, generator=torch.Generator().manual_seed(0))
    timesteps = torch.tensor([700, 20])
    read = pair.read(rows_of(pair, TEXTS[:2]))
    together = prior.answer(model, z, read, timesteps)
    reading = model.read(read.states, read.pooled, read.mask)
    times, mask = model.read_times(reading, timesteps), model.mask(reading, len(z))
    apart = torch.stack([model(z, reading, times, i, mask)[i, i] for i in range(2)])
    assert torch.allclose(together, apart, atol=1e-4)


def test_a_batch_has_scenes_of_the_same_kinds_beside_each_other() -> None:
    kinds = torch.tensor([[3, 7], [1, 2], [7, 3], [1, 255], [2, 1], [1, 255]]).byte()
    shown = pool.Pool(*[torch.arange(6)] * 3, kinds, *[torch.arange(6)] * 3)
    order = clip.by_kinds(shown)
    assert {frozenset(pair) for pair in order.view(3, 2).tolist()} == {
        frozenset(pair) for pair in ((0, 2), (1, 4), (3, 5))
    }
    batch = clip.alike(shown, order, 6, torch.Generator().manual_seed(0))
    assert len(batch.latents) == 6 and len(set(batch.latents[: clip.ALIKE].tolist())) == clip.ALIKE


@pytest.mark.long
def test_a_stopped_training_of_the_decoder_goes_on_as_if_it_had_not_been_stopped(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, chance = weights / FILES["clip"], Run.chance
    (weights / "decoder.pt").rename(weights / "decoder_whole.pt")

    def stop(run: Run, step: int) -> torch.Generator:
        if step == 1:
            raise KeyboardInterrupt
        return chance(run, step)

    monkeypatch.setattr("lab.world.train.loop.SAVE_SECONDS", -1.0)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Run, "chance", stop)
        decoder.train_decoder(a_run(weights), file, tmp_path / "again.safetensors")
    decoder.train_decoder(a_run(weights), file, tmp_path / "again.safetensors")
    whole, parts = load_file(weights / FILES["decoder"]), load_file(tmp_path / "again.safetensors")
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_a_render_shows_what_its_caption_says_and_varies_in_the_rest() -> None:
    first, second = Prompt.some(2, 4)
    own, other = read_small(small(render([first.scene, second.scene]).pictures))
    assert first.wanted.keys() == {"first colour", "style"} and second.wanted.keys() == {"second colour", "background"}
    assert first.seen(own) == first.values(first.scene.things, first.scene.background, first.scene.style)
    assert first.seen(other) is None and second.seen(other) is not None
    score = Score.of([first, second], [own, own, other, own])
    assert score.fidelity.tolist() == [1.0, 0.5]
    assert score.pairs[:, 0].tolist() == [[0, 0], [2, 2], [2, 2], [2, 2], [0, 0]] and not score.pairs[:, 1].any()


def test_the_variety_is_the_chance_that_two_pictures_agree() -> None:
    assert agreeing(["red", "red", "blue"]) == (2, 6) and agreeing(["red"]) == (0, 0)
    quarter = Score(torch.ones(4), torch.tensor([1.0, 4.0]).expand(5, 4, 2))
    half = Score(torch.ones(4), torch.tensor([2.0, 4.0]).expand(5, 4, 2))
    assert quarter.bits().tolist() == [2, 2, 1, 2, 2]  # of sides there are two
    assert quarter.ahead(half) == (4, 4, 4) and quarter.text()[0] == "9.00 (9.00 to 9.00)"


def test_ways_are_compared_where_as_many_pictures_are_right() -> None:
    def scores(*shares: float) -> dict[float, Score]:
        return {
            cfg: Score(torch.tensor([share]), torch.zeros(5, 1, 2)) for cfg, share in zip((1, 4), shares, strict=True)
        }

    assert guidances({"text": scores(0.5, 0.9), PRIOR: scores(0.6, 0.6)}) == {"text": 1, PRIOR: 1}
    assert guidances({"text": scores(0.5, 0.9), PRIOR: scores(0.6, 0.8)}) == {"text": 4, PRIOR: 4}
