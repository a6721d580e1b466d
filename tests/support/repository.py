"""The files of this repository, and those of them that the Comfy registry's archive holds."""

from __future__ import annotations

import shutil
import subprocess
from fnmatch import fnmatch

from support.host.provision import ROOT


def repository_files() -> list[str]:
    """What git tracks, or without git all that is there and not named in .gitignore; by their paths from the root."""
    if shutil.which("git") and (ROOT / ".git").exists():
        listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
        return [name for name in listing.decode().split("\0") if name and (ROOT / name).is_file()]
    ignored = [line.strip("/") for line in (ROOT / ".gitignore").read_text(encoding="utf-8").split()]
    found = [path.relative_to(ROOT) for path in ROOT.rglob("*") if path.is_file()]
    return [
        path.as_posix()
        for path in found
        if not any(fnmatch(part, pattern) for part in path.parts for pattern in ignored)
    ]


def packed_files() -> list[str]:
    """As comfy-cli's `node pack` chooses them: what .comfyignore does not name."""
    from pathspec import GitIgnoreSpec  # of no use to those who only want the list of files

    lines = (ROOT / ".comfyignore").read_text(encoding="utf-8").splitlines()
    ignored = GitIgnoreSpec.from_lines(lines)
    return [name for name in repository_files() if not ignored.match_file(name)]
