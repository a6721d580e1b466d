"""The trainings of the toy world, a few steps of each, and what ComfyUI's classes make of their files."""

import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import comfy.model_base
import comfy.model_detection
import numpy as np
import pytest
import torch
from lab.evidence import attention_mask, plug_and_play
from lab.evidence.models import World
from lab.world import evaluate
from lab.world.captions import random_caption
from lab.world.judge import judge
from lab.world.pack.general import load_general, load_vae, new_text_model, new_unet
from lab.world.pack.transformer import TEXT_COLUMNS, load_transformer
from lab.world.render import render
from lab.world.scenes import sample_scenes
from lab.world.train import autoencoder, general, loop, pool, transformer
from lab.world.train.loop import Run
from lab.world.train.muon import optimisers, orthogonal
from lab.world.train.sizes import by_size
from lab.world.train.text import WORDS, _tokenizer, token_ids, vocabulary
from palimpsest.nodes.prompt_to_prompt.nodes import AttentionMask
from safetensors.torch import load_file
from torch import nn

pytestmark = pytest.mark.model

SCENES = 8


@pytest.fixture(scope="module")
def few() -> Iterator[pytest.MonkeyPatch]:
    """Pools of SCENES scenes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pool, "CHUNK", SCENES // 2)
        patch.setattr(pool, "FILE", 2)
        patch.setattr(general, "SCENES", SCENES)
        patch.setattr(transformer, "SCENES", SCENES)
        yield patch


@pytest.fixture(scope="module")
def pictures() -> torch.Tensor:
    """uint8 [8, 3, 128, 128]."""
    return (render(sample_scenes(8, 0)).pictures * 255).round().byte()


@pytest.fixture(scope="module")
def weights(few: pytest.MonkeyPatch, pictures: torch.Tensor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files of all parts, hardly trained."""
    folder = tmp_path_factory.mktemp("weights")
    vae = autoencoder.trainable(autoencoder.principal_components_vae(pictures / 127.5 - 1))
    autoencoder.export(vae, pictures, folder / "autoencoder.safetensors")
    run = a_run(folder)
    general.train_general(run, folder / "autoencoder.safetensors", folder / "general.safetensors")
    transformer.train_transformer(
        run, folder / "autoencoder.safetensors", folder / "general.safetensors", folder / "transformer.safetensors"
    )
    return folder


def a_run(cache: Path) -> Run:
    return Run(cache, 0, torch.device("cpu"), threads=1, steps=2, batch=2)


def test_the_autoencoder_starts_as_principal_components_and_its_latents_have_variance_1(
    weights: Path, pictures: torch.Tensor
) -> None:
    images = pictures / 255
    vae = load_vae(weights)
    latents = vae.encode(images.movedim(1, -1))
    assert latents.shape == (8, 4, 32, 32) and vae.decode(latents).shape == (8, 128, 128, 3)
    assert evaluate.decibels(vae, images) > 24
    scaled = (0.18215 * latents).movedim(1, 0).flatten(1)
    assert torch.allclose(torch.cov(scaled), torch.eye(4), atol=0.02)
    assert scaled.mean(1).abs().max() < 0.02


def test_settling_the_latents_changes_no_picture(pictures: torch.Tensor) -> None:
    torch.manual_seed(1)
    vae = autoencoder.trainable(autoencoder.principal_components_vae(pictures / 127.5 - 1))
    for parameter in vae.parameters():
        parameter.data += 0.01 * torch.randn_like(parameter)
    images = pictures[:2] / 127.5 - 1
    with torch.no_grad():
        before = vae.decode(vae.encode(images))
        settled = autoencoder.settled(vae, pictures)
        assert torch.allclose(settled.decode(settled.encode(images)), before, atol=1e-3)


def test_the_autoencoder_is_trained_into_a_small_file(few: pytest.MonkeyPatch, tmp_path: Path) -> None:
    few.setattr(autoencoder, "PICTURES", SCENES)
    few.setattr(autoencoder, "HELD_OUT", 2)
    output = tmp_path / "autoencoder.safetensors"
    autoencoder.train_autoencoder(a_run(tmp_path), output)
    assert load_vae(tmp_path).latent_channels == 4 and output.stat().st_size < 1.5e6


def test_captions_are_told_as_clip_s_tokenizer_does() -> None:
    chance = np.random.default_rng(0)
    words = set(vocabulary(WORDS).tolist())
    for scene in [*sample_scenes(40, 1), *sample_scenes(10, 1, split="held_out", things=1)]:
        text = random_caption(scene, chance).text
        ids = [token for token, _ in _tokenizer().tokenize_with_weights(text)["l"][0]]
        assert token_ids(text) == ids and words.issuperset(ids)
        assert ids[pool.TOLD - 1] == 49407


