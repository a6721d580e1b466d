"""Files of the pack come into ComfyUI by a button of their load node, in both renderers."""

from pathlib import Path

import pytest
from palimpsest.nodes.inversion.trajectory_io import save_trajectory
from playwright.sync_api import expect
from support.fixtures.trajectories import example
from support.host.frontend import Frontend
from support.host.server import Server

pytestmark = pytest.mark.browser

ADD = """type => {
    const node = LiteGraph.createNode(type)
    node.pos = [200, 200]
    app.graph.add(node)
    return node.widgets.map(widget => widget.name)
}"""
# Where the classic canvas has drawn the button.
BUTTON = """() => {
    const [node] = app.graph.nodes
    const { y, last_y } = node.widgets.find(widget => widget.type === "button")
    const { scale, offset } = app.canvas.ds
    const { left, top } = app.canvas.canvas.getBoundingClientRect()
    return [left + (node.pos[0] + 80 + offset[0]) * scale, top + (node.pos[1] + (last_y ?? y) + 10 + offset[1]) * scale]
}"""
CHOSEN = "name => app.graph.nodes[0].widgets[0].value === name"


def choose(frontend: Frontend, file: Path) -> None:
    page = frontend.page
    with page.expect_file_chooser() as opened:
        if frontend.renderer == "canvas":
            frontend.wait_for_redraws()
            page.mouse.click(*page.evaluate(BUTTON))
        else:
            page.get_by_role("button", name="choose file to upload").click()
    opened.value.set_files(file)


def test_a_trajectory_is_uploaded_chosen_and_never_replaced(frontend: Frontend, server: Server, tmp_path: Path):
    name = f"{frontend.renderer}.trajectory.safetensors"
    file = tmp_path / name
    save_trajectory(example(), file)
    assert frontend.page.evaluate(ADD, "PAL_LoadTrajectory") == ["trajectory_file", "choose file to upload"]
    choose(frontend, file)
    frontend.page.wait_for_function(CHOSEN, arg=f"{name} [input]")
    assert (server.base / "input" / name).read_bytes() == file.read_bytes()
    [node] = frontend.api_format().values()
    assert node["inputs"] == {"trajectory_file": f"{name} [input]"}

    first = file.read_bytes()
    file.write_bytes(b"another")
    choose(frontend, file)
    second = f"{frontend.renderer} (1).trajectory.safetensors"
    frontend.page.wait_for_function(CHOSEN, arg=f"{second} [input]")
    assert (server.base / "input" / name).read_bytes() == first
    assert (server.base / "input" / second).read_bytes() == b"another"

    other = tmp_path / "other.safetensors"
    other.write_bytes(b"x")
    choose(frontend, other)
    expect(frontend.page.get_by_text("ends in .trajectory.safetensors, got other.safetensors")).to_be_visible()
    assert not (server.base / "input" / other.name).exists()


@pytest.mark.parametrize("type_name", ["PAL_LoadConditioning", "PAL_LoadEmbedding"])
def test_the_other_files_of_the_pack_have_the_button_too(canvas: Frontend, type_name: str):
    assert canvas.page.evaluate(ADD, type_name)[1] == "choose file to upload"
