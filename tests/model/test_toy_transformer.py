"""The committed weights of the toy's transformer: what its rows in the tables rely on."""

import pytest
import torch
from lab.toy.judge import judge
from lab.toy.pack.general import WEIGHTS, load_general
from lab.toy.pack.transformer import CONFIG, FILE, TEXT_COLUMNS, load_transformer
from lab.toy.sampling import encode_prompts, sample
from lab.toy.scenes import caption, render, sample_scenes
from lab.toy.train_transformer import new_transformer, text_states
from palimpsest.nodes.text.tokens import tokenize
from safetensors.torch import load_file

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def transformer():
    return load_transformer()


def test_core_detects_a_stable_diffusion_3_of_the_size_that_was_trained(transformer) -> None:
    model = transformer[0].model
    assert type(model).__name__ == "SD3"
    assert {key: model.model_config.unet_config[key] for key in CONFIG} == CONFIG
    assert {key: value.shape for key, value in load_file(FILE).items()} == {
        key: value.shape for key, value in new_transformer().state_dict().items()
    }
    assert FILE.stat().st_size < 11e6


def test_its_latents_are_as_large_as_noise(transformer) -> None:
    model, _, vae = transformer
    images, _ = render(sample_scenes(32, 201, split="held_out"))
    latents = model.model.process_latent_in(vae.encode(images.movedim(1, -1)))
    assert 0.9 < latents.std() < 1.1


def test_it_reads_texts_as_the_unet_does_in_fewer_columns(transformer) -> None:
    clip, general = transformer[1], load_general()[1]
    texts = ["a checkered purple triangle at the bottom, meadow background", ""]
    states, theirs = (encode_prompts(each, texts)[0][0] for each in (clip, general))
    trained = text_states(WEIGHTS / "general.safetensors")
    assert states.shape[1] == TEXT_COLUMNS == len(tokenize(clip, texts[0]).ids)
    assert torch.allclose(states, theirs[:, :TEXT_COLUMNS], atol=1e-5)
    assert torch.allclose(states, torch.stack([trained(text) for text in texts]), atol=1e-4)


def test_held_out_prompts_are_drawn(transformer) -> None:
    scenes = sample_scenes(8, 204, split="held_out")
    pictures = sample(*transformer, [caption(scene) for scene in scenes], 0, steps=8, scheduler="simple")
    pairs = list(zip(judge(pictures)[0], scenes, strict=True))
    for name in ("shape", "colour", "position", "background"):
        assert sum(getattr(r, name) == getattr(s, name) for r, s in pairs) >= 7
