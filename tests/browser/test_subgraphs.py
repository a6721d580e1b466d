"""Every shipped subgraph blueprint in the real frontend: found in the search, dropped as one box, wired and run."""

import copy
import io
import re
from itertools import product
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import TimeoutError
from support.cases import cases
from support.fixtures.shipped import StandIns, provide, stand_ins
from support.host.client import Client, Run
from support.host.frontend import Frontend
from support.host.server import Server
from workflows.api_format import api_format
from workflows.description import Blueprint
from workflows.files_and_colours import FOLDERS
from workflows.shipped import BLUEPRINTS, WORKFLOWS

pytestmark = pytest.mark.browser

FLAT = {workflow.name: workflow for workflow in WORKFLOWS}
QUICK = {"steps": 2, "width": 64, "height": 64}
OTHERS = {
    "cfg": 3.0,
    "guidance": 2.0,
    "cross_end": 0.5,
    "self_end": 1.0,
    "threshold": 0.4,
    "denoise": 0.5,
    "seed": 7,
    "grow": 2,
}
WORDS = {
    "source_text": "a red cat",
    "text": "a red cat",
    "target_text": "a blue cat",
    "blend_words": "cat",
    "words": "cat",
}
SOCKETS = {"model": "MODEL", "clip": "CLIP", "vae": "VAE", "image": "IMAGE"}
OUTPUTS = {"image": ("SaveImage", "images"), "mask": ("MaskPreview", "mask")}

BOX = """() => {
    const [box] = app.graph.nodes
    return {
        title: box.title,
        inputs: box.inputs.filter(input => !input.widget).map(input => [input.name, input.type]),
        outputs: box.outputs.map(output => [output.name, output.type]),
        values: box.widgets.map(widget => [widget.name, widget.value]),
    }
}"""
WIRE = """({loaders, ends, picture, outputs}) => {
    const [box] = app.graph.nodes
    const add = (type, values, x, y) => {
        const node = LiteGraph.createNode(type)
        node.pos = [x, y]
        app.graph.add(node)
        for (const [name, value] of Object.entries(values)) node.widgets.find(w => w.name === name).value = value
        return node
    }
    const sources = Object.fromEntries(loaders.map(([key, type, values], n) => [key, add(type, values, -800, 220 * n)]))
    sources.picture = add('LoadImage', {image: picture}, -400, 0)
    const slot = (slots, name) => slots.findIndex(slot => slot.name === name)
    const made = [
        ...ends.map(([name, key, output]) =>
            sources[key].connect(slot(sources[key].outputs, output), box, slot(box.inputs, name))),
        ...Object.entries(outputs).map(([name, [type, socket]]) => {
            const node = add(type, {}, type === 'SaveImage' ? 800 : 1200, 0)
            return box.connect(slot(box.outputs, name), node, slot(node.inputs, socket))
        }),
    ]
    return made.every(Boolean)
}"""
ENTER = "() => { const [box] = app.graph.nodes; app.canvas.openSubgraph(box.subgraph, box) }"
OVERLAPS = """() => {
    const nodes = app.canvas.graph.nodes
    const apart = ([a, b, c, d], [e, f, g, h]) => a + c <= e || e + g <= a || b + d <= f || f + h <= b
    return nodes.flatMap((one, i) => nodes.slice(i + 1)
        .filter(other => !apart(one.boundingRect, other.boundingRect)).map(other => [one.title, other.title]))
}"""


def drop(frontend: Frontend, name: str) -> None:
    """Add a box to the empty canvas as an artist does: a double click, its name, Enter, and a click to put it down.

    The oldest frontend puts it down by itself.
    """
    page = frontend.page
    search = page.get_by_placeholder(re.compile(r"^(Add a node|Search Nodes)\.\.\.$"))
    for _ in range(20):  # on a busy machine the canvas may take the two clicks for single ones
        page.mouse.dblclick(700, 300)
        try:
            search.wait_for(timeout=3000)
            break
        except TimeoutError:
            continue
    search.fill(name)
    found = page.get_by_text(re.compile(r"^Subgraph Blueprints( / palimpsest)?$")).first
    found.wait_for()
    page.keyboard.press("Enter")
    found.wait_for(state="hidden")
    page.wait_for_function("() => app.graph.nodes.length === 1")
    frontend.wait_for_redraws()
    if page.evaluate("() => app.canvas.state.ghostNodeId != null"):
        page.mouse.click(700, 300)
        page.wait_for_function("() => app.canvas.state.ghostNodeId == null")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> StandIns:
    return stand_ins(tmp_path_factory.mktemp("files"))


def ends_of(blueprint: Blueprint) -> list[tuple[str, str, str]]:
    """The box's input, the key of the node of its workflow that feeds it, and that node's output."""
    sources = {(target, slot): (key, str(output)) for key, output, target, slot in FLAT[blueprint.name].links}
    return [(name, *sources[blueprint.inputs[name][0]]) for name in SOCKETS]


def loaders_of(blueprint: Blueprint, files: StandIns, server: Server) -> list[tuple[str, str, dict[str, object]]]:
    """Key, type and widgets of the nodes that load the model, each file under a name of the box's own.

    So nothing of a box's run is a cached output of its workflow's.
    """
    feeding, made = {key for _, key, _ in ends_of(blueprint)} - {"picture"}, []
    for node in FLAT[blueprint.name].nodes:
        if node.key in feeding:
            folder, widgets = FOLDERS[node.type], dict(node.widgets)
            for widget, name in node.widgets.items():
                if (folder, name) in files:
                    widgets[widget] = server.link_model(folder, files[folder, name](), f"box-{name}")
            made.append((node.key, node.type, widgets))
    return made


