"""The mask of a running fusion on the sampler's node, as an artist sees it, in both of the frontend's renderers."""

import io
import time
from pathlib import Path

import numpy as np
import pytest
from browser.frontend import Frontend, open_frontend
from browser.test_workflows import wait_until_idle
from fixtures.server_runs import second_checkpoint_file
from host.client import Client
from host.graphs import saliency_fusion
from host.server import Server
from PIL import Image
from playwright.sync_api import Browser

pytestmark = [pytest.mark.browser, pytest.mark.slow]

SIZE = 128
STEPS = 200  # more than are waited for
SHOW_SAMPLER = """() => {
    const sampler = app.graph.nodes.find(node => node.type === 'SamplerCustomAdvanced')
    for (const node of app.graph.nodes) node.pos = [3000, 3000]
    sampler.pos = [100, 100]
    sampler.setSize([420, 560])
    app.canvas.ds.scale = 1
    app.canvas.ds.offset[0] = app.canvas.ds.offset[1] = 0
    app.canvas.setDirty(true, true)
}"""
NODE = {"x": 60, "y": 40, "width": 520, "height": 700}  # on the screen
HALVES = [
    (slice(200, 560), slice(60, 230)),
    (slice(200, 560), slice(270, 440)),
]  # of the preview, in NODE: rows, columns


@pytest.fixture(scope="module")
def second(server: Server, tmp_path_factory: pytest.TempPathFactory) -> str:
    return server.link_model("checkpoints", second_checkpoint_file(tmp_path_factory.mktemp("second")))


def left_half(sd15: str, second: str, seed: int) -> dict:
    """A fusion whose expert has the left half of the picture."""
    made = saliency_fusion(sd15, STEPS, second)
    made.graph[made.stock.latent.id]["inputs"].update(width=SIZE, height=SIZE)
    nothing = made.graph.add("SolidMask", value=0.0, width=SIZE, height=SIZE)
    half = made.graph.add("SolidMask", value=1.0, width=SIZE // 2, height=SIZE)
    mask = made.graph.add("MaskComposite", destination=nothing[0], source=half[0], x=0, y=0, operation="add")
    made.graph[made.guider.id]["inputs"].update(mask=mask[0], mask_use="decide", cfg=5.0 + seed)
    return made.graph


@pytest.mark.parametrize("vue_nodes", [False, True], ids=["canvas", "nodes2"])
def test_the_expert_s_places_are_tinted_while_sampling(
    browser: Browser, server: Server, client: Client, sd15: str, second: str, screenshots: Path, vue_nodes: bool
):
    with open_frontend(browser, server.address, vue_nodes) as frontend:
        frontend.page.evaluate("graph => app.loadApiJson(graph, 'fusion')", left_half(sd15, second, int(vue_nodes)))
        frontend.page.evaluate(SHOW_SAMPLER)
        frontend.queue()
        picture = wait_for_tint(frontend)
        picture.save(screenshots / f"fusion preview {'nodes2' if vue_nodes else 'canvas'}.png")
        client.interrupt()
        wait_until_idle(client)
    assert frontend.errors == []


def wait_for_tint(frontend: Frontend, timeout: float = 480) -> Image.Image:
    """A screenshot of the node whose preview is orange on the left, where noise of all colours alone is so by less than half."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        picture = Image.open(io.BytesIO(frontend.page.screenshot(clip=NODE, timeout=120_000))).convert("RGB")
        left, right = (orange_places(picture)[half].mean() for half in HALVES)
        if left > 0.85 and right < 0.65:
            return picture
        time.sleep(0.3)
    raise AssertionError("No preview with a mask on its left half was seen.")


def orange_places(picture: Image.Image) -> np.ndarray:
    red, _, blue = np.moveaxis(np.asarray(picture, dtype=float), -1, 0)
    return red - blue > 50
