"""What a node tells the artist while or after it runs, beside its outputs."""

from comfy_api.latest import io
from server import PromptServer


def show_on_node(node: type[io.ComfyNode], text: str) -> None:
    """Show one line of text on the node in the browser. `node` declares Hidden.unique_id; outside a server nobody looks."""
    server = getattr(PromptServer, "instance", None)
    if server is not None and node.hidden is not None:
        server.send_progress_text(text, node.hidden.unique_id, server.client_id)
