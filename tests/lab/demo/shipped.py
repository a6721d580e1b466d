"""The shipped workflows on a server, filled in and run: what the demo and the thumbnails share."""

from __future__ import annotations

import io
from dataclasses import replace

from PIL import Image
from support.host.client import Client, Node, Run
from tqdm import tqdm
from workflows.api_format import api_format
from workflows.shipped import WORKFLOWS

TOY_SIZE = 128
TOY_CFG = 3.0  # where docs/toy.md finds most prompts drawn rightly
# Editing by words on the toy, chosen by eye from five: at docs/prompt_to_prompt.md's guidance of 2.5 looks and backgrounds
# come out too strong here, with 50 steps and a null-text negative.
WORDS_CFG, CROSS_END, SELF_END = 1.5, 0.4, 0.4


class Workflow(dict):
    """A shipped workflow in the API format, its nodes found by class and title."""

    def find(self, class_type: str, title: str | None = None) -> Node:
        found = [
            key
            for key, spec in self.items()
            if spec["class_type"] == class_type and title in (None, spec["_meta"]["title"])
        ]
        if len(found) != 1:
            raise LookupError(f"Expected one {class_type} {title or ''} in the workflow, found {len(found)}.")
        return Node(found[0])

    def set(self, class_type: str, title: str | None = None, **inputs) -> None:
        self[self.find(class_type, title).id]["inputs"].update(inputs)

    def set_all(self, **widgets) -> None:
        """Every widget of such a name, in all nodes."""
        for spec in self.values():
            for name in widgets.keys() & spec["inputs"].keys():
                if not isinstance(spec["inputs"][name], list):  # a link
                    spec["inputs"][name] = widgets[name]

    def guide(self, cfg: float) -> None:
        """The guidance of everything but the inversion, which stays at its own."""
        for spec in self.values():
            if "cfg" in spec["inputs"] and spec["class_type"] != "PAL_DDIMInvert":
                spec["inputs"]["cfg"] = cfg

    def add(self, class_type: str, title: str, **inputs) -> Node:
        self[title] = {"class_type": class_type, "inputs": inputs, "_meta": {"title": title}}
        return Node(title)

    def exchange(self, node: Node, *outputs: list) -> None:
        """Take a node away; what read its sockets reads these outputs."""
        del self[node.id]
        for spec in self.values():
            for name, value in spec["inputs"].items():
                if isinstance(value, list) and value[0] == node.id:
                    spec["inputs"][name] = outputs[value[1]]

    def use_toy_model(self, title: str | None = None, loader: str = "TOY_LoadGeneral") -> None:
        loaded = {"class_type": loader, "inputs": {}, "_meta": {"title": title}}
        self[self.find("CheckpointLoaderSimple", title).id] = loaded


class Shipped:
    def __init__(self, client: Client) -> None:
        self.client = client
        self.nodes = client.object_info()

    def workflow(self, name: str, muted: bool = True) -> Workflow:
        """muted: leave its muted nodes out, as the frontend does."""
        [described] = [workflow for workflow in WORKFLOWS if workflow.name == name]
        if not muted:
            described = replace(described, nodes=[replace(node, muted=False) for node in described.nodes])
        return Workflow(api_format(described, self.nodes))

    def run(self, workflow: dict, label: str) -> Run:
        with tqdm(desc=f"{label:<46.46}", unit="step", leave=True, ncols=100) as bar:
            run = self.client.run(workflow, on_progress=lambda *_: bar.update(), timeout=24 * 3600)
        if run.status != "success":
            reason = f"{run.error.node_type}: {run.error.message}" if run.error else run.status
            raise SystemExit(f"The workflow did not finish: {reason}")
        return run

    def image(self, run: Run, node: Node) -> Image.Image:
        return self.images(run, node)[0]

    def images(self, run: Run, node: Node) -> list[Image.Image]:
        return [Image.open(io.BytesIO(self.client.image(item))).convert("RGB") for item in run.images(node)]