def test_a_pool_is_determined_by_its_seed_and_read_from_the_cache(weights: Path, tmp_path: Path) -> None:
    file, words = weights / "autoencoder.safetensors", vocabulary()
    first = pool.latent_pool(a_run(tmp_path), SCENES, words, file)
    (saved,) = tmp_path.rglob("*.pt")
    again = pool.latent_pool(a_run(weights), SCENES, words, file)
    assert torch.equal(first.latents, again.latents) and torch.equal(first.captions, again.captions)
    read = torch.load(saved, weights_only=True)
    torch.save({**read, "styles": read["styles"] * 0 + 3}, saved)
    assert pool.latent_pool(a_run(tmp_path), SCENES, words, file).styles.tolist() == [3] * SCENES
    assert (first.things > 0).any((1, 2)).all() and first.things.max() <= 2


@pytest.mark.long
def test_as_many_processes_as_threads_draw_the_same(few: pytest.MonkeyPatch, tmp_path: Path) -> None:
    one, two = (list(pool.drawn(Run(tmp_path, 0, torch.device("cpu"), threads), 0, 3)) for threads in (1, 2))
    for (pictures, things, scenes), (others, other_things, other_scenes) in zip(one, two, strict=True):
        assert (pictures == others).all() and (things == other_things).all() and scenes == other_scenes


def test_a_step_s_batch_is_determined_by_the_seed_and_its_number(weights: Path) -> None:
    words = vocabulary()
    made = pool.latent_pool(a_run(weights), SCENES, words, weights / "autoencoder.safetensors")

    def rows(step: int, empty: float = 0.0) -> torch.Tensor:
        return pool.chosen(made, 6, a_run(weights).chance(step), empty, len(words) - 1)[1]

    assert torch.equal(rows(4), rows(4)) and not torch.equal(rows(4), rows(5))
    assert rows(4).shape == (6, 77)
    assert words[rows(4, empty=1.0)].tolist() == [token_ids("")] * 6


