"""ComfyUI's real frontend in an installed Chromium or Chrome."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from playwright.sync_api import Browser, ConsoleMessage, Page, Request, TimeoutError, sync_playwright
from support.host.browser import find_browser

FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"),
    *("--disable-sync", "--disable-quic", "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1"),
)
PATIENCE = 60_000  # milliseconds for what a page is asked to do, on a machine that has other work
# With its first workflow in it, which a new profile opens by itself: one that came later would replace a test's.
READY = "() => window.app?.graph?.nodes.length && window.app.vueAppReady && window.LiteGraph?.registered_node_types?.KSampler"


@dataclass
class Frontend:
    """A page that shows the frontend, and what it did that a test may want to forbid."""

    page: Page
    renderer: str  # "canvas" or "nodes2"
    errors: list[str] = field(default_factory=list)  # uncaught errors, and console errors of the pack's own files
    outside: list[str] = field(default_factory=list)  # requests that left this machine

    def note_console(self, message: ConsoleMessage) -> None:
        if message.type == "error" and "/extensions/palimpsest/" in message.location.get("url", "") + message.text:
            self.errors.append(message.text)

    def note_request(self, request: Request) -> None:
        url = urlsplit(request.url)
        if url.scheme in ("http", "https", "ws", "wss") and url.hostname != "127.0.0.1":
            self.outside.append(request.url)

    def start_over(self) -> None:
        """An empty canvas, and nothing noted yet."""
        # Out of any subgraph first: the page's address names it, and a busy frontend goes back to what its address names
        # after the blank workflow was opened.
        self.page.evaluate("() => app.canvas.setGraph(app.rootGraph)")
        self.page.wait_for_function("() => !app.rootGraph.subgraphs.has(location.hash.slice(1))")
        for last in (False, False, True):
            self.page.evaluate("() => app.extensionManager.command.execute('Comfy.NewBlankWorkflow')")
            try:
                self.page.wait_for_function("() => app.graph.nodes.length === 0", timeout=10_000)
                break
            except TimeoutError:
                if last:
                    raise
        self.errors.clear()
        self.outside.clear()

    def load(self, workflow: dict) -> list[str]:
        """Open a workflow as a user would; returns the node types the frontend does not know."""
        return self.page.evaluate(
            """async workflow => {
                await app.loadGraphData(workflow)
                const graphs = [app.graph, ...(app.graph.subgraphs?.values() ?? [])]
                const nodes = graphs.flatMap(graph => graph.nodes)
                return nodes.filter(node => !node.isSubgraphNode?.() && !LiteGraph.registered_node_types[node.type])
                    .map(node => node.type)
            }""",
            workflow,
        )

    def api_format(self) -> dict[str, dict]:
        """The loaded workflow as the frontend would send it to /prompt."""
        return json.loads(self.page.evaluate("async () => JSON.stringify((await app.graphToPrompt()).output)"))

    def set_widgets(self, values: dict[str, object]) -> None:
        """Give every widget whose name is a key of `values` that value, in all nodes."""
        self.page.evaluate(
            """values => {
                for (const node of app.graph.nodes)
                    for (const widget of node.widgets ?? [])
                        if (widget.name in values) widget.value = values[widget.name]
            }""",
            values,
        )

    def unmute(self) -> None:
        """Let every muted node run."""
        self.page.evaluate(
            """() => {
                for (const node of app.graph.nodes)
                    if (node.mode === LiteGraph.NEVER) node.mode = LiteGraph.ALWAYS
            }"""
        )

    def queue(self) -> None:
        """Press Run."""
        self.page.evaluate("async () => { await app.queuePrompt(0, 1) }")

    def run(self, timeout: float = 300) -> None:
        """Press Run, and wait until the page has heard that the run has ended and has drawn what came of it."""
        self.page.evaluate(
            """async () => {
                window.runHasEnded = false
                app.api.addEventListener('executing', ({ detail }) => { window.runHasEnded ||= detail == null })
                await app.queuePrompt(0, 1)
            }"""
        )
        self.page.wait_for_function("() => window.runHasEnded", timeout=1000 * timeout)
        self.wait_for_redraws()

    def wait_for_redraws(self, count: int = 10) -> None:
        """Until the page has been drawn so often, which on a busy machine takes longer: what was changed is laid out then."""
        self.page.evaluate("async count => { while (count--) await new Promise(requestAnimationFrame) }", count)

    def toggle_focus_mode(self) -> None:
        """Hide everything but the canvas, or show it again."""
        self.page.evaluate("() => app.extensionManager.command.execute('Workspace.ToggleFocusMode')")

    def frame_graph(self, margin: int = 40) -> dict:
        """Bring the whole graph on the canvas into view; returns the part of the window it fills, for a screenshot."""
        clip = self.page.evaluate(
            """margin => {
                const graph = app.canvas.graph
                const items = [...graph.nodes.map(node => node.boundingRect ?? node.getBounding()),
                    ...graph.groups.map(group => [...group.pos, ...group.size]),
                    ...[graph.inputNode, graph.outputNode].filter(Boolean).map(end => end.boundingRect)]
                const left = Math.min(...items.map(r => r[0])), top = Math.min(...items.map(r => r[1]))
                const width = Math.max(...items.map(r => r[0] + r[2])) - left
                const height = Math.max(...items.map(r => r[1] + r[3])) - top
                const view = app.canvas.canvas.getBoundingClientRect()
                const scale = Math.min((view.width - 4 * margin) / width, (view.height - 2 * margin) / height, 1)
                app.canvas.ds.scale = scale
                app.canvas.ds.offset[0] = margin / scale - left
                app.canvas.ds.offset[1] = margin / scale - top
                app.canvas.setDirty(true, true)
                return {x: view.x, y: view.y, width: width * scale + 2 * margin, height: height * scale + 2 * margin}
            }""",
            margin,
        )
        self.wait_for_redraws()
        return clip


@contextmanager
def launch() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_browser(), args=list(FLAGS))
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def open_frontend(browser: Browser, address: str, vue_nodes: bool = False, language: str = "en") -> Iterator[Frontend]:
    """A new profile at the frontend of the server at `address`, classic canvas or Nodes 2.0, alone on the screen."""
    store_settings(
        address,
        {
            "Comfy.TutorialCompleted": True,
            "Comfy.Locale": language,
            "Comfy.VueNodes.Enabled": vue_nodes,
            "Comfy.VueNodes.AutoScaleLayout": False,
            "Comfy.Graph.CanvasInfo": False,
            "Comfy.Graph.CanvasMenu": False,
            "Comfy.Minimap.Visible": False,
            "Comfy.Workflow.ShowMissingModelsWarning": False,  # the oldest frontend's is a dialog over the page
        },
    )
    context = browser.new_context(viewport={"width": 1920, "height": 1200})
    context.set_default_timeout(PATIENCE)
    frontend = Frontend(context.new_page(), "nodes2" if vue_nodes else "canvas")
    frontend.page.on("console", frontend.note_console)
    frontend.page.on("pageerror", lambda error: frontend.errors.append(str(error)))
    context.on("request", frontend.note_request)
    try:
        frontend.page.goto(f"http://{address}/", timeout=120_000)
        frontend.page.wait_for_function(READY, timeout=180_000)
        frontend.toggle_focus_mode()
        yield frontend
    finally:
        context.close()


def store_settings(address: str, settings: dict[str, object]) -> None:
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"http://{address}/settings", json.dumps(settings).encode(), headers)
    urllib.request.urlopen(request, timeout=30).close()
