"""What a node shows in the browser beside its outputs: how far it is, and what it found."""

from dataclasses import fields

from comfy_api.latest import io
from server import PromptServer

RESULT = "palimpsest_result"  # the key that js/result_line.mjs reads
# For the schema of a node that is no output node: a run that finds the node in the cache sends its result again.
# ComfyUI 0.16 does not know this option.
RESENDS_RESULT = {field.name: True for field in fields(io.Schema) if field.name == "has_intermediate_output"}


def show_progress(node: type[io.ComfyNode], text: str) -> None:
    """One line of text while the node runs. `node` declares Hidden.unique_id; outside a server nobody looks."""
    server = getattr(PromptServer, "instance", None)
    if server is not None and node.hidden is not None:
        server.send_progress_text(text, node.hidden.unique_id, server.client_id)


def result(*lines: str) -> dict[str, list[str]]:
    """The `ui` of a node: lines that stay on it until its next run. No lines take away those of the run before."""
    return {RESULT: list(lines)}
