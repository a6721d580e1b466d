"""What the pack draws is in no workflow and no prompt, and it works inside a subgraph."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Route, expect
from support.host.client import Client
from support.host.drawn import open_drawn
from support.host.frontend import Frontend, open_frontend
from support.host.server import PACK, Server

pytestmark = pytest.mark.browser

RENDERERS = pytest.mark.parametrize("vue_nodes", [False, True], ids=["canvas", "nodes2"])
WITH_PANELS = (
    "Swap a word in a photo",
    "Mask by a word, then inpaint",
    "Plug-and-Play on a photo",
    "A subject in a scene",
    "Invert and reconstruct",
)
# The panel of a node that is smaller than the panel needs makes it grow, which is the only thing that a file may tell.
SAVED = """async workflow => {
    await app.loadGraphData(workflow)
    await new Promise(done => setTimeout(done, 500))
    const saved = app.graph.serialize()
    const graphs = [saved, ...(saved.definitions?.subgraphs ?? [])]
    for (const node of graphs.flatMap(graph => graph.nodes)) delete node.size
    return JSON.stringify([saved, (await app.graphToPrompt()).output])
}"""


@pytest.fixture(scope="module")
def toy_server(comfyui: Path, tmp_path_factory: pytest.TempPathFactory):
    packs = {"palimpsest": PACK, "palimpsest_toy": PACK / "tests" / "lab" / "toy" / "pack"}
    with Server(comfyui, tmp_path_factory.mktemp("drawn"), packs) as running:
        yield running


def without_scripts(route: Route) -> None:
    """The frontend's list of what to load, as if the pack had no js/."""
    scripts = route.fetch().json()
    route.fulfill(json=[name for name in scripts if not name.startswith("/extensions/palimpsest/")])


@RENDERERS
def test_workflows_and_prompts_are_the_same_without_the_scripts(browser: Browser, toy_server: Server, vue_nodes: bool):
    folder = PACK / "example_workflows"
    workflows = [json.loads((folder / f"{name}.json").read_text(encoding="utf-8")) for name in WITH_PANELS]
    saved: list[list[str]] = []
    for scripts in (True, False):
        with open_frontend(browser, toy_server.address, vue_nodes) as frontend:
            if not scripts:
                frontend.page.route("**/api/extensions", without_scripts)
                frontend.page.reload()
                frontend.page.wait_for_function("() => window.app?.graph?.nodes.length && window.app.vueAppReady")
            panels = "() => app.graph.nodes.flatMap(node => node.widgets ?? []).filter(w => w.name.startsWith('palimpsest')).length"
            saved.append([frontend.page.evaluate(SAVED, workflow) for workflow in workflows])
            open_drawn(frontend, seed=3)
            assert bool(frontend.page.evaluate(panels)) == scripts
    assert saved[0] == saved[1]


@RENDERERS
def test_a_run_is_saved_as_if_nothing_had_been_drawn(browser: Browser, toy_server: Server, vue_nodes: bool):
    with Client(toy_server.address) as client, open_frontend(browser, toy_server.address, vue_nodes) as frontend:
        open_drawn(frontend, seed=4 + vue_nodes)
        before = saved_now(frontend)
        frontend.queue()
        expect(frontend.page.locator(".palimpsest-result", has_text="PSNR")).to_be_visible(timeout=300_000)
        client.wait_until_idle()
        assert saved_now(frontend) == before
    assert frontend.errors == []


def test_text_reads_on_light_and_dark_themes(browser: Browser, toy_server: Server, screenshots: Path):
    brightness = """() => Math.max(...getComputedStyle(document.querySelector('.palimpsest')).color.match(/\\d+/g).map(Number))"""
    for theme, readable in (("light", range(130)), ("dark", range(180, 256))):
        with Client(toy_server.address) as client, open_frontend(browser, toy_server.address) as frontend:
            frontend.page.evaluate("theme => app.extensionManager.setting.set('Comfy.ColorPalette', theme)", theme)
            open_drawn(frontend, seed=len(theme))
            frontend.queue()
            expect(frontend.page.locator(".palimpsest-result", has_text="PSNR")).to_be_visible(timeout=300_000)
            client.wait_until_idle()
            frontend.page.screenshot(path=screenshots / f"drawn {theme}.png")
            assert frontend.page.evaluate(brightness) in readable


def saved_now(frontend: Frontend) -> str:
    return frontend.page.evaluate(
        """async () => {
            const saved = app.graph.serialize()
            for (const node of saved.nodes) delete node.size
            return JSON.stringify([saved, (await app.graphToPrompt()).output])
        }"""
    )


@RENDERERS
def test_it_is_drawn_inside_a_subgraph(browser: Browser, toy_server: Server, screenshots: Path, vue_nodes: bool):
    with Client(toy_server.address) as client, open_frontend(browser, toy_server.address, vue_nodes) as frontend:
        page = frontend.page
        open_drawn(frontend, seed=6 + vue_nodes)
        page.evaluate(
            """() => {
                const inside = app.graph.nodes.filter(node => ['PAL_AttentionMask', 'PAL_CompareImages'].includes(node.type))
                app.graph.convertToSubgraph(new Set(inside))
            }"""
        )
        frontend.queue()
        page.wait_for_timeout(1000)
        client.wait_until_idle()
        page.evaluate(
            """() => {
                const box = app.graph.nodes.find(node => node.isSubgraphNode?.())
                app.canvas.openSubgraph(box.subgraph, box)
            }"""
        )
        page.wait_for_timeout(1000)
        frontend.frame_graph()
        page.screenshot(path=screenshots / f"drawn in a subgraph {'nodes2' if vue_nodes else 'canvas'}.png")
        expect(page.locator(".palimpsest-result", has_text="PSNR")).to_be_visible()
        page.locator(".palimpsest-chips .palimpsest-chip", has_text="red").click()
        words = "() => app.canvas.graph.nodes.find(n => n.type === 'PAL_AttentionMask').widgets.find(w => w.name === 'words').value"
        assert page.evaluate(words) == "circle, red"
    assert frontend.errors == []
