"""What the pack draws is in no workflow and no prompt, and it works inside a subgraph."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Route, expect
from support.cases import cases
from support.host.drawn import open_drawn
from support.host.frontend import Frontend, open_frontend
from support.host.server import PACK, Server

pytestmark = pytest.mark.browser

PANELS = "() => app.graph.nodes.flatMap(node => node.widgets ?? []).filter(w => w.name.startsWith('palimpsest')).length"
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
    for (let redraws = 0; redraws < 10; redraws++) await new Promise(requestAnimationFrame)
    const saved = app.graph.serialize()
    const graphs = [saved, ...(saved.definitions?.subgraphs ?? [])]
    for (const node of graphs.flatMap(graph => graph.nodes)) delete node.size
    return JSON.stringify([saved, (await app.graphToPrompt()).output])
}"""


def without_scripts(route: Route) -> None:
    """The frontend's list of what to load, as if the pack had no js/."""
    scripts = route.fetch().json()
    route.fulfill(json=[name for name in scripts if not name.startswith("/extensions/palimpsest/")])


@pytest.mark.parametrize("frontend", cases(["canvas", "nodes2"], "nodes2"), indirect=True)
def test_workflows_and_prompts_are_the_same_without_the_scripts(frontend: Frontend, browser: Browser, server: Server):
    folder = PACK / "example_workflows"
    workflows = [json.loads((folder / f"{name}.json").read_text(encoding="utf-8")) for name in WITH_PANELS]
    saved = [frontend.page.evaluate(SAVED, workflow) for workflow in workflows]
    open_drawn(frontend, seed=3)
    assert frontend.page.evaluate(PANELS)
    with open_frontend(browser, server.address, frontend.renderer == "nodes2") as bare:
        bare.page.route("**/api/extensions", without_scripts)
        bare.page.reload()
        bare.page.wait_for_function("() => window.app?.graph?.nodes.length && window.app.vueAppReady")
        assert [bare.page.evaluate(SAVED, workflow) for workflow in workflows] == saved
        open_drawn(bare, seed=3)
        assert not bare.page.evaluate(PANELS)


def test_a_run_is_saved_as_if_nothing_had_been_drawn(frontend: Frontend):
    open_drawn(frontend, seed=4 if frontend.renderer == "canvas" else 5)
    before = saved_now(frontend)
    frontend.run()
    expect(frontend.page.locator(".palimpsest-result", has_text="PSNR")).to_be_visible()
    assert saved_now(frontend) == before
    assert frontend.errors == []


def test_text_reads_on_light_and_dark_themes(canvas: Frontend, screenshots: Path):
    brightness = """([low, high]) => {
        const [r, g, b] = getComputedStyle(document.querySelector('.palimpsest')).color.match(/\\d+/g).map(Number)
        return Math.max(r, g, b) >= low && Math.max(r, g, b) <= high
    }"""
    choose = "theme => app.extensionManager.setting.set('Comfy.ColorPalette', theme)"
    open_drawn(canvas, seed=6)
    canvas.run()
    for theme, readable in (("light", [0, 129]), ("dark", [180, 255])):
        canvas.page.evaluate(choose, theme)
        canvas.page.wait_for_function(brightness, arg=readable)
        canvas.page.screenshot(path=screenshots / f"drawn {theme}.png")


def saved_now(frontend: Frontend) -> str:
    """All but what core itself saves of a run: the text of Preview as Text, and that a node with a picture has widgets."""
    return frontend.page.evaluate(
        """async () => {
            const saved = app.graph.serialize()
            const { output } = await app.graphToPrompt()
            for (const node of saved.nodes) {
                delete node.size
                if (node.type === 'PreviewAny') delete output[node.id].inputs.preview
                if (node.type === 'PreviewAny' || !node.widgets_values?.length) {
                    delete node.widgets_values
                    delete node.widgets_values_named
                }
            }
            return JSON.stringify([saved, output])
        }"""
    )


def test_it_is_drawn_inside_a_subgraph(frontend: Frontend, screenshots: Path):
    page = frontend.page
    open_drawn(frontend, seed=7 if frontend.renderer == "canvas" else 8)
    page.evaluate(
        """() => {
            const inside = app.graph.nodes.filter(node => ['PAL_AttentionMask', 'PAL_CompareImages'].includes(node.type))
            app.graph.convertToSubgraph(new Set(inside))
        }"""
    )
    frontend.run()
    page.evaluate(
        """() => {
            const box = app.graph.nodes.find(node => node.isSubgraphNode?.())
            app.canvas.openSubgraph(box.subgraph, box)
        }"""
    )
    frontend.wait_for_redraws()
    frontend.frame_graph()
    page.screenshot(path=screenshots / f"drawn in a subgraph {frontend.renderer}.png")
    expect(page.locator(".palimpsest-result", has_text="PSNR")).to_be_visible()
    page.locator(".palimpsest-chips .palimpsest-chip", has_text="red").click()
    words = "() => app.canvas.graph.nodes.find(n => n.type === 'PAL_AttentionMask').widgets.find(w => w.name === 'words').value"
    assert page.evaluate(words) == "circle, red"
    assert frontend.errors == []
