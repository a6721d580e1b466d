"""Test-only nodes: the toy world's models in place of the loaders of checkpoints."""

from __future__ import annotations

import sys

import torch
from comfy_api.latest import ComfyExtension, io

from nodes import NODE_CLASS_MAPPINGS

from .general import load_general
from .transformer import load_transformer
from .tuned import load_expert, load_subject
from .unclip import load_clip


class LoadGeneral(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TOY_LoadGeneral",
            display_name="Load Toy Model",
            category="palimpsest/toy",
            description="The toy world's latent-diffusion model, with the outputs of Load Checkpoint.",
            outputs=[io.Model.Output(), io.Clip.Output(), io.Vae.Output()],
        )

    @classmethod
    def execute(cls) -> io.NodeOutput:
        return io.NodeOutput(*load_general())


class LoadTransformer(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TOY_LoadTransformer",
            display_name="Load Toy Transformer",
            category="palimpsest/toy",
            description="The toy world's small Stable Diffusion 3.5, with the outputs of Load Checkpoint.",
            outputs=[io.Model.Output(), io.Clip.Output(), io.Vae.Output()],
        )

    @classmethod
    def execute(cls) -> io.NodeOutput:
        return io.NodeOutput(*load_transformer())


class LoadExpert(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TOY_LoadExpert",
            display_name="Load Toy Expert",
            category="palimpsest/toy",
            description="The toy world's model that knows white, brown and black things, and a single room, with the outputs of Load Checkpoint.",
            outputs=[io.Model.Output(), io.Clip.Output(), io.Vae.Output()],
        )

    @classmethod
    def execute(cls) -> io.NodeOutput:
        return io.NodeOutput(*load_expert())


class LoadSubject(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TOY_LoadSubject",
            display_name="Load Toy Subject Model",
            category="palimpsest/toy",
            description="The toy world's model that reads reference pictures, with the outputs of Load Subject Checkpoint.",
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
        *models, encoder = load_subject()
        return io.NodeOutput(*models, make(encoder, torch.float32))


class LoadCLIP(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TOY_LoadCLIP",
            display_name="Load Toy CLIP",
            category="palimpsest/toy",
            description="The text encoder and the image encoder that the toy world's unCLIP is told by, with the outputs of Load CLIP and Load "
            "CLIP Vision.",
            outputs=[io.Clip.Output(), io.ClipVision.Output()],
        )

    @classmethod
    def execute(cls) -> io.NodeOutput:
        return io.NodeOutput(*load_clip())


class WorldExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [LoadGeneral, LoadTransformer, LoadExpert, LoadSubject, LoadCLIP]
