"""The pack's nodes as /object_info describes them, reduced to what workflows and people depend on.

make golden        # rewrites tests/server/object_info.json after a change of the nodes that is meant
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from support.host.client import Client
from support.host.provision import comfyui_location
from support.host.server import Server

FILE = Path(__file__).resolve().parents[2] / "server" / "object_info.json"

# Present in every supported ComfyUI; newer ones add keys, and what they add is theirs.
NODE_KEYS = (
    *("display_name", "category", "description", "search_aliases", "python_module"),
    *("input", "input_order", "is_input_list", "output", "output_name", "output_is_list", "output_tooltips"),
    *("output_node", "deprecated", "experimental"),
)


# Combos that list the files a server has.
FILE_LISTS = (
    ("PAL_LoadTrajectory", "trajectory_file"),
    ("PAL_LoadConditioning", "conditioning_file"),
    ("PAL_LoadSubjectEncoder", "ckpt_name"),
    ("PAL_LoadPrior", "prior_name"),
    ("PAL_LoadPrior", "stats_name"),
    ("PAL_LoadUnCLIPDecoder", "model_name"),
    ("PAL_LoadUnCLIPDecoder", "text_proj_name"),
    ("PAL_LoadUpsampler", "model_name"),
    ("PAL_LoadUpsampler", "last_name"),
    ("PAL_LoadEmbedding", "embedding_file"),
)


def pack_nodes(object_info: dict[str, dict]) -> dict[str, dict]:
    nodes = {
        node_id: {key: info[key] for key in NODE_KEYS}
        for node_id, info in sorted(object_info.items())
        if info["python_module"] == "custom_nodes.palimpsest"
    }
    for node_id, name in FILE_LISTS:
        for group in nodes[node_id]["input"].values() if node_id in nodes else ():
            if name in group:
                group[name][1]["options"] = []
    return nodes


def render(nodes: dict[str, dict]) -> str:
    return json.dumps(nodes, indent=1, ensure_ascii=False) + "\n"


def main() -> None:
    with (
        tempfile.TemporaryDirectory() as base,
        Server(comfyui_location(), Path(base)) as server,
        Client(server.address) as client,
    ):
        nodes = pack_nodes(client.object_info())
    FILE.write_text(render(nodes), encoding="utf-8")
    print(f"{FILE}: {len(nodes)} nodes")


if __name__ == "__main__":
    main()
