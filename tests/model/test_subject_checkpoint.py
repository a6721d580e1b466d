"""Published subject checkpoints through ComfyUI's own classes, compared with diffusers' and transformers' on the same files."""

from __future__ import annotations

import pickle
from pathlib import Path

import comfy.sd
import pytest
import torch
from comfy.model_patcher import ModelPatcher
from diffusers import AutoencoderKL, UNet2DConditionModel
from palimpsest.nodes.subject.checkpoint import load, models
from safetensors.torch import load_file, save_file
from support.fixtures import subject_checkpoint
from support.fixtures.twin_subject import text_config
from transformers import CLIPTextModel

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def file() -> Path:
    return subject_checkpoint.published()


@pytest.fixture(scope="module")
def weights(file: Path) -> dict[str, torch.Tensor]:
    return load_file(file)


@pytest.fixture(scope="module")
def loaded(file: Path):
    return load(file, [])


def of(weights: dict[str, torch.Tensor], part: str) -> dict[str, torch.Tensor]:
    return {
        name.removeprefix(f"{part}."): value.float()
        for name, value in weights.items()
        if name.startswith(f"{part}.") and not name.endswith("position_ids")
    }


def test_the_fixture_has_the_published_names_and_shapes(weights):
    assert sum(value.numel() for value in of(weights, "postfuse_module").values()) == 2_958_336
    assert len(of(weights, "postfuse_module")) == 14
    assert weights["postfuse_module.mlp1.fc1.weight"].shape == (768, 1536)
    for name in (
        "text_encoder.embeddings.token_embedding.weight", "text_encoder.encoder.layers.0.self_attn.q_proj.weight",
        "text_encoder.final_layer_norm.weight", "image_encoder.vision_model.pre_layrnorm.weight",
        "image_encoder.visual_projection.weight", "vae.encoder.mid_block.attentions.0.query.weight",
        "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_out.0.weight",
    ):  # fmt: skip
        assert name in weights


def test_the_unet_is_the_file_s(loaded, weights):
    model, _, _, _ = loaded
    twin = UNet2DConditionModel(block_out_channels=(320,) * 4, cross_attention_dim=768, attention_head_dim=8)
    twin.load_state_dict(of(weights, "unet"))
    generator = torch.Generator().manual_seed(1)
    x, text = torch.randn(2, 4, 8, 8, generator=generator), torch.randn(2, 77, 768, generator=generator)
    t = torch.tensor([500, 20])
    comfy.model_management.load_models_gpu([model])
    dtype = model.model.get_dtype()
    with torch.no_grad():
        ours = model.model.diffusion_model(x.to(dtype), t, context=text.to(dtype)).float()
        theirs = twin(x, t, text).sample
    assert dtype == torch.float32
    assert (ours - theirs).abs().max() < 1e-5 * theirs.abs().max()


def test_the_vae_is_the_file_s(loaded, weights):
    _, _, vae, _ = loaded
    twin = AutoencoderKL(**subject_checkpoint.VAE).eval()
    new = {old: name for name, old in subject_checkpoint.VAE_ATTENTION.items()}
    renamed = {}
    for name, value in of(weights, "vae").items():
        for old, name_now in new.items():
            name = name.replace(f".{old}.", f".{name_now}.") if ".attentions." in name else name
        renamed[name] = value
    twin.load_state_dict(renamed)
    assert vae.vae_dtype == torch.float32
    generator = torch.Generator().manual_seed(2)
    picture, latent = torch.rand(1, 64, 64, 3, generator=generator), torch.randn(1, 4, 8, 8, generator=generator)
    with torch.no_grad():
        moments = twin.encode(picture.movedim(-1, 1) * 2 - 1).latent_dist.mean
        pixels = (twin.decode(latent).sample.movedim(1, -1) + 1) / 2
    assert (vae.first_stage_model.encode(picture.movedim(-1, 1) * 2 - 1) - moments).abs().max() < 1e-4
    assert (vae.decode(latent) - pixels.clamp(0, 1)).abs().max() < 1e-4


def test_the_text_encoder_is_the_file_s(loaded, weights):
    _, clip, _, _ = loaded
    twin = CLIPTextModel(text_config(1)).eval()
    twin.load_state_dict(of(weights, "text_encoder"))
    tokens = clip.tokenize("a man and a dog")
    ids = torch.tensor([[token for token, _ in tokens["l"][0]]])
    with torch.no_grad():
        theirs = twin(ids).last_hidden_state
    assert (clip.encode_from_tokens(tokens) - theirs).abs().max() < 1e-5


def test_bin_and_new_vae_names_are_the_same_models(loaded, tmp_path, weights):
    found = {}
    for name, value in weights.items():
        for new, old in subject_checkpoint.VAE_ATTENTION.items():
            name = name.replace(f".{old}.", f".{new}.") if name.startswith("vae.") and ".attentions." in name else name
        found[name] = value
    file = tmp_path / "pytorch_model.bin"
    torch.save(found, file)
    model, clip, vae, encoder = load(file, [])
    for ours, other in (
        (model.model.diffusion_model, loaded[0].model.diffusion_model),
        (clip.cond_stage_model.clip_l.transformer.text_model, loaded[1].cond_stage_model.clip_l.transformer.text_model),
        (vae.first_stage_model, loaded[2].first_stage_model),
        (encoder.patcher.model, loaded[3].patcher.model),
    ):
        other = other.state_dict()
        assert all(torch.equal(value, other[name]) for name, value in ours.state_dict().items())


