"""What a node says beside its sockets: its help page, and the text it shows after a run."""

import json
import re
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Locator, Page, TimeoutError, expect
from support.cases import cases
from support.host.client import Client
from support.host.frontend import Frontend, open_frontend
from support.host.server import Server

pytestmark = pytest.mark.browser

ROOT = Path(__file__).resolve().parents[2]
WORKFLOW = ROOT / "example_workflows" / "Invert and reconstruct.json"
PLACE = """type => {
    app.graph.clear()
    const node = LiteGraph.createNode(type)
    node.pos = [400, 300]
    app.graph.add(node)
    app.canvas.ds.scale = 1
    app.canvas.ds.offset[0] = app.canvas.ds.offset[1] = 0
    app.canvas.setDirty(true, true)
}"""


@pytest.mark.parametrize("language", cases(["en", "zh", "ja"], "zh"))
def test_the_help_of_a_node_is_its_page(browser: Browser, server: Server, screenshots: Path, language: str):
    pages = ROOT / "js" / "docs"
    file = pages / "PAL_DDIMInvert.md" if language == "en" else pages / "PAL_DDIMInvert" / f"{language}.md"
    page = file.read_text(encoding="utf-8")
    title, opening, *_ = page.split("\n\n")
    missing: list[str] = []
    with open_frontend(browser, server.address, language=language) as frontend:
        frontend.page.on("response", lambda answer: missing.append(answer.url) if answer.status == 404 else None)
        frontend.page.evaluate(PLACE, "PAL_DDIMInvert")
        assert frontend.page.evaluate("() => app.graph.nodes[0].title") == title.removeprefix("# ")
        frontend.page.evaluate(PLACE, "PAL_PromptToPrompt")
        drawn = json.loads((ROOT / f"locales/{language}/main.json").read_text(encoding="utf-8"))["palimpsest"]
        expect(frontend.page.locator(".palimpsest-window").first).to_contain_text(drawn["cross-attention"])
        frontend.page.evaluate(PLACE, "PAL_DDIMInvert")
        info = select_until_it_has_buttons(frontend.page)
        frontend.toggle_focus_mode()  # which would hide the panel
        info.click(timeout=60_000)
        shown = frontend.page.locator(".node-help-content")
        expect(shown).to_contain_text(opening, timeout=120_000)
        expect(shown.locator("table")).to_have_count(page.count("|---|---|\n"))
        assert shown.locator("img").evaluate("picture => picture.decode().then(() => picture.naturalWidth)") > 0
        frontend.page.screenshot(path=screenshots / f"help {language}.png")
    # The frontend looks for a page in the artist's language first, and its console says where there is none.
    translated = [url for url in missing if url.endswith(f"/docs/PAL_DDIMInvert/{language}.md")]
    assert len(frontend.errors) == len(translated) == (language == "en")


def select_until_it_has_buttons(page: Page, attempts: int = 10) -> Locator:
    """Click the placed node; while the frontend is still loading its toolbox, a selection gets no buttons."""
    info = page.get_by_test_id("info-button").first
    for _ in range(attempts):
        page.mouse.click(1200, 900)
        page.mouse.click(460, 285)
        try:
            info.wait_for(timeout=10_000)
        except TimeoutError:
            continue
        return info
    raise AssertionError("The selected node never got its buttons.")


def test_nodes_show_their_figures_after_a_run(
    frontend: Frontend, client: Client, sd15: str, photo: Path, screenshots: Path
):
    small = {"ckpt_name": sd15, "image": client.upload_image(photo), "steps": 2, "width": 64, "height": 64}
    # A node whose output is cached does not run, and then has nothing to say: each run differs in one value.
    small["iterations"] = 3 if frontend.renderer == "canvas" else 4
    assert frontend.load(json.loads(WORKFLOW.read_text(encoding="utf-8"))) == []
    frontend.set_widgets(small)
    frontend.frame_graph()
    frontend.queue()
    for text in (r"residual \d\.\de[+-]\d\d", r"PSNR \d+\.\d\d dB\s+SSIM 0\.\d{4}"):
        expect(frontend.page.get_by_text(re.compile(text)).first).to_be_visible(timeout=300_000)
    client.wait_until_idle()
    frontend.page.screenshot(path=screenshots / f"text on nodes {frontend.renderer}.png")
    assert frontend.errors == []
