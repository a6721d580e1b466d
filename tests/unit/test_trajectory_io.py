import json
import random
import struct
from pathlib import Path

import pytest
import torch
from palimpsest.nodes.diffusion.trajectory import ModelFingerprint, Trajectory
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
        model=ModelFingerprint("SDXL", "SDXL", ("EPS", "ModelSamplingDiscrete"), 14.6146),
        method="fixed_point",
        residuals=torch.tensor([1e-5, float("nan"), 3e-7]),
    )


def assert_same(a: Trajectory, b: Trajectory) -> None:
    for name in ("latents", "sigmas", "residuals"):
        assert getattr(a, name).numpy().tobytes() == getattr(b, name).numpy().tobytes()
    assert (a.model, a.method) == (b.model, b.method)
    assert len(a.positive) == len(b.positive)
    for (text_a, extra_a), (text_b, extra_b) in zip(a.positive, b.positive, strict=True):
        assert text_a.dtype == text_b.dtype and torch.equal(text_a, text_b)
        assert extra_a.keys() == extra_b.keys()
        for key, value in extra_a.items():
            assert torch.equal(value, extra_b[key]) if isinstance(value, torch.Tensor) else value == extra_b[key]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_saved_trajectory_comes_back_bit_for_bit(tmp_path: Path, dtype: torch.dtype):
    save_trajectory(example(dtype), tmp_path / "a.trajectory.safetensors")
    assert_same(example(dtype), load_trajectory(tmp_path / "a.trajectory.safetensors"))
    assert [path.name for path in tmp_path.iterdir()] == ["a.trajectory.safetensors"]


def test_a_conditioning_with_a_live_object_is_not_written(tmp_path: Path):
    trajectory = example()
    trajectory.positive[0][1]["control"] = object()
    with pytest.raises(ValueError, match="'control', a object, which a file can't keep"):
        save_trajectory(trajectory, tmp_path / "a.trajectory.safetensors")
    assert list(tmp_path.iterdir()) == []


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
        (lambda h, t: h.update(version=2), "expected version 1"),
        (lambda h, t: h.update(steps=1), "other fields"),
        (lambda h, t: h.update(sigma_max="14"), "sigma_max: expected float"),
        (lambda h, t: h.update(conditioning=[]), "no conditioning"),
        (lambda h, t: h["conditioning"][0].update(tensors=[["x"]]), "expected names"),
        (lambda h, t: h.update(conditioning=json.loads("[" * 900 + "]" * 900)), "unexpected fields"),
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
