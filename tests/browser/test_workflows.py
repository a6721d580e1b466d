"""Every shipped workflow in the real frontend: it loads, it serialises, it runs."""

import json
import time
from pathlib import Path

import pytest
from browser.frontend import open_frontend
from host.client import Client
from host.server import Server
from playwright.sync_api import Browser

pytestmark = pytest.mark.browser

ROOT = Path(__file__).resolve().parents[2]
API = Path(__file__).with_name("api_format")
WORKFLOWS = sorted((ROOT / "example_workflows").glob("*.json"))


def test_there_are_workflows_to_test():
    assert WORKFLOWS


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.stem)
@pytest.mark.parametrize("vue_nodes", [False, True], ids=["canvas", "nodes2"])
def test_a_shipped_workflow_loads_and_runs(
    browser: Browser,
    server: Server,
    client: Client,
    sd15: str,
    photo: Path,
    screenshots: Path,
    file: Path,
    vue_nodes: bool,
):
    small = {"ckpt_name": sd15, "image": client.upload_image(photo), "steps": 2, "width": 64, "height": 64}
    with open_frontend(browser, server.address, vue_nodes) as frontend:
        assert frontend.load(json.loads(file.read_text(encoding="utf-8"))) == []
        shipped = frontend.api_format()
        assert shipped == json.loads((API / file.name).read_text(encoding="utf-8"))
        frontend.set_widgets(small)
        graph = frontend.api_format()
        assert set(graph) == set(shipped)
        if not vue_nodes:
            frontend.queue()
            wait_until_idle(client)
            [entry] = client.get_json("/history", max_items="1").values()
            assert entry["status"]["status_str"] == "success", entry["status"]["messages"]
            assert set(entry["prompt"][2]) == set(graph)
            assert entry["outputs"]
        frontend.frame_graph()
        frontend.page.screenshot(path=screenshots / f"{file.stem} {'nodes2' if vue_nodes else 'canvas'}.png")
    assert frontend.errors == []
    assert frontend.outside == []


def wait_until_idle(client: Client, timeout: float = 600) -> None:
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        queue = client.get_json("/queue")
        if not queue["queue_running"] and not queue["queue_pending"]:
            return
        time.sleep(0.2)
    raise TimeoutError(f"The server was still busy after {timeout:.0f} s.")
