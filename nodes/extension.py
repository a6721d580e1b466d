from __future__ import annotations

import importlib
import logging

from comfy_api.latest import ComfyExtension, io

log = logging.getLogger("palimpsest")

SLICES = (
    "flow_edit",
    "inversion",
    "comparison",
    "retracing",
    "null_text",
    "plug_and_play",
    "prompt_to_prompt",
    "saliency_fusion",
    "subject",
    "unclip.prior",
    "unclip.decoder",
    "unclip.embeddings",
    "unclip.morph",
)


class PalimpsestExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [node for name in SLICES for node in _nodes_of(name)]


def _nodes_of(name: str) -> list[type[io.ComfyNode]]:
    """The nodes of a slice; none if it cannot be loaded, so that the others stay usable."""
    try:
        nodes = importlib.import_module(f".{name}.nodes", __package__).NODES
        for node in nodes:
            node.GET_SCHEMA()
    except Exception as error:
        log.error("palimpsest: the nodes of %s are left out: %s: %s", name, type(error).__name__, error)
        return []
    return nodes
