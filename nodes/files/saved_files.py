"""The files that the pack's Save nodes wrote, as its Load nodes list them: "folder/name.suffix [output]", as folder_paths reads it."""

from __future__ import annotations

import os
import time
from functools import lru_cache
from pathlib import Path

import folder_paths

ENDING = ".safetensors"  # of every file of the pack
TICK = 100_000_000  # nanoseconds: a folder that changes twice within one may keep its time


class Listing:
    """The names of the pack's files below a folder. It looks again once a folder there has changed.

    Links to folders are not followed, and links to files outside are left out.
    """

    def __init__(self, root: Path):
        self._root = root
        self._looked = 0
        self._changed: dict[str, int] = {}  # when each folder was last changed
        self._names: list[str] = []

    def names(self, suffix: str) -> list[str]:
        same = all(_changed(folder) == at < self._looked - TICK for folder, at in self._changed.items())
        if not (self._looked and same):
            self._look()
        return [name for name in self._names if name.endswith(suffix)]

    def _look(self) -> None:
        self._looked, self._changed, found = time.time_ns(), {}, []
        folders = [str(self._root)]
        while folders:
            folder = folders.pop()
            self._changed[folder] = _changed(folder)
            try:
                entries = list(os.scandir(folder))
            except OSError:  # it is not there, or may not be read
                continue
            folders += [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
            files = [entry for entry in entries if entry.name.endswith(ENDING) and entry.is_file()]
            found += [entry.path for entry in files if not entry.is_symlink() or _inside(self._root, entry.path)]
        self._names = sorted(Path(path).relative_to(self._root).as_posix() for path in found)


@lru_cache(maxsize=8)
def _listing(root: Path) -> Listing:
    return Listing(root)


def saved_files(suffix: str) -> list[str]:
    """Files of the output and input folders. suffix: as in .trajectory.safetensors."""
    return [
        f"{name} [{kind}]"
        for kind, directory in _directories().items()
        for name in _listing(directory.resolve()).names(suffix)
    ]


def invalid_choice(socket: str, name: str, suffix: str) -> str | None:
    """What is wrong with a name given to `socket`, if anything is: only files that could be listed are read."""
    if _find(name, suffix) is not None:
        return None
    return f"{socket}: expected a saved file, got {name!r:.200}, which is not in the output or input folder. Choose one from the list."


def resolve(socket: str, name: str, suffix: str) -> Path:
    path = _find(name, suffix)
    if path is None:
        raise ValueError(invalid_choice(socket, name, suffix))
    return path


def fingerprint(path: Path) -> str:
    stat = path.stat()
    return f"{path.name} {stat.st_size} {stat.st_mtime_ns}"


def size_line(path: Path) -> str:
    """What a Save node shows of the file that it wrote."""
    size = path.stat().st_size
    return f"{path.name}, {size / 2**20:.1f} MB" if size >= 2**20 / 10 else f"{path.name}, {size / 2**10:.1f} KB"


def next_file(filename_prefix: str, suffix: str) -> tuple[Path, dict[str, str]]:
    """A file of the output folder that is not there yet, and how ComfyUI names it to the browser."""
    output = _directories()["output"]
    try:
        folder, name, counter, subfolder, _ = folder_paths.get_save_image_path(filename_prefix, str(output))
        path = Path(folder) / f"{name}_{counter:05}_{suffix}"
        if not _inside(output.resolve(), path):
            raise ValueError("it leads out of the output folder")
        probe = path.with_name(f"{path.name}.partial")  # the longest name that saving needs
        probe.touch()
        probe.unlink()
    except Exception as error:  # core's own, for a folder outside, is a bare Exception
        why = str(error).strip("* \n").splitlines()[0][:200]
        raise ValueError(
            f"filename_prefix: expected a folder and a name for a file in the output folder, got {filename_prefix!r:.200}, which "
            f"cannot be written ({why}). Use a shorter or simpler name."
        ) from error
    return path, {"filename": path.name, "subfolder": subfolder, "type": "output"}


def _directories() -> dict[str, Path]:
    return {
        "output": Path(folder_paths.get_output_directory()),
        "input": Path(folder_paths.get_input_directory()),
    }


def _find(name: str, suffix: str) -> Path | None:
    file, directory = folder_paths.annotated_filepath(name)
    root = next((root for root in _directories().values() if directory is not None and root == Path(directory)), None)
    if root is None or not file.strip().endswith(suffix):
        return None
    try:
        path = (root / file.strip()).resolve()
        return path if _inside(root.resolve(), path) and path.is_file() else None
    except (OSError, ValueError):  # a name that no file can have: too long, or with a null byte
        return None


def _inside(root: Path, path: Path | str) -> bool:
    return Path(path).resolve().is_relative_to(root)


def _changed(folder: str) -> int:
    """When entries of the folder were last added or removed; 0 if it is not there."""
    try:
        return os.stat(folder).st_mtime_ns
    except OSError:
        return 0
