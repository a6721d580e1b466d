"""Build a described workflow in the real frontend and save it as the frontend writes it.

with Server(...) as server, launch() as browser, open_frontend(browser, server.address) as frontend:
    save_workflow(frontend, Workflow("Name", nodes=[...], links=[...]), folder)
"""

from __future__ import annotations

import json
import uuid
from dataclasses import asdict
from pathlib import Path

from support.host.frontend import Frontend
from workflows.description import NodeSpec, Workflow
from workflows.files_and_colours import FOLDERS, URLS

SCALE = 0.8
BARS = (100, 120)  # pixels of the window at its left and at its top
TITLE = 30  # pixels of a node that are above its position
NAMESPACE = uuid.UUID("7d0c9b1e-6d5f-4c0e-9a53-1f1f0f5a2b7c")

BUILD = """workflow => {
    app.clean()  // or pictures of the workflow before enlarge the nodes that have their nodes' numbers
    app.graph.clear()
    app.graph.id = crypto.randomUUID()  // the frontend remembers values by graph, node number and widget
    const made = {}
    for (const spec of workflow.nodes) {
        const node = LiteGraph.createNode(spec.type)
        if (!node) throw new Error(`Unknown node type ${spec.type}.`)
        node.pos = spec.pos
        app.graph.add(node)
        for (const [name, value] of Object.entries(spec.widgets)) {
            const widget = node.widgets?.find(widget => widget.name === name)
            if (!widget) throw new Error(`${spec.type} has no widget ${name}, but ${node.widgets?.map(w => w.name)}.`)
            widget.value = value
            widget.callback?.(value, app.canvas, node)
        }
        if (spec.title) node.title = spec.title
        if (spec.color) node.color = spec.color
        if (spec.models.length) node.properties.models = spec.models
        if (spec.muted) node.mode = LiteGraph.NEVER
        if (spec.size) node.setSize(spec.size)
        made[spec.key] = node
    }
    const slot = (slots, wanted, node) => {
        const at = typeof wanted === 'number' ? wanted : slots.findIndex(slot => slot.name === wanted)
        if (!slots[at]) throw new Error(`${node.type} has no socket ${wanted}, but ${slots.map(s => s.name)}.`)
        return at
    }
    for (const [from, output, to, input] of workflow.links) {
        const [source, target] = [made[from], made[to]]
        if (!source || !target) throw new Error(`No node ${source ? to : from} for the link ${from} -> ${to}.`)
        const link = source.connect(slot(source.outputs, output, source), target, slot(target.inputs, input, target))
        if (!link) throw new Error(`${from}.${output} does not fit ${to}.${input}.`)
    }
    for (const spec of workflow.notes) {
        const note = LiteGraph.createNode('MarkdownNote')
        note.pos = spec.pos
        app.graph.add(note)
        note.widgets[0].value = spec.text
        note.title = spec.title
        note.setSize(spec.size)
    }
    for (const spec of workflow.groups) {
        const group = new LiteGraph.LGraphGroup(spec.title)
        group.pos = spec.pos
        group.size = spec.size
        group.color = spec.color
        app.graph.add(group)
    }
    return Object.fromEntries(Object.entries(made).map(([key, node]) => [key, node.id]))
}"""


def build(frontend: Frontend, workflow: Workflow) -> dict[str, int]:
    """Replace what the canvas shows by the described workflow; returns the node's number by its key."""
    described = asdict(workflow)
    for node, spec in zip(described["nodes"], workflow.nodes, strict=True):
        node["models"] = models_of(spec)
    return frontend.page.evaluate(BUILD, described)


def models_of(spec: NodeSpec) -> list[dict[str, str]]:
    """What ComfyUI's dialog for missing models says of the files that a loader opens with."""
    names = [name for name in spec.widgets.values() if name in URLS and spec.type in FOLDERS]
    return [{"name": name, "url": URLS[name], "directory": FOLDERS[spec.type]} for name in names]


def save_workflow(frontend: Frontend, workflow: Workflow, folder: Path) -> Path:
    """Write `<name>.json` to `folder`. The same description gives the same file."""
    build(frontend, workflow)
    saved = json.loads(frontend.page.evaluate("() => JSON.stringify(app.graph.serialize())"))
    saved["id"] = str(uuid.uuid5(NAMESPACE, workflow.name))
    saved["extra"] = {"ds": beginning(saved), "palimpsest_template": True}
    if unknown := frontend.load(saved):
        raise ValueError(f"The frontend does not know {', '.join(unknown)}.")
    file = folder / f"{workflow.name}.json"
    write_json(file, saved)
    return file


def beginning(saved: dict) -> dict[str, object]:
    """The view that the workflow opens with: its upper left corner, beside ComfyUI's bars, large enough to read."""
    corners = [(node["pos"][0], node["pos"][1] - TITLE) for node in saved["nodes"]]
    corners += [group["bounding"][:2] for group in saved["groups"]]
    offset = [round(bar / SCALE) - min(axis) for bar, axis in zip(BARS, zip(*corners, strict=True), strict=True)]
    return {"scale": SCALE, "offset": offset}


def write_json(file: Path, content: dict) -> None:
    file.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
