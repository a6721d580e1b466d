"""Published files of the decoder and the upsamplers, and other files in their place."""

from __future__ import annotations

import pickle
from pathlib import Path

import comfy.ops
import pytest
import torch
from palimpsest.nodes.unclip.decoder.decoder_network import VARIANCE, DecoderNetwork
from palimpsest.nodes.unclip.decoder.layouts import decoder_configuration, from_karlo
from palimpsest.nodes.unclip.decoder.loading import load_decoder, load_upsampler
from support.fixtures import tiny_clip, twin_unclip
from support.fixtures.tiny_clip import WIDTH
from support.fixtures.twin_unclip import copied, write

pytestmark = [pytest.mark.model, pytest.mark.newest]


@pytest.fixture(scope="module")
def twin():
    return twin_unclip.decoder(layers=2)


@pytest.fixture(scope="module")
def networks():
    return twin_unclip.upsampler(1, 3), twin_unclip.upsampler(2, 3)


def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    ours, theirs = a.state_dict(), b.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_both_layouts_of_a_decoder_give_identical_tensors(twin, tmp_path):
    unet, text_proj = twin.diffusers()
    karlo = load_decoder(write(tmp_path, "karlo.ckpt", twin.karlo()), None)
    bare = {name.removeprefix("model."): value for name, value in twin.karlo().items()}
    alone = load_decoder(write(tmp_path, "bare.safetensors", bare), None)
    diffusers = load_decoder(
        write(tmp_path, "unet.safetensors", unet), write(tmp_path, "text_proj.safetensors", text_proj)
    )
    networks = [patcher.model.diffusion_model for patcher in (karlo, alone, diffusers)]
    assert same(networks[0], networks[1]) and same(networks[0], networks[2])
    assert len(networks[0].state_dict()) == len(twin.karlo())


def test_what_comfyui_saves_of_the_model_loads_again(twin, tmp_path):
    patcher = load_decoder(write(tmp_path, "karlo.ckpt", twin.karlo()), None)
    saved = patcher.model.state_dict_for_saving(patcher.model.diffusion_model.state_dict())
    again = load_decoder(write(tmp_path, "saved.safetensors", saved), None)
    assert same(again.model.diffusion_model, patcher.model.diffusion_model)


@torch.inference_mode()
def test_one_call_equals_diffusers(twin, tmp_path):
    """eps and variance channels, with texts of different lengths in one batch."""
    network = load_decoder(write(tmp_path, "karlo.ckpt", twin.karlo()), None).model.diffusion_model
    generator = torch.Generator().manual_seed(0)
    x, states = torch.randn(2, 3, 16, 24, generator=generator), torch.randn(2, 77, WIDTH, generator=generator)
    text_embed, image_embed = torch.randn(2, 2, WIDTH, generator=generator)
    timesteps, mask = torch.tensor([999.0, 20.0]), torch.arange(77) < torch.tensor([[9], [40]])

    variance = []
    eps = network(
        x, timesteps, states, transformer_options={VARIANCE: lambda values, options: variance.append(values)},
        text_mask=mask.float(), text_embed=text_embed, image_embed=image_embed,
    )  # fmt: skip

    context, embedding = twin.text_proj(
        image_embeddings=image_embed, prompt_embeds=text_embed, text_encoder_hidden_states=states,
        do_classifier_free_guidance=False,
    )  # fmt: skip
    mask = torch.nn.functional.pad(mask, (4, 0), value=True)
    theirs = twin.unet(x, timesteps, context, class_labels=embedding, attention_mask=mask).sample
    for ours, part in zip((eps, variance[0]), theirs.chunk(2, dim=1), strict=True):
        assert float((ours - part).norm() / part.norm()) < 1e-4


