"""Published layouts of a prior become one model; other files say what they are."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from palimpsest.nodes.unclip.prior.checkpoint import load, prior
from safetensors.torch import save_file
from support.fixtures.twin_prior import KARLO_WIDTH, TINY, karlo_layout, twin

pytestmark = pytest.mark.model

REFUSED = r"^prior_name: expected a prior of Karlo or Kandinsky 2, got "


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    return dict(twin(**TINY).state_dict())


def diffusers_file(folder: Path, weights: dict[str, torch.Tensor], name: str = "kandinsky.safetensors") -> Path:
    save_file({key: value.contiguous() for key, value in weights.items()}, folder / name)
    return folder / name


def karlo_files(folder: Path, weights: dict[str, torch.Tensor]) -> tuple[Path, Path]:
    state, stats = karlo_layout(weights)
    torch.save({"state_dict": state}, folder / "prior-ckpt.ckpt")
    torch.save(stats, folder / "ViT-L-14_stats.th")
    return folder / "prior-ckpt.ckpt", folder / "ViT-L-14_stats.th"


def test_the_fixture_has_karlo_s_names_and_shapes():
    made, stats = karlo_layout(twin(**KARLO_WIDTH).state_dict())
    assert len(made) == 256 - 18 * 12  # of 20 layers
    shapes = {name: tuple(value.shape) for name, value in made.items()}
    assert shapes["model.transformer.resblocks.1.attn.c_qkv.weight"] == (6144, 2048)
    assert shapes["model.transformer.resblocks.0.mlp.c_fc.bias"] == (8192,)
    assert shapes["model.positional_embedding"] == (1, 81, 2048)
    assert shapes["model.out_proj.weight"] == (768, 2048) and [value.shape for value in stats] == [(768,), (768,)]


def test_both_layouts_are_the_same_tensors(tmp_path, weights):
    ours = load(diffusers_file(tmp_path, weights), None)
    state, stats = karlo_files(tmp_path, weights)
    bare, statistics = karlo_layout(weights)
    save_file({name.removeprefix("model."): value for name, value in bare.items()}, tmp_path / "bare.safetensors")
    save_file(dict(zip(("mean", "std"), statistics, strict=True)), tmp_path / "stats.safetensors")
    for other in (load(state, stats), load(tmp_path / "bare.safetensors", tmp_path / "stats.safetensors")):
        found, expected = other.model.state_dict(), ours.model.state_dict()
        assert list(found) == list(expected)
        assert all(torch.equal(value, expected[name]) for name, value in found.items())
        assert torch.equal(other.mean, ours.mean) and torch.equal(other.std, ours.std) and other.width == ours.width


def test_every_number_of_the_file_is_in_the_model(weights):
    made = prior(dict(weights), "a", None)
    counted = sum(value.numel() for value in made.model.state_dict().values()) + made.mean.numel() + made.std.numel()
    assert counted == sum(value.numel() for value in weights.values())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_weights_are_kept_in_the_chosen_precision(weights, dtype):
    made = prior(dict(weights), "a", None, dtype)
    assert {value.dtype for value in made.model.state_dict().values()} == {dtype}
    assert made.mean.dtype == torch.float32
    assert made.patcher.model_size() == sum(value.nbytes for value in made.model.state_dict().values())


def test_the_file_may_change_after_it_was_loaded(tmp_path, weights):
    file = diffusers_file(tmp_path, weights)
    made = load(file, None)
    before = {name: value.clone() for name, value in made.model.state_dict().items()}
    file.write_bytes(bytes(file.stat().st_size))
    assert all(torch.equal(value, before[name]) for name, value in made.model.state_dict().items())


class Payload:
    def __reduce__(self):
        return (Path.touch, (Path("ran"),))


@pytest.mark.parametrize("name", ["zip.ckpt", "plain.ckpt"])
def test_a_pickled_file_with_code_runs_none_of_it(tmp_path, monkeypatch, weights, name):
    monkeypatch.chdir(tmp_path)
    holding = {"state_dict": {"model.clip_img_proj.weight": torch.zeros(1)}, "code": Payload()}
    if name == "zip.ckpt":
        torch.save(holding, tmp_path / name)
    else:
        (tmp_path / name).write_bytes(pickle.dumps(holding, protocol=2))
    with pytest.raises(ValueError, match=rf"^prior_name: {name} could not be read: .*more than tensors"):
        load(tmp_path / name, None)
    state, _ = karlo_files(tmp_path, weights)
    with pytest.raises(ValueError, match=rf"^stats_name: {name} could not be read: .*more than tensors"):
        load(state, tmp_path / name)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["cut.safetensors", "cut.ckpt", "empty.safetensors", "text.bin"])
def test_files_that_are_cut_short_are_refused(tmp_path, weights, name):
    file = tmp_path / name
    if name == "text.bin":
        file.write_text("version https://git-lfs.github.com/spec/v1\n")
    elif name == "empty.safetensors":
        file.touch()
    else:
        whole = diffusers_file(tmp_path, weights) if name.endswith("safetensors") else karlo_files(tmp_path, weights)[0]
        file.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    with pytest.raises(ValueError, match=rf"^prior_name: {name} could not be read: .*incomplete"):
        load(file, None)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["model.diffusion_model.input_blocks.0.0.weight"], "an ordinary checkpoint. Use Load Checkpoint for it"),
        (["model.clip_tok_proj.weight", "model.cf_param"], "Karlo's decoder. Use unCLIP Load Decoder for it"),
        (["model_first_steps.out.0.weight"], "Karlo's upsampler. Use unCLIP Load Upsampler for it"),
        (["proj_to_clip_embeddings.weight"], "a PriorTransformer without the learned query .* Shap-E"),
        (["lora_unet_a.weight", "b.weight"], r"a file that starts with b\.weight, lora_unet_a\.weight\. Choose Karlo's"),
        ([], "a file that starts with nothing"),
    ],
)  # fmt: skip
def test_other_files_are_told_apart(names, message):
    with pytest.raises(ValueError, match=REFUSED + rf"some\.ckpt, .*{message}.*prior-ckpt"):
        prior({name: torch.zeros(1) for name in names}, "some.ckpt", None)


def test_something_else_than_tensors_is_refused(tmp_path):
    torch.save({"clip_img_proj.weight": "a"}, tmp_path / "words.bin")
    torch.save([torch.zeros(1)] * 2, tmp_path / "list.bin")
    for name in ("words.bin", "list.bin"):
        with pytest.raises(ValueError, match=REFUSED + rf"{name}, which holds other things than named tensors"):
            load(tmp_path / name, None)


@pytest.mark.parametrize(
    "lost",
    [
        "prd_embedding", "clip_mean", "proj_in.weight", "transformer_blocks.1.attn1.to_v.bias", "positional_embedding",
        "transformer_blocks.0.ff.net.2.weight", "norm_out.weight", "time_embedding.linear_2.bias",
    ],
)  # fmt: skip
def test_a_tensor_that_is_missing_is_named(weights, lost):
    kept = {name: value for name, value in weights.items() if name != lost}
    message = {
        "prd_embedding": "without the learned query",
        "clip_mean": r"^prior_name: .* where clip_mean or clip_std is missing",
    }.get(lost, lost)
    with pytest.raises(ValueError, match=message):
        prior(kept, "some.safetensors", None)


@pytest.mark.parametrize("layout", ["karlo", "diffusers"])
def test_a_tensor_of_another_shape_or_kind_and_one_too_many_are_named(weights, layout):
    full = karlo_layout(weights)[0] if layout == "karlo" else weights
    qkv = {
        "karlo": "model.transformer.resblocks.0.attn.c_qkv.weight",
        "diffusers": "transformer_blocks.0.attn1.to_k.weight",
    }
    name = qkv[layout]
    short = name.removeprefix("model.")
    with pytest.raises(ValueError, match=REFUSED + rf".* where the prior has {short} as .* expected"):
        prior({**full, name: full[name][:-1].clone()}, "some.bin", None)
    with pytest.raises(
        ValueError, match=REFUSED + rf".* where the prior has {short} as torch.int8, expected floating point"
    ):
        prior({**full, name: full[name].to(torch.int8)}, "some.bin", None)
    with pytest.raises(ValueError, match=REFUSED + r".* where there is norm_in.weight, which none of them has"):
        prior({**full, "norm_in.weight": torch.zeros(1)}, "some.bin", None)


def test_another_count_of_positions_is_refused(weights):
    with pytest.raises(ValueError, match=REFUSED + r".* where there are 80 positions of width 128, expected 81"):
        prior({**weights, "positional_embedding": weights["positional_embedding"][:, 1:]}, "some.bin", None)


def test_karlo_s_file_needs_its_statistics(tmp_path, weights):
    state, stats = karlo_files(tmp_path, weights)
    with pytest.raises(
        ValueError, match=r"^stats_name: expected .* ViT-L-14_stats\.th \(7 KB\) into models/diffusion_models"
    ):
        load(state, None)
    for wrong in (
        (torch.zeros(9), torch.zeros(9)),
        (torch.zeros(64),) * 3,
        ("a", "b"),
        {"a": torch.zeros(64), "b": torch.zeros(64)},
    ):
        torch.save(wrong, stats)
        with pytest.raises(
            ValueError, match=r"^stats_name: expected .* 64 numbers each, got ViT-L-14_stats\.th, which holds"
        ):
            load(state, stats)
