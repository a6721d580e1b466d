"""Every shipped workflow on a real server, as described: all nodes of the pack beside the core nodes they are made for."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from support.fixtures.shipped import StandIns, provide, quick, saved_latent, stand_ins, with_latents
from support.host.client import Client
from support.host.server import Server
from workflows.api_format import api_format
from workflows.description import Workflow
from workflows.families import FLUX1, QWEN, SD35, Z
from workflows.files_and_colours import CHECKPOINT, FOLDERS, URLS
from workflows.fusion_notes import FASTCOMPOSER
from workflows.shipped import WORKFLOWS

pytestmark = pytest.mark.server

SHIPPED = Path(__file__).resolve().parents[2] / "example_workflows"
WEIGHTS = (".safetensors", ".ckpt", ".bin")
TEMPLATES = (
    *("default", "gsl_starter_1_1", "sd3.5_simple_example", "flux_dev_full_text_to_image", "image_qwen_image"),
    *("image_z_image", "image_z_image_turbo"),
)
DAILY = ("Swap a word in a photo", "Plug-and-Play on a photo, SD3.5", "Mask by a word, then inpaint, Flux")
# What the workflows of transformers are called at the end; their files are tiny, so that a second sampling costs next to nothing.
OF_TRANSFORMERS = (*(family.suffix for family in (FLUX1, QWEN, SD35, Z)), "two prompts")
LATENTS = ("source", "edited", "plain")
KEEPS = ("PAL_PromptToPrompt", "SetLatentNoiseMask")  # by blend words, and by a mask
KEPT = 1e-4  # of the largest number: how near a latent's pixel is to the picture's
EACH = pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda workflow: workflow.name)


def nodes_of(workflow: Workflow) -> set[str]:
    shipped = json.loads((SHIPPED / f"{workflow.name}.json").read_text(encoding="utf-8"))
    graphs = [shipped, *shipped.get("definitions", {}).get("subgraphs", [])]
    return {node["type"] for graph in graphs for node in graph["nodes"] if node["type"].startswith("PAL_")}


def marked() -> list:
    """All of them; those that run daily, on the oldest ComfyUI too, are as few as have every node of the pack between them.

    Beside them the first edit of the README and two transformers run daily. The files of Qwen-Image and Z-Image
    have their published widths.
    """
    left, few = set().union(*map(nodes_of, WORKFLOWS)), []
    while left:
        few.append(max(WORKFLOWS, key=lambda workflow: len(nodes_of(workflow) & left)))
        left -= nodes_of(few[-1])
    wide = [each for each in WORKFLOWS if each.name.endswith((QWEN.suffix, Z.suffix))]
    return [
        pytest.param(
            each,
            id=each.name,
            marks=[
                *([pytest.mark.compat] if each in few else []),
                *([pytest.mark.long] if each not in few and each.name not in DAILY else []),
                *([pytest.mark.newest] if each in wide else []),
            ],
        )
        for each in WORKFLOWS
    ]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> StandIns:
    return stand_ins(tmp_path_factory.mktemp("files"))


@pytest.fixture(scope="module")
def object_info(server: Server) -> dict[str, dict]:
    with Client(server.address) as client:
        return client.object_info()


def test_the_shipped_files_are_those_that_are_described():
    assert sorted(file.stem for file in SHIPPED.glob("*.json")) == sorted(workflow.name for workflow in WORKFLOWS)


@pytest.mark.parametrize("workflow", marked())
def test_a_shipped_workflow_runs(
    server: Server, client: Client, photo: Path, files: StandIns, object_info: dict, workflow: Workflow
):
    graph = api_format(workflow, object_info)
    provide(graph, server, client, photo, files)
    of_transformer = workflow.name.endswith(OF_TRANSFORMERS)
    run = client.run(quick(with_latents(graph), blend_threshold=0.9) if of_transformer else quick(graph))
    assert run.status == "success", run.error
    shown = {key for key, node in graph.items() if object_info[node["class_type"]]["output_node"]}
    assert shown and shown <= set(run.executed) | set(run.cached)
    if of_transformer:
        latents = {name: saved_latent(server, run.outputs[name]) for name in LATENTS if name in run.outputs}
        require_an_edit(latents, any(node["class_type"] in KEEPS for node in graph.values()))


def require_an_edit(latents: dict[str, torch.Tensor], keeps: bool) -> None:
    """The result is neither the picture nor what the sampler makes without the node. keeps: of the picture what is not masked."""
    source, edited = latents["source"], latents["edited"]
    assert bool(torch.isfinite(edited).all())
    size = float(source.abs().max())
    moved = (edited - source).abs().amax(1) / size
    assert float(moved.max()) > 1e-2
    if "plain" in latents:
        assert float((edited - latents["plain"]).abs().max()) > 1e-3 * size
    kept = float((moved < KEPT).float().mean())
    assert (0.0 < kept < 1.0) if keeps else kept < 1.0


@EACH
def test_a_workflow_says_where_the_files_that_it_opens_with_go(workflow: Workflow):
    """All but the base checkpoint, which any of its kind can stand in for."""
    nodes = json.loads((SHIPPED / f"{workflow.name}.json").read_text(encoding="utf-8"))["nodes"]
    said = " ".join(node["widgets_values"][0] for node in nodes if node["type"] == "MarkdownNote")
    for node in nodes:
        if folder := FOLDERS.get(node["type"]):
            names = [str(value) for value in node["widgets_values"] if str(value).endswith(WEIGHTS)]
            assert names
            for name in names:
                assert name == CHECKPOINT or (name in said and f"models/{folder}" in said)


@EACH
def test_loaders_say_where_their_files_are_published(workflow: Workflow):
    """ComfyUI's dialog for missing models reads it from the nodes."""
    for node in json.loads((SHIPPED / f"{workflow.name}.json").read_text(encoding="utf-8"))["nodes"]:
        named = [name for name in node.get("widgets_values", []) if name in URLS and node["type"] in FOLDERS]
        models = [{"name": name, "url": URLS[name], "directory": FOLDERS[node["type"]]} for name in named]
        assert node["properties"].get("models", []) == models


@pytest.mark.newest
def test_files_are_where_the_readme_or_comfyui_s_own_templates_say():
    [folder] = importlib.util.find_spec("comfyui_workflow_templates_json").submodule_search_locations
    templates = [Path(folder) / "templates" / f"{name}.json" for name in TEMPLATES]
    known = "\n".join([FASTCOMPOSER, *(file.read_text("utf-8") for file in (SHIPPED.parent / "README.md", *templates))])
    assert [url for url in URLS.values() if "/".join(url.split("/")[3:5]) not in known] == []
