"""What a node shows in the browser beside its outputs: how far it is, and what it found."""

from collections.abc import Iterable
from dataclasses import fields

import torch
from comfy_api.latest import io, ui
from server import PromptServer

RESULT = "palimpsest_result"  # the key that js/panel.mjs reads
FRAMES = "palimpsest_frames"  # the key that js/frames.mjs reads
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


def temporary_frames(frames: Iterable[tuple[torch.Tensor, str]], node: type[io.ComfyNode]) -> dict[str, list[dict]]:
    """The `ui` of pictures [H, W, C], each with a line of text, that are looked at one at a time."""
    return {
        FRAMES: [{"picture": temporary_pictures(picture[None], node)[0], "label": line} for picture, line in frames]
    }


def temporary_pictures(images: torch.Tensor, node: type[io.ComfyNode]) -> list[str]:
    """Names of files in ComfyUI's temp folder that hold these images [N, H, W, C].

    They are names, not the entries core makes of saved files: those would count as results of the job.
    """
    return [saved["filename"] for saved in ui.PreviewImage(images, cls=node).as_dict()["images"]]
