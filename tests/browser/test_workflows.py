"""Every shipped workflow in the real frontend: it loads, it serialises, it runs."""

import io
import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from playwright.sync_api import Browser
from safetensors.torch import load_file
from support.fixtures import checkpoints, stock_unclip, subject_checkpoint, unclip_files
from support.fixtures.server_runs import lora_file
from support.host.client import Client
from support.host.frontend import open_frontend
from support.host.server import Server
from workflows.style import CHECKPOINT, SECOND_UPSAMPLER

pytestmark = pytest.mark.browser

ROOT = Path(__file__).resolve().parents[2]
API = Path(__file__).resolve().parents[1] / "workflows" / "api_format"
FOLDERS = {
    "CheckpointLoaderSimple": "checkpoints",
    "PAL_LoadSubjectEncoder": "checkpoints",
    "unCLIPCheckpointLoader": "checkpoints",
    "LoraLoader": "loras",
    "CLIPLoader": "text_encoders",
    "CLIPVisionLoader": "clip_vision",
    "PAL_LoadPrior": "diffusion_models",
    "PAL_LoadUnCLIPDecoder": "diffusion_models",
    "PAL_LoadUpsampler": "diffusion_models",
}
WEIGHTS = (".safetensors", ".ckpt", ".bin")
WORKFLOWS = sorted((ROOT / "example_workflows").glob("*.json"))


def pickled(file: Path, folder: Path) -> Path:
    """The same tensors as older files are published: in a pickle."""
    made = folder / f"{file.stem}.ckpt"
    if not made.exists():
        torch.save(load_file(file), made)
    return made


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Callable[[], Path]]]:
    """By loader and socket: makes the file that is linked under the name the workflow has there."""
    folder = tmp_path_factory.mktemp("files")
    lora, unclip = lora_file(folder), unclip_files.written(folder)
    return {
        "CheckpointLoaderSimple": {"ckpt_name": checkpoints.sd15},
        "PAL_LoadSubjectEncoder": {"ckpt_name": lambda: pickled(subject_checkpoint.published(), folder)},
        "unCLIPCheckpointLoader": {"ckpt_name": lambda: pickled(stock_unclip.sd21_unclip("l"), folder)},
        "LoraLoader": {"lora_name": lambda: lora},
        "CLIPLoader": {"clip_name": checkpoints.clip_l},
        "CLIPVisionLoader": {"clip_name": stock_unclip.clip_vision_l},
        "PAL_LoadPrior": {"prior_name": lambda: unclip["prior"]},
        "PAL_LoadUnCLIPDecoder": {"model_name": lambda: unclip["decoder"], "text_proj_name": lambda: unclip["text_proj"]},
        "PAL_LoadUpsampler": {
            "model_name": lambda: unclip["super_res_first"],
            "last_name": lambda: unclip["super_res_last"],
        },
    }  # fmt: skip


def test_there_are_workflows_to_test():
    assert WORKFLOWS


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.stem)
def test_a_workflow_says_where_the_files_that_it_opens_with_go(file: Path):
    """All but the base checkpoint, which any of its kind can stand in for."""
    nodes = json.loads(file.read_text(encoding="utf-8"))["nodes"]
    said = " ".join(node["widgets_values"][0] for node in nodes if node["type"] == "MarkdownNote")
    for node in nodes:
        if folder := FOLDERS.get(node["type"]):
            names = [str(value) for value in node["widgets_values"] if str(value).endswith(WEIGHTS)]
            assert names
            for name in names:
                assert name == CHECKPOINT or (name in said and f"models/{folder}" in said)


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.stem)
@pytest.mark.parametrize("vue_nodes", [False, True], ids=["canvas", "nodes2"])
def test_a_shipped_workflow_loads_and_runs(
    browser: Browser,
    server: Server,
    client: Client,
    photo: Path,
    stand_ins: dict,
    screenshots: Path,
    file: Path,
    vue_nodes: bool,
):
    expected = json.loads((API / file.name).read_text(encoding="utf-8"))
    provide(expected, server, client, photo, stand_ins)
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


def test_the_muted_second_upsampler_runs_once_it_is_unmuted(
    browser: Browser, server: Server, client: Client, photo: Path, stand_ins: dict
):
    name = "Text to picture with Karlo.json"
    provide(json.loads((API / name).read_text(encoding="utf-8")), server, client, photo, stand_ins)
    # One network for all steps, as DALL-E 2's is.
    server.link_model("diffusion_models", stand_ins["PAL_LoadUpsampler"]["model_name"](), SECOND_UPSAMPLER)
    with open_frontend(browser, server.address) as frontend:
        assert frontend.load(json.loads((ROOT / "example_workflows" / name).read_text(encoding="utf-8"))) == []
        frontend.unmute()
        frontend.set_widgets({"steps": 2, "scale": 2})
        frontend.queue()
        wait_until_idle(client)
        [entry] = client.get_json("/history", max_items="1").values()
    assert entry["status"]["status_str"] == "success", entry["status"]["messages"]
    [upsampler] = [node for node in entry["prompt"][2].values() if node["inputs"].get("model_name") == SECOND_UPSAMPLER]
    assert upsampler["inputs"]["last_name"] == "none"
    [large] = [
        key for key, node in entry["prompt"][2].items() if node["inputs"].get("filename_prefix") == "karlo_large"
    ]
    [shown] = entry["outputs"][large]["images"]
    assert Image.open(io.BytesIO(client.image(shown))).size == (256, 256)


def provide(nodes: dict[str, dict], server: Server, client: Client, photo: Path, stand_ins: dict) -> None:
    """Put what the nodes open, in API format, where the server finds it."""
    for node in nodes.values():
        for socket, made in stand_ins.get(node["class_type"], {}).items():
            server.link_model(FOLDERS[node["class_type"]], made(), node["inputs"][socket])
        if node["class_type"] == "LoadImage":
            assert client.upload_image(photo, node["inputs"]["image"]) == node["inputs"]["image"]


def wait_until_idle(client: Client, timeout: float = 600) -> None:
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        queue = client.get_json("/queue")
        if not queue["queue_running"] and not queue["queue_pending"]:
            return
        time.sleep(0.2)
    raise TimeoutError(f"The server was still busy after {timeout:.0f} s.")
