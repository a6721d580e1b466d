"""Test-only nodes: the second world's models in place of the loaders of checkpoints."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from .general import load_general
from .transformer import load_transformer


class LoadGeneral(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="WORLD_LoadGeneral",
            display_name="Load Second Toy Model",
            category="palimpsest/toy",
            description="The second world's latent-diffusion model, with the outputs of Load Checkpoint.",
            outputs=[io.Model.Output(), io.Clip.Output(), io.Vae.Output()],
        )

    @classmethod
    def execute(cls) -> io.NodeOutput:
        return io.NodeOutput(*load_general())


class LoadTransformer(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="WORLD_LoadTransformer",
            display_name="Load Second Toy Transformer",
            category="palimpsest/toy",
            description="The second world's small Stable Diffusion 3.5, with the outputs of Load Checkpoint.",
            outputs=[io.Model.Output(), io.Clip.Output(), io.Vae.Output()],
        )

    @classmethod
    def execute(cls) -> io.NodeOutput:
        return io.NodeOutput(*load_transformer())


class WorldExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [LoadGeneral, LoadTransformer]
