import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from support.host.client import Client, Graph
from support.host.server import Server, ServerFailed

pytestmark = pytest.mark.server

TESTS = Path(__file__).resolve().parents[1]


@pytest.mark.compat
def test_the_pack_loads_and_the_log_has_nothing_else_to_say_of_it(server: Server):
    # Later tests make nodes fail on purpose, and the log tells of it.
    start = server.log.partition("Starting server")[0]
    lines = lines_on_the_pack(start, server)
    assert len(lines) == 1, lines
    assert lines[0].endswith(str(Path("custom_nodes", "palimpsest")))
    assert " seconds: " in lines[0]  # "(IMPORT FAILED)" stands between the two when it did


def lines_on_the_pack(log: str, server: Server) -> list[str]:
    """Those that name it, the folders set aside in which the server and what it runs on lie: they may have its name too."""
    for folder in (server.base, server.comfyui, sys.prefix):
        log = log.replace(str(folder), "")
    return [line for line in log.splitlines() if "palimpsest" in line.lower()]


@pytest.mark.parametrize("clone", ["palimpsest", "Palimpsest 2", "Kunst & Söhne/palimpsest nodes"])
def test_where_the_clone_lies_adds_no_line_on_the_pack_N1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clone: str):
    root = tmp_path / clone
    monkeypatch.setattr(sys, "prefix", str(root / ".venv"))
    server = Server(root / ".comfyui" / "0.30.0", tmp_path / "server")
    of_others = [
        f"[Prompt Server] web root: {root / '.venv' / 'lib' / 'comfyui_frontend_package' / 'static'}",
        f"** ComfyUI Path: {server.comfyui}",
        f"   0.1 seconds: {server.comfyui / 'custom_nodes' / 'websocket_image_save.py'}",
    ]
    of_the_pack = [f"   0.0 seconds: {server.base / 'custom_nodes' / 'palimpsest'}", "palimpsest: a slice did not load"]
    assert len(lines_on_the_pack("\n".join([*of_others, *of_the_pack]), server)) == 2


def test_the_server_talks_to_this_machine_only(server: Server, client: Client):
    connections = psutil.Process(server.process.pid).net_connections(kind="inet")
    assert any(connection.status == psutil.CONN_LISTEN for connection in connections)
    for connection in connections:
        assert connection.laddr.ip == "127.0.0.1", connection
        assert not connection.raddr or connection.raddr.ip == "127.0.0.1", connection


@pytest.mark.compat
def test_shutdown_leaves_nothing_behind(comfyui: Path, tmp_path: Path):
    server = Server(comfyui, tmp_path)
    server.start()
    with Client(server.address) as client:
        graph = Graph()
        graph.add("PreviewImage", images=graph.add("EmptyImage", width=8, height=8, batch_size=1, color=0)[0])
        assert client.run(graph).status == "success"
    family = [psutil.Process(server.process.pid), *psutil.Process(server.process.pid).children(recursive=True)]

    assert server.stop() == 0

    assert "Stopped server" in server.log
    assert "Traceback" not in server.log.split("Starting server")[1]
    assert not any(process.is_running() for process in family)
    host, port = server.address.split(":")
    with socket.socket() as probe:
        assert probe.connect_ex((host, int(port))) != 0
    assert not list((tmp_path / "temp").glob("*"))


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent died")
def test_the_server_dies_with_the_process_that_started_it(comfyui: Path, tmp_path: Path):
    script = (
        "import os, pathlib, signal, sys\n"
        "from support.host.server import Server\n"
        "Server.wait_until_ready = lambda self: None\n"
        "server = Server(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]))\n"
        "server.start()\n"
        "print(server.process.pid, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    command = [sys.executable, "-c", script, comfyui, tmp_path]
    killed = subprocess.run(command, cwd=TESTS, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    deadline = time.monotonic() + 30
    while psutil.pid_exists(int(killed.stdout)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not psutil.pid_exists(int(killed.stdout))


def test_a_server_that_cannot_start_shows_its_log(comfyui: Path, tmp_path: Path):
    with pytest.raises(ServerFailed, match=r"exit code 2[\s\S]*unrecognized arguments: --no-such-option"):
        Server(comfyui, tmp_path, arguments=("--no-such-option",)).start()
