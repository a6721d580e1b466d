from __future__ import annotations

import re
import sys
import tempfile
import types
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TESTS = ROOT / "tests"
RINGS = ("unit", "model", "server", "browser")
COMFYUI_BASE = tempfile.TemporaryDirectory(prefix="palimpsest-test-")

# ComfyUI has a module of the name `nodes`, which the pack's folder would shadow; the pack is imported as `palimpsest`.
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != ROOT]
sys.path.insert(0, str(TESTS))
pack = types.ModuleType("palimpsest")
pack.__path__ = [str(ROOT)]
sys.modules.setdefault("palimpsest", pack)

from host.client import Client  # noqa: E402
from host.provision import Missing, comfyui_location  # noqa: E402
from host.server import Server  # noqa: E402


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """`-m unit` must not import the modules of rings it leaves out: they need ComfyUI, and it does not."""
    wanted = re.findall(r"\w+", config.option.markexpr)
    ring = ring_of(collection_path)
    if ring and wanted and "not" not in wanted and ring not in wanted:
        return True
    if ring and ring != "unit":
        enter_comfyui()
    return None


def ring_of(path: Path) -> str | None:
    parts = path.relative_to(TESTS).parts if path.is_relative_to(TESTS) else ()
    return parts[0] if parts and parts[0] in RINGS else None


def enter_comfyui() -> None:
    """Make ComfyUI importable in this process, on the CPU and with its folders in a temporary place."""
    if "comfy" in sys.modules:
        return
    try:
        comfyui = comfyui_location()
    except Missing as missing:
        raise pytest.UsageError(str(missing)) from None
    if not (comfyui / "main.py").is_file():
        raise pytest.UsageError(f"No ComfyUI at {comfyui}: `make test` fetches it; COMFYUI_PATH names one you have.")
    sys.path.insert(0, str(comfyui))
    from comfy.cli_args import args  # reads no command line unless asked to

    args.cpu = True
    args.base_directory = COMFYUI_BASE.name


@pytest.fixture(scope="session")
def comfyui() -> Path:
    return comfyui_location()


@pytest.fixture(scope="session")
def server(comfyui: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One real server for the whole session."""
    with Server(comfyui, tmp_path_factory.mktemp("server")) as running:
        yield running


@pytest.fixture(scope="session")
def sd15(server: Server) -> str:
    """The name of a random SD1.5 checkpoint, as the server's CheckpointLoaderSimple lists it."""
    from fixtures import checkpoints  # builds on ComfyUI's classes, which only some rings have

    return server.link_model("checkpoints", checkpoints.sd15())


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    with Client(server.address) as connected:
        yield connected