@pytest.mark.parametrize("part", [pytest.param("general", marks=pytest.mark.long), "transformer"])
def test_a_stopped_training_goes_on_as_if_it_had_not_been_stopped(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    files = [weights / f"{name}.safetensors" for name in ("autoencoder", "general")]
    train = {"general": general.train_general, "transformer": transformer.train_transformer}[part]
    files = files[:1] if part == "general" else files
    monkeypatch.setattr(loop, "SAVE_SECONDS", -1.0)
    train(a_run(tmp_path / "whole"), *files, tmp_path / "whole.safetensors")
    chance = Run.chance

    def stop(run: Run, step: int) -> torch.Generator:
        if step == 1:
            raise KeyboardInterrupt
        return chance(run, step)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Run, "chance", stop)
        train(a_run(tmp_path / "parts"), *files, tmp_path / "parts.safetensors")
    train(a_run(tmp_path / "parts"), *files, tmp_path / "parts.safetensors")
    whole, parts = (load_file(tmp_path / f"{name}.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_the_rate_ends_at_nothing_wherever_the_end_is_put() -> None:
    assert [loop.rate_of(step, 1000) for step in (0, 99, 500, 700, 850)] == [0.01, 1.0, 1.0, 1.0, 0.5]
    assert loop.rate_of(399, 400) < 0.01 and loop.rate_of(399, 4000) == 1.0


def test_muon_steps_are_nearly_orthogonal_and_no_larger_than_adamw_s() -> None:
    torch.manual_seed(0)
    for shape in ((3, 12, 40), (2, 40, 12)):
        values = torch.linalg.svdvals(orthogonal(torch.randn(shape)))
        assert values.min() > 0.6 and values.max() < 1.3
    model = nn.Conv2d(16, 32, 3)
    before = model.weight.detach().clone()
    muon, adam = optimisers(model, 1e-2, other_rate=1e-2)
    model(torch.randn(1, 16, 8, 8)).square().mean().backward()
    muon.step()
    adam.step()
    change = (model.weight - before).square().mean().sqrt()
    assert 0.5 < change / (0.2 * 1e-2) < 1.3


def test_general_s_file_has_the_names_of_sd15(weights: Path) -> None:
    file = load_file(weights / "general.safetensors")
    unet = {name for name in file if name.startswith("model.diffusion_model.")}
    assert unet == {f"model.diffusion_model.{name}" for name in new_unet().diffusion_model.state_dict()}
    text = {name for name in file if name.startswith("cond_stage_model.")}
    own = {f"cond_stage_model.transformer.{name}" for name in new_text_model().state_dict()}
    assert text == own - {"cond_stage_model.transformer.text_projection.weight"}
    found = comfy.model_detection.detect_unet_config(file, "model.diffusion_model.")
    assert found["in_channels"] == 4 and found["num_res_blocks"] == [2, 2, 2, 2]
    assert found["channel_mult"] == [1, 1, 2, 2] and found["context_dim"] == 128
    assert len(new_unet().diffusion_model.output_blocks) == 12


@torch.no_grad()
def test_comfyui_samples_both_models_at_a_high_guidance(weights: Path) -> None:
    for world, kind in (
        (load_general(weights), comfy.model_base.ModelType.V_PREDICTION),
        (load_transformer(weights), comfy.model_base.ModelType.FLOW),
    ):
        assert world[0].model.model_type == kind
        prompts = ["a red cat and a blue house", "a pencil drawing of a cyan boat"]
        drawn = evaluate.sample(world, prompts, 0, 7.5, steps=2)
        assert drawn.shape == (2, 3, 128, 128) and drawn.isfinite().all()
        assert not torch.equal(drawn[0], drawn[1])


@torch.no_grad()
def test_both_text_encoders_read_a_prompt_alike_and_as_the_training_does(weights: Path) -> None:
    prompt = "in the snow, a pink flower to the left of a yellow elephant, pencil drawing"
    (_, clip, _), (_, short, _) = load_general(weights), load_transformer(weights)
    whole, start = (each.encode_from_tokens(each.tokenize(prompt)) for each in (clip, short))
    assert whole.shape == (1, 77, 128) and start.shape == (1, TEXT_COLUMNS, 128)
    assert torch.allclose(whole[:, :TEXT_COLUMNS], start, atol=1e-5)
    encoder = transformer.trained_text(weights / "general.safetensors")
    rows = torch.searchsorted(encoder.vocabulary, torch.tensor([token_ids(prompt)]))
    assert torch.allclose(encoder(rows), whole, atol=1e-5)


@torch.no_grad()
def test_words_have_areas_in_a_transformer_whose_patches_are_not_sd3_s(weights: Path, pictures: torch.Tensor) -> None:
    world = World.load_transformer(weights)
    positive, shown = world.prompts(["a red cat and a blue house"]), pictures[:1] / 255
    trajectory, _ = world.invert(world.encode(shown), positive, world.sigmas(2))
    mask, *_ = AttentionMask.execute(
        world.model,
        world.clip,
        trajectory,
        "a red cat and a blue house",
        "cat",
        0.0,
        0.5,
        0.0,
        image=shown.movedim(1, -1),
    ).args
    assert world.model.model.diffusion_model.patch_size == 4 and mask.shape == (1, 128, 128)
    assert 0 < mask.mean() < 1


@pytest.mark.long
@pytest.mark.parametrize(
    ("page", "less"),
    [(attention_mask, {"WINDOWS": ((0.0, 1.0),), "THRESHOLDS": (0.0,)}), (plug_and_play, {"STRENGTHS": (0.5,)})],
    ids=["attention_mask", "plug_and_play"],
)
def test_a_program_of_the_evidence_writes_its_page_and_sheets(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, page: ModuleType, less: dict
) -> None:
    for name, value in {"STEPS": 2, **less}.items():
        monkeypatch.setattr(page, name, value)
    assert page.write(tmp_path, weights, 3) == []
    part = page.__name__.rpartition(".")[2]
    text = (tmp_path / f"{part}.md").read_text()
    assert "## UNet" in text and "## transformer" in text and "nan" not in text
    assert all((tmp_path / name).is_file() for name in re.findall(rf"\(({part}.*?)\)", text))


def test_operations_are_counted_by_size() -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 2, stride=2))
    found = by_size(network, lambda: network(torch.zeros(1, 3, 16, 16)))
    assert found == {"16 x 16": 2 * 3 * 8 * 9 * 256, "8 x 8": 2 * 8 * 4 * 4 * 64, "attention": 0}


def test_a_render_answers_its_own_prompt() -> None:
    scenes = sample_scenes(2, 3, split="held_out")
    first, other = judge(render(scenes).pictures)
    assert all(evaluate.answers(first, scenes[0]).values())
    assert not evaluate.answers(other, scenes[0])["things, colours, style"]
