"""Every shipped workflow in the real frontend: it loads, it serialises to what its description says, it runs."""

import io
import json
from itertools import product
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import Browser
from support.cases import cases
from support.fixtures.shipped import StandIns, provide, stand_ins
from support.host.client import Client
from support.host.frontend import Frontend, open_frontend
from support.host.server import Server
from workflows.api_format import api_format
from workflows.description import Workflow
from workflows.families import QWEN
from workflows.files_and_colours import SECOND_UPSAMPLER
from workflows.shipped import WORKFLOWS

pytestmark = pytest.mark.browser

SHIPPED = Path(__file__).resolve().parents[2] / "example_workflows"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> StandIns:
    return stand_ins(tmp_path_factory.mktemp("files"))


@pytest.fixture(scope="module")
def object_info(server: Server) -> dict[str, dict]:
    with Client(server.address) as client:
        return client.object_info()


def read(workflow: Workflow) -> dict:
    return json.loads((SHIPPED / f"{workflow.name}.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("frontend", "workflow"),
    cases(
        product(("canvas", "nodes2"), WORKFLOWS),
        *product(["canvas"], WORKFLOWS),
        *product(["nodes2"], WORKFLOWS[::5]),
    ),
    indirect=["frontend"],
    ids=lambda value: getattr(value, "name", value),
)
def test_a_shipped_workflow_loads_and_is_as_described(
    frontend: Frontend, object_info: dict, screenshots: Path, workflow: Workflow
):
    """What it does when it runs is tested on the server, in test_shipped_workflows.py."""
    assert frontend.load(read(workflow)) == []
    assert frontend.api_format() == api_format(workflow, object_info)
    frontend.frame_graph()
    frontend.page.screenshot(path=screenshots / f"{workflow.name} {frontend.renderer}.png")
    assert frontend.errors == []
    assert frontend.outside == []


def test_comfyui_links_every_file_that_is_missing(browser: Browser, server: Server, screenshots: Path):
    [qwen] = [workflow for workflow in WORKFLOWS if workflow.name.endswith(QWEN.suffix)]
    models = [model for node in read(qwen)["nodes"] for model in node["properties"].get("models", [])]
    assert len(models) == 3
    with open_frontend(browser, server.address) as frontend:
        frontend.toggle_focus_mode()
        frontend.load(read(qwen))
        frontend.page.get_by_role("button", name="View details").click()
        rows = frontend.page.get_by_test_id("missing-model-importable-rows")
        rows.get_by_role("button", name="Download").nth(len(models) - 1).wait_for()
        frontend.page.screenshot(path=screenshots / "missing files.png")
        shown = rows.inner_text().replace("Download\n", "").removesuffix("\nDownload").split("\n")
        assert sorted(zip(shown[::2], shown[1::2], strict=True)) == sorted((m["name"], m["directory"]) for m in models)
        for model in models:
            with frontend.page.context.expect_event("request", lambda asked, url=model["url"]: asked.url == url):
                rows.get_by_role("button", name=f"Download {model['name']}").click()


def test_the_muted_second_upsampler_runs_once_it_is_unmuted(
    canvas: Frontend, server: Server, client: Client, photo: Path, files: StandIns, object_info: dict
):
    [karlo] = [workflow for workflow in WORKFLOWS if workflow.name == "Text to picture with Karlo"]
    provide(api_format(karlo, object_info), server, client, photo, files)
    # One network for all steps, as DALL-E 2's is.
    server.link_model("diffusion_models", files["diffusion_models", SECOND_UPSAMPLER](), SECOND_UPSAMPLER)
    assert canvas.load(read(karlo)) == []
    canvas.unmute()
    canvas.set_widgets({"steps": 2, "scale": 2})
    canvas.queue()
    client.wait_until_idle()
    [entry] = client.get_json("/history", max_items="1").values()
    assert entry["status"]["status_str"] == "success", entry["status"]["messages"]
    [upsampler] = [node for node in entry["prompt"][2].values() if node["inputs"].get("model_name") == SECOND_UPSAMPLER]
    assert upsampler["inputs"]["last_name"] == "none"
    [large] = [
        key for key, node in entry["prompt"][2].items() if node["inputs"].get("filename_prefix") == "karlo_large"
    ]
    [shown] = entry["outputs"][large]["images"]
    assert Image.open(io.BytesIO(client.image(shown))).size == (256, 256)
