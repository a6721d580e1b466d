import json
import random
import struct
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from palimpsest.nodes.diffusion.trajectory import ModelFingerprint, Trajectory
from palimpsest.nodes.files import checked_file
from palimpsest.nodes.files.prompt_values import LEFT_OUT, left_out_of
from palimpsest.nodes.inversion.trajectory_io import HEADER, TrajectoryFileError, load_trajectory, save_trajectory
from safetensors.torch import load_file, save_file

pytestmark = pytest.mark.unit


def example(dtype: torch.dtype = torch.float32) -> Trajectory:
    generator = torch.Generator().manual_seed(0)
    return Trajectory(
        latents=torch.randn(4, 2, 4, 6, 5, generator=generator),
        sigmas=torch.tensor([14.6, 3.0, 0.5, 0.0]),
        positive=[
            [
                torch.randn(1, 7, 8, generator=generator).to(dtype),
                {"pooled_output": torch.randn(1, 8, generator=generator), "strength": 0.75, "width": 512, "note": None},
            ],
            [torch.randn(1, 7, 8, generator=generator), {}],
        ],
        model=ModelFingerprint("SDXL", "SDXL", ("EPS", "ModelSamplingDiscrete"), 14.6146, 2048),
        method="fixed_point",
        residuals=torch.tensor([1e-5, float("nan"), 3e-7]),
        cfg=7.5,
    )


def assert_same(a: Trajectory, b: Trajectory) -> None:
    for name in ("latents", "sigmas", "residuals"):
        assert getattr(a, name).numpy().tobytes() == getattr(b, name).numpy().tobytes()
    assert (a.model, a.method, a.cfg) == (b.model, b.method, b.cfg)
    assert len(a.positive) == len(b.positive)
    for (text_a, extra_a), (text_b, extra_b) in zip(a.positive, b.positive, strict=True):
        assert text_a.dtype == text_b.dtype and torch.equal(text_a, text_b)
        assert extra_a.keys() == extra_b.keys()
        for key, value in extra_a.items():
            assert_same_value(value, extra_b[key])


def assert_same_value(a, b) -> None:
    assert type(a) is type(b)
    if isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype and torch.equal(a, b)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key, value in a.items():
            assert_same_value(value, b[key])
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for one, other in zip(a, b, strict=True):
            assert_same_value(one, other)
    else:
        assert a == b


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_saved_trajectory_comes_back_bit_for_bit(tmp_path: Path, dtype: torch.dtype):
    save_trajectory(example(dtype), tmp_path / "a.trajectory.safetensors")
    assert_same(example(dtype), load_trajectory(tmp_path / "a.trajectory.safetensors"))
    assert [path.name for path in tmp_path.iterdir()] == ["a.trajectory.safetensors"]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("attention_mask", torch.ones(1, 7, dtype=torch.bool)),
        ("t5xxl_ids", torch.arange(7)),
        ("bias", torch.tensor([[0.0, -torch.inf]])),
        ("area", (8, 16, 0, 4)),
        ("area", ("percentage", 0.5, 0.5, 0.0, 0.25)),
        ("mask", torch.rand(1, 8, 8)),
        ("reference_latents", [torch.rand(1, 4, 8, 8), torch.rand(1, 4, 6, 5).half()]),
        ("timestep_start", float("inf")),
        ("pooled_output", None),
        ("of_another_pack", {"sigmas": torch.rand(3), "names": ["a", ("b", 1.5)], "none": {}}),
    ],
)
def test_what_a_prompt_holds_as_tensors_and_plain_values_comes_back_R9(tmp_path: Path, key: str, value):
    """Fault R9: a decoder's trajectory, whose prompt has a mask of booleans, was refused with "invert with text only"."""
    trajectory = example()
    trajectory.positive[0][1][key] = value
    save_trajectory(trajectory, tmp_path / "a.trajectory.safetensors")
    assert_same(trajectory, load_trajectory(tmp_path / "a.trajectory.safetensors"))


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        ("control", object(), "ControlNet"),
        ("hooks", object(), "hooks"),
        ("gligen", ("position", object(), []), "GLIGEN boxes"),
        ("unclip_conditioning", [{"clip_vision_output": object(), "strength": 1.0}], "image embedding"),
        ("patch", {1: 2.0}, "patch"),
    ],
)
def test_what_a_file_cannot_keep_is_left_out_and_named_in_it(tmp_path: Path, key: str, value, named: str):
    path, trajectory, plain = tmp_path / "a.trajectory.safetensors", example(), example()
    trajectory.positive[0][1][key] = value
    assert left_out_of(trajectory.positive) == [named] and left_out_of(plain.positive) == []
    for _ in range(2):  # saved once more, the file still says so
        save_trajectory(trajectory, path)
        trajectory = load_trajectory(path)
        assert left_out_of(trajectory.positive) == [named]
    del trajectory.positive[0][1][LEFT_OUT]
    assert_same(plain, trajectory)