@torch.inference_mode()
def test_both_layouts_of_an_upsampler_are_its_two_networks(networks, tmp_path):
    karlo = load_upsampler(write(tmp_path, "both.ckpt", twin_unclip.karlo_upsampler(*networks)), None)
    files = [write(tmp_path, f"{i}.safetensors", copied(network)) for i, network in enumerate(networks)]
    diffusers = load_upsampler(*files)
    x, timesteps = torch.randn(2, 6, 16, 16), torch.tensor([832.0, 0.0])
    for ours, other, theirs in zip((karlo.first, karlo.last), (diffusers.first, diffusers.last), networks, strict=True):
        assert same(ours.model, other.model)
        expected = theirs(x, timesteps).sample
        assert float((ours.model(x, timesteps) - expected).norm() / expected.norm()) < 1e-4


def test_the_published_decoder_is_known_by_its_tensors():
    """Karlo's 595 tensors and 893.3 M weights, by shape alone; the network of the sizes read off takes each of them."""
    sizes = {"in_channels": 3, "out_channels": 6, "model_channels": 320, "time_width": 1280, "blocks_per_level": 3}
    levels = {"widths": (320, 640, 960, 1280), "attention": (False, True, True, True), "context_width": 1536}
    texts = {"text_width": 768, "image_width": 768, "extra_tokens": 4, "scale_shift": True}
    shell = {"dtype": torch.float32, "device": torch.device("meta"), "operations": comfy.ops.disable_weight_init}
    weights = {f"model.{n}": v for n, v in DecoderNetwork(**sizes, **levels, **texts, **shell).state_dict().items()}
    assert len(weights) == 595
    assert round(sum(value.numel() for value in weights.values()) / 1e6, 1) == 893.3
    assert weights["model.input_blocks.0.0.weight"].shape == (320, 3, 3, 3)
    assert weights["model.clip_tok_proj.weight"].shape == (6144, 768)
    inputs = [weights[f"model.output_blocks.{i}.0.in_layers.2.weight"].shape[1] for i in range(16)]
    assert inputs == [
        *(2560, 2560, 2560, 2240, 2240, 1920, 1920, 1600),
        *(1600, 1280, 1280, 960, 960, 640, 640, 640),
    ]
    assert decoder_configuration(from_karlo(weights, "model.")) == sizes | levels | texts


def files(folder: Path, twin, networks) -> dict[str, Path]:
    unet, text_proj = twin.diffusers()
    karlo = twin.karlo()
    (folder / "pickled.ckpt").write_bytes(pickle.dumps({"state_dict": Path("nowhere")}))
    whole = write(folder, "whole.safetensors", karlo)
    (folder / "cut.safetensors").write_bytes(whole.read_bytes()[:-1000])
    torch.save([1, 2], folder / "list.ckpt")
    lacking = {name: value for name, value in karlo.items() if name != "model.input_blocks.2.0.in_layers.2.weight"}
    odd = karlo | {"model.out.2.weight": torch.zeros(6, 32, 1, 1)}
    prior = {"model.prd_emb": torch.zeros(1, 1, 8), "model.input_blocks.0.0.weight": torch.zeros(1)}
    clip = tiny_clip.sd1().cond_stage_model.clip_l.transformer.state_dict()
    return {
        "karlo": whole,
        "unet": write(folder, "unet.safetensors", unet),
        "text_proj": write(folder, "text_proj.safetensors", text_proj),
        "first": write(folder, "first.safetensors", copied(networks[0])),
        "small": write(folder, "small.safetensors", copied(twin_unclip.upsampler(levels=2))),
        "both": write(folder, "both.safetensors", twin_unclip.karlo_upsampler(*networks)),
        "lacking": write(folder, "lacking.safetensors", lacking),
        "more": write(folder, "more.safetensors", karlo | {"model.more.weight": torch.zeros(2)}),
        "odd": write(folder, "odd.safetensors", odd),
        "prior": write(folder, "prior.safetensors", prior),
        "clip": write(folder, "clip.safetensors", clip),
        **{
            name: folder / f"{name}.{kind}"
            for name, kind in (("pickled", "ckpt"), ("cut", "safetensors"), ("list", "ckpt"))
        },
    }


@pytest.fixture(scope="module")
def folder(twin, networks, tmp_path_factory):
    return files(tmp_path_factory.mktemp("files"), twin, networks)