@pytest.mark.newest
def test_F2_core_is_told_how_to_load_each_part_again(loaded):
    """Fault F2: a LoRA hook on the model could not be used under dynamic VRAM, where core loads the model again for it."""
    model, clip, vae, _ = loaded
    for part, patcher in enumerate((model, clip.patcher, vae.patcher)):
        load_again, arguments = patcher.cached_patcher_init
        assert arguments[2] == part
    load_again, arguments = model.cached_patcher_init
    again = load_again(*arguments, disable_dynamic=True)
    assert type(again) is ModelPatcher and type(again.model) is type(model.model) and again.model is not model.model
    expected = model.model.diffusion_model.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in again.model.diffusion_model.state_dict().items())


def test_a_text_only_file_gives_its_models(tmp_path, weights):
    file = tmp_path / "tdm.safetensors"
    save_file(subject_checkpoint.text_only(weights), file)
    model, clip, vae, encoder = load(file, [])
    assert encoder is None
    assert isinstance(model.model.model_config, comfy.supported_models.SD15)
    assert vae.first_stage_model is not None and clip is not None


class Payload:
    def __reduce__(self):
        return (Path.touch, (Path("ran"),))


def test_a_pickled_file_with_code_runs_none_of_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, write in (
        ("zip.bin", torch.save),
        ("plain.bin", lambda o, f: f.write_bytes(pickle.dumps(o, protocol=2))),
    ):
        file = tmp_path / name
        write({"text_encoder.x": torch.zeros(1), "code": Payload()}, file)
        with pytest.raises(ValueError, match=rf"^ckpt_name: {name} could not be read: .*more than tensors"):
            load(file, [])
    assert not (tmp_path / "ran").exists()


def test_files_that_are_cut_short_are_refused(tmp_path):
    tensors = {"unet.a": torch.zeros(1000)}
    torch.save(tensors, tmp_path / "cut.bin")
    save_file(tensors, tmp_path / "cut.safetensors")
    (tmp_path / "empty.bin").touch()
    (tmp_path / "empty.safetensors").touch()
    (tmp_path / "text.bin").write_text("version https://git-lfs.github.com/spec/v1\n")
    for name in ("cut.bin", "cut.safetensors", "empty.bin", "empty.safetensors", "text.bin"):
        file = tmp_path / name
        file.write_bytes(file.read_bytes()[: 2 * file.stat().st_size // 3])
        with pytest.raises(ValueError, match=rf"^ckpt_name: {name} could not be read: .*incomplete"):
            load(file, [])


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["model.diffusion_model.input_blocks.0.0.weight", "first_stage_model.x.y"], "an ordinary checkpoint without a subject encoder"),
        (["text_encoder.a", "vae.a", "unet.a", "image_encoder.a"], "a file without postfuse_module"),
        (["lora_unet_a.weight"], "a file without text_encoder, vae, unet, image_encoder, postfuse_module"),
    ],
)  # fmt: skip
def test_other_files_are_told_apart(tmp_path, names, message):
    file = tmp_path / "other.safetensors"
    save_file({name: torch.zeros(1) for name in names}, file)
    with pytest.raises(
        ValueError, match=rf"^ckpt_name: expected FastComposer's .* got other\.safetensors, .*{message}"
    ):
        load(file, [])


def test_something_else_than_tensors_is_refused(tmp_path):
    torch.save({"text_encoder.a": "a"}, tmp_path / "words.bin")
    torch.save([torch.zeros(1)] * 2, tmp_path / "list.bin")
    for name in ("words.bin", "list.bin"):
        with pytest.raises(ValueError, match=rf"got {name}, which holds other things than named tensors"):
            load(tmp_path / name, [])


@pytest.mark.parametrize(
    ("lost", "message"),
    [
        ("postfuse_module.mlp2.fc1.bias", "the subject encoder lacks 1 of its"),
        ("image_encoder.vision_model.embeddings.patch_embedding.weight", "the subject encoder has no image_encoder"),
        ("unet.mid_block.resnets.0.conv1.weight", "unet lacks 1 of its"),
        ("unet.up_blocks.1.resnets.0.conv_shortcut.bias", "unet lacks 1 of its"),
        ("vae.quant_conv.weight", "vae lacks"),
        ("vae.post_quant_conv.weight", "text_encoder or vae is of another kind"),
        ("vae.decoder.conv_in.weight", "text_encoder or vae is of another kind"),
        ("text_encoder.encoder.layers.0.mlp.fc1.bias", "text_encoder lacks 1 of its"),
        ("text_encoder.embeddings.token_embedding.weight", "text_encoder lacks 1 of its"),
    ],
)
def test_a_tensor_that_is_missing_is_named(weights, lost, message):
    kept = {name: value for name, value in weights.items() if name != lost}
    with pytest.raises(ValueError, match=rf"^ckpt_name: expected .*, got some\.bin, where {message}"):
        models(kept, "some.bin", [])


@pytest.mark.parametrize(
    ("part", "changed"),
    [
        ("the subject encoder", "postfuse_module.layer_norm.weight"),
        ("diffusion_model|UNet", "unet.mid_block.resnets.0.conv1.bias"),
        ("vae|Autoencoder", "vae.decoder.conv_in.bias"),
        ("text_encoder|SD1ClipModel", "text_encoder.final_layer_norm.weight"),
    ],
)
def test_a_tensor_of_another_shape_is_named(weights, part, changed):
    other = {**weights, changed: weights[changed][:-1].clone()}
    with pytest.raises(ValueError, match=rf"^ckpt_name: expected .* where .*({part})"):
        models(other, "some.bin", [])