def test_a_picture_of_a_video_model_comes_back(tmp_path: Path):
    trajectory = replace(example(), latents=torch.randn(4, 2, 4, 1, 6, 5))
    save_trajectory(trajectory, tmp_path / "a.trajectory.safetensors")
    assert_same(trajectory, load_trajectory(tmp_path / "a.trajectory.safetensors"))


def test_a_path_of_a_guider_with_its_own_guidance_comes_back(tmp_path: Path):
    save_trajectory(replace(example(), cfg=None), tmp_path / "a.trajectory.safetensors")
    assert_same(replace(example(), cfg=None), load_trajectory(tmp_path / "a.trajectory.safetensors"))


def test_files_of_version_1_load(tmp_path: Path):
    path, trajectory = tmp_path / "a.trajectory.safetensors", example()
    (text, extra), (other, _) = trajectory.positive
    tensors = {"latents": trajectory.latents, "sigmas": trajectory.sigmas, "residuals": trajectory.residuals}
    pooled = {"conditioning.0.cross_attn": text, "conditioning.0.pooled_output": extra["pooled_output"]}
    header = {
        "version": 1, "method": "fixed_point", "model_class": "SDXL", "latent_format": "SDXL",
        "sampling": ["EPS", "ModelSamplingDiscrete"], "sigma_max": 14.6146,
        "conditioning": [
            {"values": {"strength": 0.75, "width": 512, "note": None}, "tensors": ["cross_attn", "pooled_output"]},
            {"values": {}, "tensors": ["cross_attn"]},
        ],
    }  # fmt: skip
    checked_file.write(path, HEADER, header, {**tensors, **pooled, "conditioning.1.cross_attn": other})
    loaded = load_trajectory(path)
    assert loaded.model.text_width is None
    assert_same(replace(trajectory, model=replace(trajectory.model, text_width=None), cfg=1.0), loaded)


def test_files_from_before_inversions_had_guidance_load_as_made_at_cfg_1(tmp_path: Path):
    path, trajectory = tmp_path / "a.trajectory.safetensors", replace(example(), positive=[[None, {}]])
    header = {
        "version": 2, "method": "fixed_point", "model_class": "SDXL", "latent_format": "SDXL",
        "sampling": ["EPS", "ModelSamplingDiscrete"], "sigma_max": 14.6146, "text_width": 2048, "conditioning": [[None, {}]],
    }  # fmt: skip
    tensors = {"latents": trajectory.latents, "sigmas": trajectory.sigmas, "residuals": trajectory.residuals}
    checked_file.write(path, HEADER, header, tensors)
    assert load_trajectory(path).cfg == 1.0


def test_two_thousand_mutated_files_raise_the_one_error(tmp_path: Path):
    path = tmp_path / "a.trajectory.safetensors"
    save_trajectory(example(), path)
    original = path.read_bytes()
    rng = random.Random(0)
    for i in range(2000):
        data = bytearray(original)
        kind = i % 5
        if kind == 0:  # truncated, anywhere
            data = data[: rng.randrange(len(data))]
        elif kind == 1:  # one bit flipped; every second time in the header, where the structure is
            at = rng.randrange(1200 if i % 2 else len(data))
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 2:  # a run of random bytes
            at, length = rng.randrange(len(data)), rng.randrange(1, 64)
            data[at : at + length] = rng.randbytes(length)
        elif kind == 3:  # bytes inserted or removed
            at = rng.randrange(len(data))
            data[at : at + (i % 2) * 3] = rng.randbytes(rng.randrange(1, 9))
        else:  # a header length that lies
            data[:8] = struct.pack("<Q", rng.choice([0, 1, len(data), 2**31, 2**63, rng.randrange(5000)]))
        if bytes(data) == original:
            continue
        path.write_bytes(data)
        with pytest.raises(TrajectoryFileError, match=r"a\.trajectory\.safetensors is not a trajectory"):
            load_trajectory(path)