@pytest.mark.parametrize(
    ("frontend", "blueprint"),
    cases(
        product(("canvas", "nodes2"), BLUEPRINTS),
        ("canvas", BLUEPRINTS[0]),
        ("nodes2", BLUEPRINTS[1]),
    ),
    indirect=["frontend"],
    ids=lambda value: getattr(value, "name", value),
)
def test_a_box_is_found_dropped_wired_and_draws_what_its_workflow_draws_and_inverts_once(
    frontend: Frontend,
    server: Server,
    client: Client,
    photo: Path,
    files: StandIns,
    screenshots: Path,
    blueprint: Blueprint,
):
    loaders = loaders_of(blueprint, files, server)
    picture = client.upload_image(photo)
    changes = [QUICK, {name: value for name, value in {**QUICK, **OTHERS, **WORDS}.items() if name in blueprint.inputs}]
    drop(frontend, blueprint.name)
    box = frontend.page.evaluate(BOX)
    assert box["title"] == blueprint.name
    assert box["inputs"] == [list(socket) for socket in SOCKETS.items()]
    assert [name for name, _ in box["outputs"]] == list(blueprint.outputs)
    assert [name for name, _ in box["values"]] == list(blueprint.inputs)[4:]

    outputs = {name: OUTPUTS[name] for name in blueprint.outputs}
    wiring = {"loaders": loaders, "ends": ends_of(blueprint), "picture": picture, "outputs": outputs}
    assert frontend.page.evaluate(WIRE, wiring)
    show(frontend, screenshots / f"{blueprint.name} box {frontend.renderer}.png")
    graphs = []
    for values in changes:
        frontend.set_widgets(values)
        graphs.append(frontend.api_format())
    frontend.page.evaluate(ENTER)
    show(frontend, screenshots / f"{blueprint.name} inside {frontend.renderer}.png")
    assert len(frontend.page.evaluate("() => app.canvas.graph.nodes.map(node => node.id)")) == len(
        blueprint.inside.nodes
    )
    assert frontend.page.evaluate(OVERLAPS) == []
    assert frontend.errors == []
    assert frontend.outside == []

    flat = api_format(FLAT[blueprint.name], client.object_info())
    provide(flat, server, client, photo, files)
    for graph, values in zip(graphs, changes, strict=True):
        same = with_values(flat, blueprint, values, picture)
        assert {spec["class_type"] for spec in graph.values()} <= {spec["class_type"] for spec in same.values()}
        if frontend.renderer == "canvas":
            assert drawn(client, hurried(same)) == drawn(client, hurried(graph))
    if frontend.renderer == "canvas":
        other_words(graph)
        run = client.run(graph)
        assert run.status == "success", run.error
        executed = {graph[key]["class_type"] for key in run.executed if key}
        assert "VAEDecode" in executed
        assert executed & {"PAL_DDIMInvert", "PAL_NullTextOptimize"} == set()


def show(frontend: Frontend, file: Path) -> None:
    frontend.page.screenshot(path=file, clip=frontend.frame_graph())


def hurried(graph: dict[str, dict]) -> dict[str, dict]:
    """With two steps also where the box has no widget for their number."""
    for spec in graph.values():
        if spec["class_type"] == "BasicScheduler":
            spec["inputs"]["steps"] = min(spec["inputs"]["steps"], QUICK["steps"])
    return graph


def other_words(graph: dict[str, dict]) -> None:
    for spec in graph.values():
        if spec["class_type"] == "PAL_EncodePromptEdit":
            spec["inputs"]["target_text"] = "a green cat"
        elif spec["_meta"]["title"] == "What it becomes":
            spec["inputs"]["text"] = "a green cat"


def with_values(
    flat: dict[str, dict], blueprint: Blueprint, values: dict[str, object], picture: str
) -> dict[str, dict]:
    """The shipped workflow with the values of the box where they belong."""
    graph = copy.deepcopy(flat)
    keys = {node.key: str(number) for number, node in enumerate(FLAT[blueprint.name].nodes, 1)}
    for name, value in values.items():
        for key, widget in blueprint.inputs[name]:
            assert widget in graph[keys[key]]["inputs"]
            graph[keys[key]]["inputs"][widget] = value
    graph[keys["picture"]]["inputs"]["image"] = picture
    return graph


def drawn(client: Client, graph: dict) -> dict[str, bytes]:
    """The pixels of the result, and of the mask if there is one."""
    run = client.run(graph)
    assert run.status == "success", run.error
    assert "VAEDecode" in {graph[key]["class_type"] for key in run.executed if key}
    return {
        node["class_type"]: pixels(client, run, key)
        for key, node in graph.items()
        if node["class_type"] in ("SaveImage", "MaskPreview")
    }


def pixels(client: Client, run: Run, key: str) -> bytes:
    [item] = run.outputs[key]["images"]
    picture = Image.open(io.BytesIO(client.image(item)))
    assert picture.size == (64, 64)
    return picture.tobytes()
