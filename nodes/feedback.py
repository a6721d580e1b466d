"""What a node tells the artist while or after it runs, beside its outputs."""

from server import PromptServer


def show_on_node(unique_id: str | None, text: str) -> None:
    """Show one line of text on the node in the browser; a node run outside a server has nobody to tell."""
    server = getattr(PromptServer, "instance", None)
    if server is not None and unique_id is not None:
        server.send_progress_text(text, unique_id, server.client_id)
