"""Lists of saved files, names chosen from them, and names to save under, in ComfyUI's own folders."""

from __future__ import annotations

import os
import time
from pathlib import Path

import folder_paths
import pytest
import torch
from palimpsest.nodes.files.saved_files import TICK, invalid_choice, next_file, resolve, saved_files
from palimpsest.nodes.inversion.nodes import LoadTrajectory
from palimpsest.nodes.unclip.embeddings.embedding_io import save_embedding
from palimpsest.nodes.unclip.embeddings.nodes import LoadEmbedding, SaveEmbedding

pytestmark = pytest.mark.model

SUFFIX = ".embedding.safetensors"


@pytest.fixture
def folders(tmp_path, monkeypatch) -> Path:
    """Of ComfyUI, new for each test: output and input."""
    for kind in ("output", "input"):
        (tmp_path / kind).mkdir()
        monkeypatch.setattr(folder_paths, f"{kind}_directory", str(tmp_path / kind))
    return tmp_path


@pytest.fixture
def looks(monkeypatch) -> list[str]:
    """Every folder that is looked into."""
    seen: list[str] = []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda folder: seen.append(str(folder)) or scandir(folder))
    return seen


def touch(file: Path) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.touch()
    return file


def settle() -> None:
    time.sleep(2 * TICK / 1e9)


def test_files_of_both_folders_and_of_those_in_them_are_listed_by_kind(folders):
    for name in (
        f"output/b{SUFFIX}",
        f"output/sub/a{SUFFIX}",
        f"input/c{SUFFIX}",
        "output/a.trajectory.safetensors",
        "output/d.png",
    ):
        touch(folders / name)
    assert saved_files(SUFFIX) == [f"b{SUFFIX} [output]", f"sub/a{SUFFIX} [output]", f"c{SUFFIX} [input]"]
    assert saved_files(".trajectory.safetensors") == ["a.trajectory.safetensors [output]"]


@pytest.mark.parametrize("change", ["new", "new in a folder", "new folder", "gone", "renamed", "at once"])
def test_F18_what_changed_is_listed_the_next_time(folders, change):
    old = touch(folders / f"output/sub/old{SUFFIX}")
    if change != "at once":
        settle()
    assert saved_files(SUFFIX) == [f"sub/old{SUFFIX} [output]"]
    if change == "new":
        touch(folders / f"output/new{SUFFIX}")
    elif change in ("new in a folder", "at once"):
        touch(folders / f"output/sub/new{SUFFIX}")
    elif change == "new folder":
        touch(folders / f"output/sub/deep/er/new{SUFFIX}")
    elif change == "renamed":
        old.rename(old.with_name(f"new{SUFFIX}"))
    else:
        old.unlink()
    assert saved_files(SUFFIX) == sorted(
        f"{path.relative_to(folders / 'output').as_posix()} [output]"
        for path in (folders / "output").rglob(f"*{SUFFIX}")
    )


def test_F18_a_list_is_made_once_and_a_name_is_checked_without_one(folders, looks):
    """Fault F18: each queue walked through both folders several times."""
    file = folders / f"output/sub/a{SUFFIX}"
    file.parent.mkdir()
    save_embedding(torch.ones(1, 4), file)
    settle()
    for _ in range(3):
        LoadEmbedding.INPUT_TYPES()
        LoadTrajectory.INPUT_TYPES()
    assert sorted(looks) == sorted(str(folders / name) for name in ("output", "output/sub", "input"))
    looks.clear()
    name = f"sub/a{SUFFIX} [output]"
    assert LoadEmbedding.validate_inputs(name) is True
    LoadEmbedding.fingerprint_inputs(name)
    LoadEmbedding.execute(name)
    assert looks == []


