import random
from pathlib import Path

import pytest
import torch
from palimpsest.nodes.diffusion.schedule import MADE_FOR
from palimpsest.nodes.files import checked_file
from palimpsest.nodes.files.prompt_values import left_out_of
from palimpsest.nodes.null_text.conditioning_io import (
    HEADER,
    ConditioningFileError,
    load_conditioning,
    save_conditioning,
)

pytestmark = pytest.mark.unit

SIGMAS = torch.tensor([14.6, 3.0, 0.5, 0.0])


def negative() -> list:
    """One entry for each step, as Null-Text Optimize makes them; the second step keeps the first one's text."""
    generator = torch.Generator().manual_seed(0)
    texts = [torch.randn(2, 7, 8, generator=generator) for _ in range(2)]
    times = [(float("inf"), 3.1), (3.0, 0.51), (0.5, 0.0)]
    return [
        [text.clone(), {"timestep_start": a, "timestep_end": b, MADE_FOR: {"sigmas": SIGMAS, "cfg": 7.5}}]
        for text, (a, b) in zip([texts[0], *texts], times, strict=True)
    ]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "a.conditioning.safetensors"


def test_a_negative_of_null_text_comes_back_bit_for_bit_and_equal_texts_are_kept_once(path: Path):
    save_conditioning(negative(), path)
    for (text, options), (wanted, own) in zip(load_conditioning(path), negative(), strict=True):
        made_for, own_made_for = options.pop(MADE_FOR), own.pop(MADE_FOR)
        assert torch.equal(text, wanted) and options == own
        assert torch.equal(made_for["sigmas"], own_made_for["sigmas"]) and made_for["cfg"] == 7.5
    longer = path.with_name("b.conditioning.safetensors")
    save_conditioning(negative() + 20 * negative()[:1], longer)
    assert longer.stat().st_size < path.stat().st_size + 20 * 400  # a text alone is 448 bytes


def test_a_controlnet_is_left_out_and_named(path: Path):
    conditioning = negative()
    conditioning[1][1]["control"] = object()
    save_conditioning(conditioning, path)
    assert left_out_of(conditioning) == left_out_of(load_conditioning(path)) == ["ControlNet"]


def test_five_hundred_mutated_files_raise_the_one_error(path: Path):
    save_conditioning(negative(), path)
    original, rng = path.read_bytes(), random.Random(0)
    for i in range(500):
        data = bytearray(original)
        at = rng.randrange(1500 if i % 2 else len(data))
        if i % 3 == 0:
            data = data[:at]
        elif i % 3 == 1:
            data[at] ^= 1 << rng.randrange(8)
        else:
            data[at : at + rng.randrange(4)] = rng.randbytes(rng.randrange(1, 9))
        if bytes(data) == original:
            continue
        path.write_bytes(data)
        with pytest.raises(
            ConditioningFileError, match=r"^conditioning_file: expected a file of Save Conditioning, got a\."
        ):
            load_conditioning(path)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([], "no conditioning"),
        ([[None, {MADE_FOR: {"dict": {"cfg": 7.5}}}]], "made_for: unexpected fields"),
        ([[None, {MADE_FOR: {"dict": {"cfg": 7.5, "sigmas": 1.0}}}]], "made_for: expected sigmas"),
        ([[None, {"control": 1}]], "conditioning: unexpected fields"),
        ([[1.5, {}]], "expected a tensor or none for a text"),
    ],
)
def test_other_values_are_refused_even_with_a_true_checksum(path: Path, entries: list, message: str):
    checked_file.write(path, HEADER, {"version": 1, "conditioning": entries}, {})
    with pytest.raises(ConditioningFileError, match=message):
        load_conditioning(path)
