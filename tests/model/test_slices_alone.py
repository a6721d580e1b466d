"""A slice that cannot be loaded takes its own nodes away, and no others."""

import asyncio
import importlib
import shutil
import sys
import types
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path

import pytest
from palimpsest.nodes.extension import SLICES
from support.cases import cases
from support.host.provision import ROOT

pytestmark = [pytest.mark.model, pytest.mark.compat]


def nodes_of(folder: Path, name: str) -> set[str]:
    """The nodes that the pack in `folder` offers, imported as `name`."""
    package = types.ModuleType(name)
    package.__path__ = [str(folder)]
    sys.modules[name] = package
    try:
        extension = importlib.import_module(f"{name}.nodes.extension").PalimpsestExtension()
        with ThreadPoolExecutor(1) as beside:  # the browser's tests leave an event loop running in this thread
            nodes = beside.submit(asyncio.run, extension.get_node_list()).result()
        return {node.GET_SCHEMA().node_id for node in nodes}
    finally:
        for module in [module for module in sys.modules if module.split(".")[0] == name]:
            del sys.modules[module]


def own_nodes(part: str) -> set[str]:
    return {node.GET_SCHEMA().node_id for node in importlib.import_module(f"palimpsest.nodes.{part}.nodes").NODES}


@pytest.mark.parametrize(
    ("part", "file"),
    cases(
        product(SLICES, ("nodes.py", "algorithm")),
        (SLICES[0], "nodes.py"),
        (SLICES[1], "algorithm"),
        (SLICES[-1], "nodes.py"),
    ),
)
def test_a_broken_slice_leaves_the_others_loading_and_the_log_says_which_and_why(
    part: str, file: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    shutil.copytree(ROOT / "nodes", tmp_path / "nodes", ignore=shutil.ignore_patterns("__pycache__"))
    folder = tmp_path.joinpath("nodes", *part.split("."))
    algorithms = sorted(path for path in folder.glob("*.py") if path.name not in ("nodes.py", "__init__.py"))
    broken = folder / "nodes.py" if file == "nodes.py" or not algorithms else algorithms[0]
    broken.write_text(
        broken.read_text(encoding="utf-8") + '\nraise RuntimeError("broken on purpose")\n', encoding="utf-8"
    )

    found = nodes_of(tmp_path, f"broken_{part.replace('.', '_')}_{file.partition('.')[0]}")

    assert found == set().union(*(own_nodes(other) for other in SLICES if other != part))
    lines = [record.getMessage() for record in caplog.records if record.name == "palimpsest"]
    assert lines == [f"palimpsest: the nodes of {part} are left out: RuntimeError: broken on purpose"]
