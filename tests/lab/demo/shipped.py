"""The shipped workflows on a server, filled in and run: what the demo and the thumbnails share."""

from __future__ import annotations

import io
import time
from dataclasses import replace

from PIL import Image
from support.host.client import Client, Node, Run
from tqdm import tqdm
from workflows.api_format import api_format
from workflows.shipped import WORKFLOWS

TOY_SIZE = 128
EMPTY_SIZE = 2 * TOY_SIZE  # of Empty Latent Image, which counts 8 pixels to a latent pixel, where the toy has 4
TOY_CFG = 5.0
WORDS_CFG, CROSS_END, SELF_END = 5.0, 0.8, 0.4  # of editing by words
# Of Plug-and-Play on the toy's UNet: the published blocks, but for those that have no attention here.
BLOCKS = "features 4; attention 4-8"
TRANSFORMERS = ("Flux", "Qwen-Image", "Z-Image", "SD3.5")  # as the names of their workflows end
IN_ONE_TRANSFORMER = {  # the outputs of TOY_LoadTransformer that take their place
    "CheckpointLoaderSimple": (0, 1, 2),
    "UNETLoader": (0,),
    "CLIPLoader": (1,),
    "DualCLIPLoader": (1,),
    "VAELoader": (2,),
}


Row = list[tuple[Image.Image, str]]  # of the demo's sheet: pictures, each with the words below it


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

    def use_toy_subject_model(self) -> None:
        loaded = {"class_type": "TOY_LoadSubject", "inputs": {}, "_meta": {"title": None}}
        self[self.find("PAL_LoadSubjectEncoder").id] = loaded

    def use_toy_transformer(self) -> None:
        """In place of any family's loaders."""
        toy = self.add("TOY_LoadTransformer", "Transformer")
        for kind, outputs in IN_ONE_TRANSFORMER.items():
            for node in [Node(key) for key, spec in self.items() if spec["class_type"] == kind]:
                self.exchange(node, *(toy[output] for output in outputs))
        for spec in self.values():
            if spec["class_type"] == "ModelSamplingAuraFlow":  # the same shift, for models whose time goes to 1
                spec["class_type"] = "ModelSamplingSD3"


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
        """A line for it when it is done; on a terminal a bar until then."""
        started, label, done = time.monotonic(), f"{label:<80.80}", {}
        with tqdm(desc=label, unit=" steps", leave=False, disable=None, ncols=110) as bar:

            def show(node: str, value: int, _: int) -> None:
                done[node] = value
                bar.update(sum(done.values()) - bar.n)

            run = self.client.run(workflow, show, timeout=24 * 3600)
        if run.status != "success":
            reason = f"{run.error.node_type}: {run.error.message}" if run.error else run.status
            raise SystemExit(f"The workflow did not finish: {reason}")
        print(f"{label} {sum(done.values()):4d} steps {time.monotonic() - started:6.1f} s", flush=True)
        return run

    def image(self, run: Run, node: Node) -> Image.Image:
        return self.images(run, node)[0]

    def images(self, run: Run, node: Node) -> list[Image.Image]:
        return [Image.open(io.BytesIO(self.client.image(item))).convert("RGB") for item in run.images(node)]
