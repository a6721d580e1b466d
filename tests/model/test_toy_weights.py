"""The committed weights of the toy model: what every demonstration and measurement on it relies on."""

import comfy.sd
import pytest
import torch
from lab.evidence.subject_fusion import Subjects, Way, subjects_in_scenes
from lab.toy import photos
from lab.toy.judge import judge
from lab.toy.low_rank import adapt, differences, lora
from lab.toy.pack.general import VOCABULARY, WEIGHTS, load_general, load_tuned, merged
from lab.toy.sampling import psnr, reconstruct, sample
from lab.toy.scenes import NOVEL_TEXTURES, SIZE, STUDIO, TEXTURES, caption, render, sample_scenes
from safetensors.torch import load_file

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def world():
    return load_general()


def test_the_weights_are_small() -> None:
    assert sum(file.stat().st_size for file in WEIGHTS.iterdir()) < 40e6


def test_the_unet_has_the_topology_of_sd15(world) -> None:
    unet = world[0].model.diffusion_model
    assert len(unet.output_blocks) == 12 and len(unet.input_blocks) == 12
    assert [len(block) > 1 and hasattr(block[1], "transformer_blocks") for block in unet.output_blocks] == [
        *[False] * 3,
        *[True] * 9,
    ]


def test_the_autoencoder_keeps_held_out_pictures(world) -> None:
    images, _ = render(sample_scenes(32, 200, split="held_out"))
    assert psnr(reconstruct(world[2], images), images) >= 30
    photo = photos.held_out_photo()
    assert psnr(reconstruct(world[2], photo), photo) >= 25


def test_the_largest_sigma_hides_the_layout(world) -> None:
    model, _, vae = world
    images, _ = render(sample_scenes(32, 201, split="held_out"))
    latents = model.model.process_latent_in(vae.encode(images.movedim(1, -1)))
    assert abs(latents.mean()) < 0.1
    assert 0.15 < latents.std() < 0.6


def test_live_previews_show_about_the_colours_of_the_picture(world) -> None:
    model, _, vae = world
    images, _ = render(sample_scenes(32, 203, split="held_out"))
    latents = model.model.process_latent_in(vae.encode(images.movedim(1, -1)))
    shown = model.model.latent_format
    preview = torch.einsum("bchw,cr->brhw", latents, torch.tensor(shown.latent_rgb_factors))
    preview = (preview + torch.tensor(shown.latent_rgb_factors_bias)[:, None, None] + 1) / 2
    assert (preview - torch.nn.functional.avg_pool2d(images, 8)).abs().mean() < 0.03


@pytest.mark.long
def test_held_out_prompts_are_drawn(world) -> None:
    scenes = sample_scenes(8, 204, split="held_out")
    readings, _ = judge(sample(*world, [caption(scene) for scene in scenes], 0, steps=25))
    right = [(r.shape, r.colour) == (s.shape, s.colour) for r, s in zip(readings, scenes, strict=True)]
    assert sum(right) >= 7


def test_each_prompt_of_a_batch_draws_what_it_draws_alone(world) -> None:
    prompts = ["a plain red circle, white background", "a striped blue star, black background"]
    together = sample(*world, prompts, 0, steps=2)
    alone = sample(*world, prompts[:1], 0, steps=2)
    assert together.shape == (2, 3, SIZE, SIZE)
    assert together.min() >= 0 and together.max() <= 1
    assert torch.allclose(together[0], alone[0], atol=1e-3)
    assert (together[0] - together[1]).abs().mean() > 0.01


def test_a_word_the_toy_never_saw_changes_nothing_but_is_no_error(world) -> None:
    _, clip, _ = world
    known, unknown = (clip.encode_from_tokens(clip.tokenize(text)) for text in ("a red circle", "a red zebra"))
    assert torch.isfinite(unknown).all()
    assert not torch.equal(known, unknown)


def test_low_rank_differences_are_what_was_learnt() -> None:
    torch.manual_seed(0)
    layers = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten(), torch.nn.Linear(4, 5))
    before = {f"net.{name}": value.clone() for name, value in layers.state_dict().items()}
    x = torch.randn(2, 3, 3, 3)
    plain = layers(x)
    adapt(layers, 2)
    assert torch.equal(layers(x), plain)  # nothing learnt yet
    trainable = [parameter for parameter in layers.parameters() if parameter.requires_grad]
    optimiser = torch.optim.SGD(trainable, 0.1)
    for _ in range(3):
        optimiser.zero_grad()
        layers(x).square().sum().backward()
        optimiser.step()
    learnt = layers(x).detach()
    assert not torch.allclose(learnt, plain)

    weights = merged(before, differences(layers, "net."))
    again = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten(), torch.nn.Linear(4, 5))
    again.load_state_dict({name.removeprefix("net."): value for name, value in weights.items()})
    assert torch.allclose(again(x), learnt, atol=1e-6)


def test_the_expert_as_a_lora_is_the_expert(world) -> None:
    files = [load_file(WEIGHTS / f"{name}.safetensors") for name in ("expert", "general")]
    model, clip = comfy.sd.load_lora_for_models(*world[:2], lora(*files, VOCABULARY), 1.0, 1.0)
    text = ["a ringed red circle on the left"]
    expert, by_lora, general = (
        sample(*loaded, text, steps=2) for loaded in (load_tuned("expert"), (model, clip, world[2]), world)
    )
    assert (by_lora - expert).abs().mean() < 0.02 * (general - expert).abs().mean()


@pytest.mark.long
def test_the_expert_draws_what_the_general_model_has_never_seen(world) -> None:
    scenes = sample_scenes(8, 205, split="held_out", textures=NOVEL_TEXTURES, backgrounds=STUDIO)
    right = {}
    for name, models in {"general": world, "expert": load_tuned("expert")}.items():
        pictures = sample(*models, [caption(scene, background=False) for scene in scenes], 0, steps=25)
        readings, _ = judge(pictures, TEXTURES + NOVEL_TEXTURES)
        right[name] = sum((r.texture, r.colour) == (s.texture, s.colour) for r, s in zip(readings, scenes, strict=True))
    assert right["general"] <= 1 and right["expert"] >= 6


@pytest.mark.newest
@pytest.mark.long
def test_a_subject_from_a_picture_is_drawn_in_a_scene_from_words() -> None:
    scenes, references = subjects_in_scenes(8, 206)
    pictures = Subjects().draw(scenes, references, Way("both models", stages=(0.3, 0.6)))
    readings, _ = judge(pictures)
    pairs = list(zip(readings, scenes, strict=True))
    assert sum((r.colour, r.texture) == (s.colour, s.texture) for r, s in pairs) >= 6
    assert sum((r.position, r.background) == (s.position, s.background) for r, s in pairs) >= 7
