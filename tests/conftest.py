from __future__ import annotations

import gc
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from xdist.scheduler import LoadScopeScheduling

TESTS = Path(__file__).resolve().parent
RINGS = ("unit", "model", "server", "browser")
COMFYUI_BASE = tempfile.TemporaryDirectory(prefix="palimpsest-test-")

sys.path.insert(0, str(TESTS))

from support.host.browser import why_left_out  # noqa: E402
from support.host.client import Client  # noqa: E402
from support.host.in_process import enter_comfyui, enter_pack  # noqa: E402
from support.host.provision import Missing, comfyui_location  # noqa: E402
from support.host.server import OTHERS, WITH_TOY, Server  # noqa: E402

# PyTorch's is what ComfyUI takes on most cards, and the fastest here; the oldest ring has what ComfyUI takes on a CPU.
KERNEL = {"use_pytorch_cross_attention": "COMFYUI_VERSION" not in os.environ}

enter_pack()


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """`-m unit` must not import the modules of rings it leaves out: they need ComfyUI, and it does not."""
    ring = ring_of(collection_path)
    if ring and ring not in wanted_rings(config):
        return True
    if ring == "browser" and why_left_out():
        return True
    if ring and ring != "unit":
        try:
            enter_comfyui(COMFYUI_BASE.name, **KERNEL)
        except Missing as missing:
            raise pytest.UsageError(str(missing)) from None
    return None


def wanted_rings(config: pytest.Config) -> set[str]:
    left_in = re.sub(r"\bnot\s*(\w+|\([^)]*\))", "", config.option.markexpr)
    return ({*re.findall(r"\w+", left_in)} & {*RINGS}) or {*RINGS}


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if "browser" in wanted_rings(config) and (why := why_left_out()):
        terminalreporter.write_line(why, yellow=True)


class ByRing(LoadScopeScheduling):
    """One process runs the browser's ring, which shares its pages, another the server's; what is left goes by the file."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        ring = ring_of(TESTS.parent / file)
        return ring if ring in ("browser", "server") else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> ByRing:
    return ByRing(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The rings that are run whole come first, so that no process waits for them at the end."""
    order = ("browser", "server", "model", "unit", None)
    items.sort(key=lambda item: order.index(ring_of(item.path)))


def pytest_collection_finish() -> None:
    """What the imports made stays alive: no collection need look through it, and those that free models come sooner."""
    gc.collect()
    gc.freeze()


def ring_of(path: Path) -> str | None:
    parts = path.relative_to(TESTS).parts if path.is_relative_to(TESTS) else ()
    return parts[0] if parts and parts[0] in RINGS else None


@pytest.fixture(scope="session")
def comfyui() -> Path:
    return comfyui_location()


@pytest.fixture(scope="session")
def server(comfyui: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One real server for the whole session, with the toy's loaders and what stands for other packs beside the pack."""
    with Server(comfyui, tmp_path_factory.mktemp("server"), {**WITH_TOY, **OTHERS}) as running:
        yield running


@pytest.fixture(scope="session")
def sd15(server: Server) -> str:
    """The name of a random SD1.5 checkpoint, as the server's CheckpointLoaderSimple lists it."""
    from support.fixtures import checkpoints  # builds on ComfyUI's classes, which only some rings have

    return server.link_model("checkpoints", checkpoints.sd15())


@pytest.fixture(scope="session")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A photograph of 64 x 64 pixels, quick to edit with the random checkpoint."""
    from support.fixtures.server_runs import photo_file

    return photo_file(tmp_path_factory.mktemp("photo"))


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    with Client(server.address) as connected:
        yield connected