@pytest.mark.parametrize(
    ("model", "text_proj", "expected"),
    [
        ("unet", None, r"^text_proj_name: expected the text_proj .* beside unet\.safetensors, .* got none\. Choose "),
        (
            "unet",
            "karlo",
            r"^text_proj_name: expected the text_proj .*, got whole\.safetensors, which is none\. Choose ",
        ),
        (
            "karlo",
            "text_proj",
            r"^text_proj_name: expected none beside whole\.safetensors, .* got text_proj\.safetensors\. ",
        ),
        ("text_proj", None, r"^model_name: expected unCLIP's decoder, got text_proj\.safetensors, the text_proj of "),
        ("first", None, r"^text_proj_name: expected "),
        (
            "first",
            "text_proj",
            r"^model_name: expected unCLIP's decoder, got first\.safetensors with .*: it has no attention ",
        ),
        ("both", None, r"^model_name: expected unCLIP's decoder, got both\.safetensors: it has neither Karlo's nor "),
        ("clip", None, r"^model_name: expected unCLIP's decoder, got clip\.safetensors: it has neither "),
        ("prior", None, r"^model_name: expected unCLIP's decoder, got prior\.safetensors, the prior; it goes into "),
        (
            "lacking",
            None,
            r"^model_name: .* got lacking\.safetensors: it lacks 1 of its 341 tensors, the first is input_b",
        ),
        ("more", None, r"^model_name: .* got more\.safetensors: it has more\.weight, which no such network has\. "),
        (
            "odd",
            None,
            r"^model_name: .* got odd\.safetensors: it has out\.2\.weight as \[6, 32, 1, 1\], expected \[6, 32, 3",
        ),
        ("cut", None, r"^model_name: cut\.safetensors could not be read: .* It is incomplete, "),
        ("pickled", None, r"^model_name: pickled\.ckpt could not be read: .* which is never loaded\. "),
        ("list", None, r"^model_name: "),
        ("unet", "pickled", r"^text_proj_name: pickled\.ckpt could not be read: "),
    ],
)
def test_other_files_are_no_decoder(folder, model, text_proj, expected):
    with pytest.raises(ValueError, match=expected):
        load_decoder(folder[model], folder.get(text_proj))


@pytest.mark.parametrize(
    ("model", "last", "expected"),
    [
        (
            "karlo",
            None,
            r"^model_name: expected an unCLIP upsampler, got whole\.safetensors: it has attention over text",
        ),
        ("unet", None, r"^model_name: expected an unCLIP upsampler, got unet\.safetensors: it has attention over text"),
        (
            "both",
            "first",
            r"^last_name: expected none beside both\.safetensors, .* got first\.safetensors\. Choose none\.",
        ),
        ("first", "small", r"^last_name: expected a network of the same size .* got another in small\.safetensors\. "),
        ("first", "karlo", r"^last_name: expected an unCLIP upsampler, got whole\.safetensors: "),
        ("text_proj", None, r"^model_name: expected an unCLIP upsampler, got text_proj\.safetensors, the text_proj"),
        ("prior", None, r"^model_name: expected an unCLIP upsampler, got prior\.safetensors, the prior; "),
        ("clip", None, r"^model_name: expected an unCLIP upsampler, got clip\.safetensors: it has neither "),
        ("cut", None, r"^model_name: cut\.safetensors could not be read: "),
        ("pickled", None, r"^model_name: pickled\.ckpt could not be read: "),
    ],
)
def test_other_files_are_no_upsampler(folder, model, last, expected):
    with pytest.raises(ValueError, match=expected):
        load_upsampler(folder[model], folder.get(last))


def test_half_of_karlo_s_upsampler_does_not_pass_for_dalle2_s(monkeypatch, folder):
    monkeypatch.setattr("palimpsest.nodes.unclip.decoder.loading.KARLO_UPSAMPLER", (32, 64, 96))
    with pytest.raises(ValueError, match=r"^last_name: expected the network of the last step .* got none\. Choose "):
        load_upsampler(folder["first"], None)
