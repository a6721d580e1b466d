"""What a shipped workflow shows first: where it begins, large enough to read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.host.frontend import Frontend
from support.host.server import PACK

pytestmark = pytest.mark.browser

KARLO = PACK / "example_workflows" / "Text to picture with Karlo.json"
# As the template browser opens one, and as undoing does.
OPEN = "workflow => app.loadGraphData(workflow, true, true, workflow.id, {openSource: 'template'})"
UNDO = "async () => { await app.loadGraphData(app.graph.serialize(), false, false) }"
VIEW = "() => ({scale: app.canvas.ds.scale, offset: [...app.canvas.ds.offset]})"
MOVE = "view => Object.assign(app.canvas.ds, view)"


def test_a_template_opens_where_it_begins_and_undoing_moves_nothing(frontend: Frontend, screenshots: Path):
    workflow, page = json.loads(KARLO.read_text(encoding="utf-8")), frontend.page
    page.evaluate(OPEN, workflow)
    assert page.evaluate(VIEW) == workflow["extra"]["ds"]
    frontend.wait_for_redraws()
    assert not page.evaluate("() => app.canvas.low_quality")
    page.screenshot(path=screenshots / f"template {frontend.renderer}.png")
    elsewhere = {"scale": 1, "offset": [10, 20]}
    page.evaluate(MOVE, elsewhere)
    page.evaluate(UNDO)
    assert page.evaluate(VIEW) == elsewhere
    assert frontend.errors == []
