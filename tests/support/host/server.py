"""A real ComfyUI server with this pack in it, on the loopback interface, for as long as a `with` block lasts."""

from __future__ import annotations

import ctypes
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

PACK = Path(__file__).resolve().parents[3]
# Patches and loaders of other packs, for the tests.
OTHERS = {"others": PACK / "tests" / "support" / "fixtures" / "other_nodes"}
WITH_TOY = {"palimpsest": PACK, "toy": PACK / "tests" / "lab" / "world" / "pack"}
PR_SET_PDEATHSIG = 1  # linux/prctl.h: the signal a process gets when its parent dies
ANSI = re.compile(r"\x1b\[[0-9;]*m")
# No library of the server may reach out: all that the tests and the demo use is on this machine.
OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "1"}


class ServerFailed(RuntimeError):
    """The server stopped or never answered; carries the end of its log."""


class Server:
    """`main.py` of the ComfyUI at `comfyui`, with a base directory of its own at `base`.

    `packs` maps a folder name under custom_nodes to the folder linked there; `arguments` are added to the command line.
    """

    def __init__(
        self,
        comfyui: Path,
        base: Path,
        packs: dict[str, Path] | None = None,
        arguments: tuple[str, ...] = (),
        timeout: float = 300,
        cpu: bool = True,
    ):
        self.comfyui = comfyui
        self.base = base
        self.packs = packs or {"palimpsest": PACK}
        self.arguments = arguments
        self.timeout = timeout
        self.cpu = cpu
        self.process: subprocess.Popen | None = None
        self.address = ""

    def __enter__(self) -> Server:
        self.start()
        return self

    def __exit__(self, *exception) -> None:
        self.stop()

    @property
    def log(self) -> str:
        return ANSI.sub("", (self.base / "server.log").read_text(errors="replace"))

    def link_model(self, kind: str, file: Path, name: str | None = None) -> str:
        """Put a model file into models/<kind> ("checkpoints", ...) by a link; returns the name nodes know it by."""
        link = self.base / "models" / kind / (name or file.name)
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.exists():
            link.symlink_to(file.resolve())
        return link.name

    def start(self) -> None:
        for folder in ("custom_nodes", "user", "models"):
            (self.base / folder).mkdir(parents=True, exist_ok=True)
        for name, folder in self.packs.items():
            link = self.base / "custom_nodes" / name
            if not link.exists():
                link.symlink_to(folder.resolve(), target_is_directory=True)
        port = free_port()
        self.address = f"127.0.0.1:{port}"
        with (self.base / "server.log").open("wb") as log:
            self.process = subprocess.Popen(
                self.command(port),
                cwd=self.base,
                env={**os.environ, **OFFLINE, "PYTHONUNBUFFERED": "1"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                preexec_fn=tie_to_parent,
            )
        try:
            self.wait_until_ready()
        except BaseException:
            self.stop()
            raise

    def command(self, port: int) -> list[str]:
        return [
            *(sys.executable, str(self.comfyui / "main.py")),
            *(["--cpu"] if self.cpu else []),
            *("--listen", "127.0.0.1", "--port", str(port)),
            *("--base-directory", str(self.base)),
            *("--database-url", f"sqlite:///{self.base / 'user' / 'comfyui.db'}"),
            *("--disable-all-custom-nodes", "--whitelist-custom-nodes", *self.packs),
            *("--disable-api-nodes", "--preview-method", "latent2rgb"),
            *self.arguments,
        ]

    def wait_until_ready(self) -> None:
        deadline = time.monotonic() + self.timeout
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise ServerFailed(f"ComfyUI stopped with exit code {self.process.returncode} at start:\n{self.tail()}")
            try:
                with urllib.request.urlopen(f"http://{self.address}/system_stats", timeout=5):
                    return
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                time.sleep(0.2)
        raise ServerFailed(f"ComfyUI did not answer at {self.address} within {self.timeout:.0f} s:\n{self.tail()}")

    def stop(self, timeout: float = 60) -> int:
        """End the server as Ctrl-C does, or by force after `timeout` seconds; returns its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            try:
                self.process.wait(timeout)
            except subprocess.TimeoutExpired:
                self.process.kill()
        return self.process.wait()

    def tail(self, lines: int = 40) -> str:
        return "\n".join(self.log.splitlines()[-lines:])


def tie_to_parent() -> None:
    """Run in the server's process before it becomes ComfyUI."""
    # What a shell runs in the background is born deaf to SIGINT, and SIGINT is how the server is stopped.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