@pytest.mark.long
@pytest.mark.newest
def test_F18_a_queue_with_100_000_files_in_the_output_folder_takes_less_than_a_fifth_of_a_second(folders):
    for i in range(100):
        (folders / f"output/{i}").mkdir()
        for j in range(1000):
            os.close(os.open(folders / f"output/{i}/ComfyUI_{j:05}_.png", os.O_CREAT))
    name = f"a{SUFFIX} [output]"
    save_embedding(torch.ones(1, 4), folders / f"output/a{SUFFIX}")
    settle()
    assert saved_files(SUFFIX) == [name]
    start = time.process_time()
    for _ in range(6):  # more often than a queue asks
        LoadEmbedding.INPUT_TYPES()
    LoadEmbedding.validate_inputs(name)
    LoadEmbedding.fingerprint_inputs(name)
    LoadEmbedding.execute(name)
    assert time.process_time() - start < 0.2


def test_F18_links_and_dots_do_not_lead_out_of_the_folders(folders):
    secret = touch(folders / f"outside/secret{SUFFIX}")
    inside = touch(folders / f"output/real{SUFFIX}")
    (folders / "output/linked").symlink_to(secret.parent, target_is_directory=True)
    (folders / f"output/link{SUFFIX}").symlink_to(secret)
    (folders / f"output/own{SUFFIX}").symlink_to(inside)
    (folders / f"output/broken{SUFFIX}").symlink_to(folders / "nowhere")
    (folders / "output/loop").symlink_to(folders / "output", target_is_directory=True)
    assert saved_files(SUFFIX) == [f"own{SUFFIX} [output]", f"real{SUFFIX} [output]"]
    for name in (
        f"linked/secret{SUFFIX} [output]", f"link{SUFFIX} [output]", f"../outside/secret{SUFFIX} [output]", f"{secret} [output]",
        f"broken{SUFFIX} [output]", f"real{SUFFIX}", f"real{SUFFIX} [temp]", f"real{SUFFIX} [input]", "real [output]", "", "[output]",
        f"{'x' * 5000}{SUFFIX} [output]", f"a\0b{SUFFIX} [output]", f"loop/../../outside/secret{SUFFIX} [output]",
    ):  # fmt: skip
        assert "is not in the output or input folder. Choose one from the list." in invalid_choice("file", name, SUFFIX)
        with pytest.raises(ValueError, match=r"^file: expected a saved file, got .{1,210}, which is not in "):
            resolve("file", name, SUFFIX)
    assert resolve("file", f"own{SUFFIX} [output]", SUFFIX) == inside


def test_a_folder_of_comfyui_may_be_a_link_itself(folders, monkeypatch):
    touch(folders / f"elsewhere/a{SUFFIX}")
    (folders / "linked").symlink_to(folders / "elsewhere", target_is_directory=True)
    monkeypatch.setattr(folder_paths, "output_directory", str(folders / "linked"))
    assert saved_files(SUFFIX) == [f"a{SUFFIX} [output]"]
    assert invalid_choice("file", f"a{SUFFIX} [output]", SUFFIX) is None
    assert next_file("b", SUFFIX)[0].parent == folders / "linked"


def test_folders_that_are_not_there_hold_no_files(folders, monkeypatch):
    monkeypatch.setattr(folder_paths, "output_directory", str(folders / "nowhere"))
    assert saved_files(SUFFIX) == []


@pytest.mark.parametrize(
    "prefix", ["x" * 240, "ä" * 120, f"{'deep/' * 2000}x", "a\0b", "../x", "sub/../../x", "linked/x"]
)
def test_R12_a_name_that_no_file_can_have_is_refused_by_its_socket(folders, prefix):
    """Fault R12: an overlong name was a raw error of the operating system."""
    (folders / "outside").mkdir()
    (folders / "output/linked").symlink_to(folders / "outside", target_is_directory=True)
    with pytest.raises(ValueError, match=r"^filename_prefix: expected a folder and a name .*, got .{1,210}, .* Use a "):
        SaveEmbedding.execute(torch.ones(1, 4), prefix)
    assert list((folders / "outside").iterdir()) == []
    assert not any(path.is_file() for path in folders.rglob("*"))


def test_the_longest_names_that_a_file_can_have_are_saved(folders):
    name = "x" * (255 - len(f"_00001_{SUFFIX}.partial"))
    SaveEmbedding.execute(torch.ones(1, 4), f"sub/{name}")
    assert saved_files(SUFFIX) == [f"sub/{name}_00001_{SUFFIX} [output]"]
