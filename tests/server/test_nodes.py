"""What every node of the pack owes its users, asked of the running server."""

import json
import urllib.error
from pathlib import Path

import pytest
from support.host import golden
from support.host.client import Client
from support.host.server import Server

pytestmark = [pytest.mark.server, pytest.mark.compat]

ROOT = Path(__file__).resolve().parents[2]
WORKFLOWS = sorted((ROOT / "example_workflows").glob("*.json"))


@pytest.fixture(scope="module")
def nodes(server: Server) -> dict[str, dict]:
    with Client(server.address) as client:
        found = golden.pack_nodes(client.object_info())
    assert found, "the pack registers no node"
    return found


def test_sockets_equal_the_golden_file(nodes: dict[str, dict]):
    """A change here breaks saved workflows unless it only adds; when it is meant: `make golden`."""
    assert nodes == json.loads(golden.FILE.read_text(encoding="utf-8"))


def test_no_core_node_is_replaced(nodes: dict[str, dict]):
    assert [node_id for node_id in nodes if not node_id.startswith("PAL_")] == []


def test_every_node_says_what_it_is(nodes: dict[str, dict]):
    lacking = [
        f"{node_id}: {key}"
        for node_id, info in nodes.items()
        for key in ("description", "search_aliases")
        if not info[key]
    ]
    lacking += [f"{node_id}: display_name" for node_id, info in nodes.items() if info["display_name"] == node_id]
    lacking += [node_id for node_id, info in nodes.items() if not info["category"].startswith("palimpsest/")]
    assert lacking == []


def test_every_input_and_output_has_a_tooltip(nodes: dict[str, dict]):
    lacking = []
    for node_id, info in nodes.items():
        for name, (_type, *options) in [item for group in ("required", "optional") for item in inputs(info, group)]:
            if not (options and options[0].get("tooltip")):
                lacking.append(f"{node_id}: input {name}")
        tooltips = info["output_tooltips"] or [None] * len(info["output"])
        lacking += [
            f"{node_id}: output {name}" for name, tip in zip(info["output_name"], tooltips, strict=True) if not tip
        ]
    assert lacking == []


def inputs(info: dict, group: str) -> list[tuple[str, list]]:
    return list(info["input"].get(group, {}).items())


def test_every_node_has_a_help_page_that_is_served(nodes: dict[str, dict], client: Client):
    lacking = []
    for node_id in nodes:
        try:
            page = client.get(f"/extensions/palimpsest/docs/{node_id}.md")
        except urllib.error.HTTPError:
            lacking.append(node_id)
        else:
            assert page.decode() == (ROOT / "js" / "docs" / f"{node_id}.md").read_text(encoding="utf-8")
    assert lacking == []
    assert {file.stem for file in (ROOT / "js" / "docs").glob("*.md")} == set(nodes)


def test_every_node_is_in_a_shipped_workflow(nodes: dict[str, dict]):
    used = {node_type for workflow in WORKFLOWS for node_type in node_types(json.loads(workflow.read_text()))}
    assert sorted(set(nodes) - used) == []


def node_types(workflow: dict) -> set[str]:
    graphs = [workflow, *workflow.get("definitions", {}).get("subgraphs", [])]
    return {node["type"] for graph in graphs for node in graph["nodes"]}


def test_every_shipped_workflow_is_offered_as_a_template_with_its_picture(client: Client):
    assert WORKFLOWS
    assert sorted(client.get_json("/workflow_templates")["palimpsest"]) == sorted(file.stem for file in WORKFLOWS)
    for file in WORKFLOWS:
        served = f"/api/workflow_templates/palimpsest/{file.stem.replace(' ', '%20')}"
        assert client.get(f"{served}.json") == file.read_bytes()
        assert client.get(f"{served}.jpg") == file.with_suffix(".jpg").read_bytes()
