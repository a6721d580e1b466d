import json
from pathlib import Path

import pytest
from support.host.client import Client
from support.host.frontend import Frontend
from support.host.server import Server
from workflows.api_format import api_format
from workflows.description import Group, NodeSpec, Note, Workflow
from workflows.saving import build, save_workflow
from workflows.shipped import BLUEPRINTS
from workflows.subgraph_saving import save_blueprint

pytestmark = pytest.mark.browser

STOCK = Workflow(
    "Stock text to image",
    nodes=[
        NodeSpec("model", "CheckpointLoaderSimple", (0, 0), {"ckpt_name": "my checkpoint.safetensors"}),
        NodeSpec("positive", "CLIPTextEncode", (340, 0), {"text": "a red circle"}, title="What to paint"),
        NodeSpec("negative", "CLIPTextEncode", (340, 240), {"text": ""}),
        NodeSpec("latent", "EmptyLatentImage", (340, 480), {"width": 64, "height": 64}),
        NodeSpec("sampler", "KSampler", (800, 0), {"seed": 7, "control_after_generate": "fixed", "steps": 2}),
        NodeSpec("decode", "VAEDecode", (1140, 0)),
        NodeSpec("save", "PreviewImage", (1140, 100)),
    ],
    links=[
        ("model", "MODEL", "sampler", "model"),
        ("model", "CLIP", "positive", "clip"),
        ("model", "CLIP", "negative", "clip"),
        ("model", "VAE", "decode", "vae"),
        ("positive", 0, "sampler", "positive"),
        ("negative", 0, "sampler", "negative"),
        ("latent", "LATENT", "sampler", "latent_image"),
        ("sampler", "LATENT", "decode", "samples"),
        ("decode", "IMAGE", "save", "images"),
    ],
    notes=[Note("Write what you want to **see**.", (340, -200))],
    groups=[Group("Prompt", (330, -50), (430, 500))],
)


def test_a_described_workflow_is_saved_reopened_and_run(
    canvas: Frontend, server: Server, client: Client, sd15: str, tmp_path: Path
):
    file = save_workflow(canvas, STOCK, tmp_path)
    written = file.read_bytes()
    assert save_workflow(canvas, STOCK, tmp_path).read_bytes() == written
    assert canvas.load(json.loads(written)) == []
    graph = canvas.api_format()

    assert graph == api_format(STOCK, client.object_info())
    assert {node["class_type"] for node in graph.values()} == {node.type for node in STOCK.nodes}
    [sampler] = [node["inputs"] for node in graph.values() if node["class_type"] == "KSampler"]
    assert (sampler["seed"], sampler["steps"]) == (7, 2)
    [loader] = [node["inputs"] for node in graph.values() if node["class_type"] == "CheckpointLoaderSimple"]
    assert loader.pop("ckpt_name") == "my checkpoint.safetensors"
    loader["ckpt_name"] = sd15
    assert client.run(graph).status == "success"
    assert canvas.outside == []


@pytest.mark.parametrize(
    "broken, message",
    [
        (Workflow("x", [NodeSpec("a", "NoSuchNode", (0, 0))], []), "Unknown node type NoSuchNode"),
        (Workflow("x", [NodeSpec("a", "KSampler", (0, 0), {"stepz": 1})], []), "KSampler has no widget stepz"),
        (Workflow("x", STOCK.nodes, [("model", "VAE", "sampler", "model")]), "model.VAE does not fit sampler.model"),
    ],
)
def test_a_wrong_description_is_said(canvas: Frontend, tmp_path: Path, broken: Workflow, message: str):
    with pytest.raises(Exception, match=message):
        save_workflow(canvas, broken, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_workflow_keeps_nothing_of_the_one_before(canvas: Frontend, tmp_path: Path):
    def sampler(widgets: dict) -> Workflow:
        return Workflow("x", [NodeSpec("sampler", "KSampler", (0, 0), widgets)], [])

    save_workflow(canvas, sampler({}), tmp_path)
    written = (tmp_path / "x.json").read_bytes()
    save_workflow(canvas, sampler({"steps": 2, "cfg": 1.5}), tmp_path)
    assert (tmp_path / "x.json").read_bytes() != written
    save_workflow(canvas, sampler({}), tmp_path)
    assert (tmp_path / "x.json").read_bytes() == written


def test_no_picture_of_the_workflow_before_enlarges_a_node(canvas: Frontend, client: Client, photo: Path):
    build(canvas, Workflow("x", [NodeSpec("picture", "LoadImage", (0, 0), {"image": client.upload_image(photo)})], []))
    canvas.page.wait_for_function("() => app.graph.nodes[0].imgs?.length")
    build(canvas, Workflow("y", [NodeSpec("schedule", "BasicScheduler", (0, 0), size=(320, 110))], []))
    canvas.wait_for_redraws()
    saved = canvas.page.evaluate("() => app.graph.serialize()")
    assert saved["nodes"][0]["size"] == [320, 110]
    assert canvas.load(saved) == []


def test_a_described_box_is_saved_alike_whatever_was_made_before(canvas: Frontend, tmp_path: Path):
    first = [save_blueprint(canvas, blueprint, tmp_path).read_bytes() for blueprint in BLUEPRINTS]
    second = [save_blueprint(canvas, blueprint, tmp_path).read_bytes() for blueprint in reversed(BLUEPRINTS)]
    assert first == second[::-1]
    assert canvas.errors == []
