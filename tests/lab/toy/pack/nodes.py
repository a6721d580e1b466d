"""Test-only nodes: the toy models in place of CheckpointLoaderSimple, and the toy's CLIP in place of CLIPLoader and CLIPVisionLoader."""

from comfy_api.latest import ComfyExtension, io

from .general import load_general, load_tuned
from .unclip import load_clip


class LoadGeneral(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TOY_LoadGeneral",
            display_name="Load Toy Model",
            category="palimpsest/toy",
            description="The toy latent-diffusion model, with the outputs of Load Checkpoint.",
            outputs=[io.Model.Output(), io.Clip.Output(), io.Vae.Output()],
        )

    @classmethod
    def execute(cls) -> io.NodeOutput:
        return io.NodeOutput(*load_general())


class LoadExpert(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TOY_LoadExpert",
            display_name="Load Toy Expert",
            category="palimpsest/toy",
            description="The toy model that knows rings, crescents, arrows and bolts, with the outputs of Load Checkpoint.",
            outputs=[io.Model.Output(), io.Clip.Output(), io.Vae.Output()],
        )

    @classmethod
    def execute(cls) -> io.NodeOutput:
        return io.NodeOutput(*load_tuned("expert"))


class LoadCLIP(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TOY_LoadCLIP",
            display_name="Load Toy CLIP",
            category="palimpsest/toy",
            description="The text encoder and the image encoder that the toy's unCLIP is told by, with the outputs of Load CLIP and Load "
            "CLIP Vision.",
            outputs=[io.Clip.Output(), io.ClipVision.Output()],
        )

    @classmethod
    def execute(cls) -> io.NodeOutput:
        return io.NodeOutput(*load_clip())


class ToyExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [LoadGeneral, LoadExpert, LoadCLIP]
