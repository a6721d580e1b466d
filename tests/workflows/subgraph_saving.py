"""Make a subgraph blueprint, one box for many nodes, in the real frontend and save it as its "Publish Subgraph" writes it.

with Server(...) as server, launch() as browser, open_frontend(browser, server.address) as frontend:
    save_blueprint(frontend, Blueprint("Name", ...), folder)
"""

from __future__ import annotations

import json
import uuid
from pathlib import Path

from playwright.sync_api import Request
from support.host.frontend import Frontend
from workflows.description import Blueprint
from workflows.saving import NAMESPACE, build, write_json

SELECT_ALL = "() => app.canvas.selectItems([...app.graph.nodes, ...app.graph.groups])"
CONVERT = "() => app.extensionManager.command.execute('Comfy.Graph.ConvertToSubgraph')"

# Sockets in the order of the description, in place of those that the frontend guesses; then the two ends of the inside
# beside its nodes.
ENCLOSE = """({name, description, inputs, outputs, width}) => {
    const [box] = app.canvas.selectedItems
    const inside = box.subgraph
    for (const input of [...inside.inputs]) inside.removeInput(input)
    const slotOf = (slots, [id, wanted]) => {
        const node = inside.getNodeById(id)
        const slot = node[slots].find(slot => slot.name === wanted)
        if (!slot) throw new Error(`${node.type} has no socket ${wanted}, but ${node[slots].map(s => s.name)}.`)
        return [slot, node]
    }
    const connect = (made, slot, node) => {
        if (!made.connect(slot, node)) throw new Error(`${made.name} does not fit ${node.type}.${slot.name}.`)
    }
    for (const [name, targets] of inputs) {
        const ends = targets.map(target => slotOf('inputs', target))
        const made = inside.addInput(name, ends[0][0].type)
        for (const [slot, node] of ends) connect(made, slot, node)
    }
    for (const [name, source] of outputs) {
        const [slot, node] = slotOf('outputs', source)
        connect(inside.addOutput(name, slot.type), slot, node)
    }
    box.title = inside.name = name
    inside.description = description
    box.setPos(0, 0)
    box.setSize([width, box.computeSize()[1]])
    const rects = [...inside.nodes.map(node => node.boundingRect), ...inside.groups.map(group => group.boundingRect)]
    const [left, top] = [0, 1].map(axis => Math.min(...rects.map(rect => rect[axis])))
    const right = Math.max(...rects.map(rect => rect[0] + rect[2]))
    for (const [end, x] of [[inside.inputNode, left - 260], [inside.outputNode, right + 100]]) {
        end.pos = [x, top]
        end.arrange()
    }
}"""

PUBLISH = "name => ({published: app.extensionManager.command.execute('Comfy.PublishSubgraph', {metadata: {name}})})"
IS_PUBLISHED = """async name => {
    const published = await fetch('/userdata?dir=subgraphs')
    return published.ok && (await published.json()).includes(`${name}.json`)
}"""


def save_blueprint(frontend: Frontend, blueprint: Blueprint, folder: Path) -> Path:
    """Write `<name>.json` to `folder`. The same description gives the same file."""
    page = frontend.page
    ids = build(frontend, blueprint.inside)
    page.evaluate(SELECT_ALL)
    page.evaluate(CONVERT)
    page.evaluate(
        ENCLOSE,
        {
            "name": blueprint.name,
            "description": blueprint.description,
            "inputs": [
                [name, [(ids[key], slot) for key, slot in targets]] for name, targets in blueprint.inputs.items()
            ],
            "outputs": [[name, (ids[key], slot)] for name, (key, slot) in blueprint.outputs.items()],
            "width": blueprint.width,
        },
    )
    file = folder / f"{blueprint.name}.json"
    write_json(file, with_lasting_ids(publish(frontend, blueprint.name), blueprint))
    return file


def publish(frontend: Frontend, name: str) -> dict:
    """What the frontend stores when the selected box is published to the node library."""
    known = frontend.page.evaluate(IS_PUBLISHED, name)
    with frontend.page.expect_request(stores_a_blueprint) as stored:
        publishing = frontend.page.evaluate_handle(PUBLISH, name)
        if known:
            frontend.page.get_by_role("button", name="Overwrite").click()
        publishing.evaluate("({published}) => published")
    return json.loads(stored.value.post_data)


def stores_a_blueprint(request: Request) -> bool:
    return request.method == "POST" and "/userdata/subgraphs%2F" in request.url


def with_lasting_ids(saved: dict, blueprint: Blueprint) -> dict:
    """The random identifiers replaced by lasting ones, and the place in the node library, which publishing does not ask for."""
    [box], [inside] = saved["nodes"], saved["definitions"]["subgraphs"]
    box["type"] = inside["id"] = str(uuid.uuid5(NAMESPACE, f"subgraph {blueprint.name}"))
    for direction in ("inputs", "outputs"):
        for slot in inside[direction]:
            slot["id"] = str(uuid.uuid5(NAMESPACE, f"subgraph {blueprint.name} {direction} {slot['name']}"))
    inside["category"] = blueprint.category
    return saved
