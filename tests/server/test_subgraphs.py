"""The subgraph blueprints that the pack ships, asked of the running server."""

import json
from pathlib import Path

import pytest
from support.host.client import Client

pytestmark = [pytest.mark.server, pytest.mark.compat]

BLUEPRINTS = sorted((Path(__file__).resolve().parents[2] / "subgraphs").glob("*.json"))


def test_every_blueprint_is_listed_and_served(client: Client):
    listed = {
        entry["name"]: key
        for key, entry in client.get_json("/global_subgraphs").items()
        if entry["info"]["node_pack"] == "custom_nodes.palimpsest"
    }
    assert sorted(listed) == sorted(file.stem for file in BLUEPRINTS) != []
    for file in BLUEPRINTS:
        assert client.get_json(f"/global_subgraphs/{listed[file.stem]}")["data"] == file.read_text(encoding="utf-8")


@pytest.mark.parametrize("file", BLUEPRINTS, ids=lambda file: file.stem)
def test_a_blueprint_is_one_box_of_known_nodes(file: Path, client: Client):
    blueprint = json.loads(file.read_text(encoding="utf-8"))
    [box], [inside] = blueprint["nodes"], blueprint["definitions"]["subgraphs"]
    assert box["type"] == inside["id"]
    assert (box["title"], inside["name"], inside["category"]) == (file.stem, file.stem, "palimpsest")
    assert inside["description"]
    assert {node["type"] for node in inside["nodes"]} - set(client.object_info()) == set()
