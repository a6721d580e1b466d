"""Every shipped workflow in the real frontend: it loads, it serialises, it runs."""

import json
import time
from pathlib import Path

import pytest
import torch
from browser.frontend import open_frontend
from browser.shipped_style import CHECKPOINT
from fixtures import checkpoints, subject_checkpoint
from fixtures.server_runs import lora_file
from host.client import Client
from host.server import Server
from playwright.sync_api import Browser
from safetensors.torch import load_file

pytestmark = pytest.mark.browser

ROOT = Path(__file__).resolve().parents[2]
API = Path(__file__).with_name("api_format")
FOLDERS = {"CheckpointLoaderSimple": "checkpoints", "PAL_LoadSubjectEncoder": "checkpoints", "LoraLoader": "loras"}
WORKFLOWS = sorted((ROOT / "example_workflows").glob("*.json"))


@pytest.fixture(scope="module")
def subject_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As published: a pickle of tensors."""
    file = tmp_path_factory.mktemp("subject") / "pytorch_model.bin"
    torch.save(load_file(subject_checkpoint.published()), file)
    return file


@pytest.fixture(scope="module")
def lora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lora_file(tmp_path_factory.mktemp("lora"))


def test_there_are_workflows_to_test():
    assert WORKFLOWS


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.stem)
def test_a_workflow_says_where_the_files_that_it_opens_with_go(file: Path):
    """All but the base checkpoint, which any of its kind can stand in for."""
    nodes = json.loads(file.read_text(encoding="utf-8"))["nodes"]
    said = " ".join(node["widgets_values"][0] for node in nodes if node["type"] == "MarkdownNote")
    for node in nodes:
        folder = FOLDERS.get(node["type"])
        if folder and node["widgets_values"][0] != CHECKPOINT:
            assert node["widgets_values"][0] in said and f"models/{folder}" in said


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.stem)
@pytest.mark.parametrize("vue_nodes", [False, True], ids=["canvas", "nodes2"])
def test_a_shipped_workflow_loads_and_runs(
    browser: Browser,
    server: Server,
    client: Client,
    photo: Path,
    subject_file: Path,
    lora: Path,
    screenshots: Path,
    file: Path,
    vue_nodes: bool,
):
    expected = json.loads((API / file.name).read_text(encoding="utf-8"))
    for node in expected.values():
        if node["class_type"] == "CheckpointLoaderSimple":
            server.link_model("checkpoints", checkpoints.sd15(), node["inputs"]["ckpt_name"])
        if node["class_type"] == "PAL_LoadSubjectEncoder":
            server.link_model("checkpoints", subject_file, node["inputs"]["ckpt_name"])
        if node["class_type"] == "LoraLoader":
            server.link_model("loras", lora, node["inputs"]["lora_name"])
        if node["class_type"] == "LoadImage":
            assert client.upload_image(photo, node["inputs"]["image"]) == node["inputs"]["image"]

    with open_frontend(browser, server.address, vue_nodes) as frontend:
        assert frontend.load(json.loads(file.read_text(encoding="utf-8"))) == []
        assert frontend.api_format() == expected
        if not vue_nodes:
            frontend.set_widgets({"steps": 2, "step": 1, "width": 64, "height": 64})
            frontend.queue()
            wait_until_idle(client)
            [entry] = client.get_json("/history", max_items="1").values()
            assert entry["status"]["status_str"] == "success", entry["status"]["messages"]
            assert set(entry["prompt"][2]) == set(expected)
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
