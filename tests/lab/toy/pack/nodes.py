"""Test-only nodes: the toy models in place of the loaders of checkpoints, and the toy's CLIP in place of CLIPLoader and CLIPVisionLoader."""

import sys

import torch
from comfy_api.latest import ComfyExtension, io
from safetensors.torch import load_file

from nodes import NODE_CLASS_MAPPINGS

from .general import WEIGHTS, load_general, load_tuned
from .transformer import load_transformer
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


class LoadSubject(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TOY_LoadSubject",
            display_name="Load Toy Subject Model",
            category="palimpsest/toy",
            description="The toy model that reads reference pictures, with the outputs of Load Subject Checkpoint.",
            outputs=[
                io.Model.Output(),
                io.Clip.Output(),
                io.Vae.Output(),
                io.Custom("PAL_SUBJECT_ENCODER").Output(),
            ],
        )

    @classmethod
    def execute(cls) -> io.NodeOutput:
        # The pack's own function, under the name that ComfyUI has imported the pack by.
        loader = sys.modules[NODE_CLASS_MAPPINGS["PAL_LoadSubjectEncoder"].__module__]
        make = sys.modules[loader.SubjectEncoder.__module__].subject_encoder
        weights = load_file(WEIGHTS / "subject.safetensors")
        own = {
            name: value for name, value in weights.items() if name.startswith(("image_encoder.", "postfuse_module."))
        }
        return io.NodeOutput(*load_tuned("subject"), make(own, torch.float32))


class LoadTransformer(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TOY_LoadTransformer",
            display_name="Load Toy Transformer",
            category="palimpsest/toy",
            description="The toy's small Stable Diffusion 3, with the outputs of Load Checkpoint.",
            outputs=[io.Model.Output(), io.Clip.Output(), io.Vae.Output()],
        )

    @classmethod
    def execute(cls) -> io.NodeOutput:
        return io.NodeOutput(*load_transformer())


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
        return [LoadGeneral, LoadExpert, LoadSubject, LoadTransformer, LoadCLIP]