def rewritten(path: Path, change) -> None:
    """Write the example again with a changed header or tensors and a digest that matches nothing of it."""
    save_trajectory(example(), path)
    tensors = load_file(path)
    length = struct.unpack("<Q", path.read_bytes()[:8])[0]
    header = json.loads(json.loads(path.read_bytes()[8 : 8 + length])["__metadata__"][HEADER])
    change(header, tensors)
    save_file(tensors, path, metadata={HEADER: json.dumps(header)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda h, t: h.update(version=3), "expected version 2"),
        (lambda h, t: h.update(steps=1), "other fields"),
        (lambda h, t: h.update(sigma_max="14"), "sigma_max: expected float"),
        (lambda h, t: h.update(cfg=7), "cfg: expected float"),
        (lambda h, t: h.update(cfg=float("nan")), "cfg is not finite"),
        (lambda h, t: h.update(conditioning=[]), "no conditioning"),
        (lambda h, t: h["conditioning"][0].append({"tensor": "conditioning.9"}), "other names"),
        (lambda h, t: h["conditioning"][0][1].update(x={"tensor": ["x"]}), "checksum"),
        (lambda h, t: h.update(conditioning=json.loads("[" * 900 + "]" * 900)), "recursion|other names"),
        (lambda h, t: t.pop("residuals"), "other names"),
        (lambda h, t: t.update(extra=torch.zeros(1)), "other names"),
        (lambda h, t: t.update(latents=t["latents"].half()), "unexpected type F16"),
        (lambda h, t: t.update(latents=t["latents"][0]), "latents: expected"),
        (lambda h, t: t.update(sigmas=t["sigmas"][1:].clone()), "disagree on the steps"),
        (lambda h, t: t["latents"].view(-1)[3:4].zero_(), "checksum"),
        (lambda h, t: h.update(method="ddim"), "checksum"),
    ],
)
def test_foreign_and_hostile_files_say_what_is_wrong(tmp_path: Path, change, message: str):
    path = tmp_path / "a.trajectory.safetensors"
    rewritten(path, change)
    with pytest.raises(TrajectoryFileError, match=message):
        load_trajectory(path)


def test_values_that_are_not_finite_or_not_descending_are_refused_even_with_a_true_checksum(tmp_path: Path):
    path = tmp_path / "a.trajectory.safetensors"
    bad = example()
    bad.latents[0, 0, 0, 0, 0] = float("inf")
    save_trajectory(bad, path)
    with pytest.raises(TrajectoryFileError, match="latents has values that are not finite"):
        load_trajectory(path)
    bad = example()
    bad.sigmas[1] = 20.0
    save_trajectory(bad, path)
    with pytest.raises(TrajectoryFileError, match="strictly descending"):
        load_trajectory(path)


@pytest.mark.parametrize(
    "entry",
    [
        [1.5, {}], [None], [None, []], [None, {}, {}], {"dict": {}}, [None, {"x": {"tuple": 1}}], [None, {"x": {"float": "1"}}],
        [None, {"x": {"float": []}}], [None, {"x": {"set": []}}], [None, {"x": {"dict": 1}}], [None, {"x": {"tensor": 1}}],
        [None, {"x": {"tensor": [], "tuple": []}}], [None, {"control": 1}], [None, {"hooks": "all"}],
        [None, {LEFT_OUT: "ControlNet"}], [None, {LEFT_OUT: [1]}],
    ],
)  # fmt: skip
def test_prompts_of_another_form_are_refused_even_with_a_true_checksum(tmp_path: Path, entry):
    path, trajectory = tmp_path / "a.trajectory.safetensors", example()
    header = {
        "version": 2, "method": "ddim", "model_class": "SDXL", "latent_format": "SDXL", "sampling": [], "sigma_max": 14.6,
        "text_width": 0, "conditioning": [entry],
    }  # fmt: skip
    tensors = {"latents": trajectory.latents, "sigmas": trajectory.sigmas, "residuals": trajectory.residuals}
    checked_file.write(path, HEADER, header, tensors)
    with pytest.raises(TrajectoryFileError, match=r"conditioning: |left_out: "):
        load_trajectory(path)


def test_other_files_are_refused(tmp_path: Path):
    for name, data in (("empty", b""), ("text", b"not a trajectory at all"), ("zeros", bytes(4096))):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(TrajectoryFileError):
            load_trajectory(tmp_path / name)
    with pytest.raises(TrajectoryFileError):
        load_trajectory(tmp_path / "missing")
    save_file({"latents": torch.zeros(2)}, tmp_path / "foreign")
    with pytest.raises(TrajectoryFileError, match="no trajectory header"):
        load_trajectory(tmp_path / "foreign")
