import random
import struct
from pathlib import Path

import pytest
import torch
from palimpsest.nodes.files import checked_file
from palimpsest.nodes.unclip.embeddings.embedding_io import HEADER, EmbeddingFileError, load_embedding, save_embedding
from safetensors.torch import save_file

pytestmark = pytest.mark.unit

NAME = "a.embedding.safetensors"


def example(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(3, 24, generator=torch.Generator().manual_seed(0)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_saved_embedding_comes_back_bit_for_bit(tmp_path: Path, dtype: torch.dtype):
    save_embedding(example(dtype), tmp_path / NAME)
    loaded = load_embedding(tmp_path / NAME)
    assert loaded.dtype == dtype and loaded.equal(example(dtype))
    save_embedding(example(dtype)[1:2], tmp_path / NAME)  # a row of a batch shares its memory
    assert load_embedding(tmp_path / NAME).equal(example(dtype)[1:2])
    assert [path.name for path in tmp_path.iterdir()] == [NAME]


def test_a_thousand_mutated_files_raise_the_one_error(tmp_path: Path):
    path = tmp_path / NAME
    save_embedding(example(), path)
    original = path.read_bytes()
    rng = random.Random(0)
    for i in range(1000):
        data = bytearray(original)
        kind = i % 4
        if kind == 0:
            data = data[: rng.randrange(len(data))]
        elif kind == 1:
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        elif kind == 2:
            at = rng.randrange(len(data))
            data[at : at + (i % 8) // 4 * 3] = rng.randbytes(rng.randrange(1, 9))
        else:
            data[:8] = struct.pack("<Q", rng.choice([0, 1, len(data), 2**31, 2**63, rng.randrange(500)]))
        if bytes(data) == original:
            continue
        path.write_bytes(data)
        with pytest.raises(EmbeddingFileError, match=r"^embedding_file: expected .+ got a\.embedding\.safetensors"):
            load_embedding(path)


@pytest.mark.parametrize(
    ("header", "tensors", "message"),
    [
        ({"version": 2}, {"image_embeds": example()}, "expected version 1"),
        ({"version": 1, "more": 0}, {"image_embeds": example()}, "other fields"),
        ({"version": True}, {"image_embeds": example()}, "version: expected int"),
        ({"version": 1}, {"embeds": example()}, "other names"),
        ({"version": 1}, {"image_embeds": example(), "more": example()}, "other names"),
        ({"version": 1}, {"image_embeds": example()[0]}, r"expected \[batch, width\]"),
        ({"version": 1}, {"image_embeds": example()[:0]}, r"expected \[batch, width\]"),
        ({"version": 1}, {"image_embeds": example().long()}, "unexpected type I64"),
        ({"version": 1}, {"image_embeds": example() / 0}, "not finite"),
    ],
)
def test_foreign_files_with_a_true_checksum_say_what_is_wrong(
    tmp_path: Path, header: dict, tensors: dict, message: str
):
    checked_file.write(tmp_path / NAME, HEADER, header, tensors)
    with pytest.raises(EmbeddingFileError, match=message):
        load_embedding(tmp_path / NAME)


def test_other_files_are_refused(tmp_path: Path):
    for name, data in (("empty", b""), ("text", b"not an embedding at all"), ("zeros", bytes(4096))):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(EmbeddingFileError):
            load_embedding(tmp_path / name)
    with pytest.raises(EmbeddingFileError):
        load_embedding(tmp_path / "missing")
    save_file({"image_embeds": example()}, tmp_path / "foreign")
    with pytest.raises(EmbeddingFileError, match="no embedding header"):
        load_embedding(tmp_path / "foreign")
    checked_file.write(tmp_path / "other", "palimpsest.trajectory", {"version": 1}, {"image_embeds": example()})
    with pytest.raises(EmbeddingFileError, match="no embedding header"):
        load_embedding(tmp_path / "other")
