"""The shipped workflows with the toy's models and pictures in them."""

from __future__ import annotations

import zlib

import numpy as np
import torch
from lab.demo.shipped import BLOCKS, EMPTY_SIZE, TOY_SIZE, TRANSFORMERS, Shipped, Workflow
from lab.demo.unclip import SIZE, WEIGHTS, unclip_files
from lab.evidence.sheet import as_image
from lab.world.render import render
from lab.world.scenes import BOUNDS, Scene, Thing
from lab.world.studio import before_backdrops, cut_out
from PIL import Image
from safetensors.torch import load_file, save_file
from support.host.client import Client, Run
from support.host.server import Server

VOCABULARY, TABLE = 49408, "text_model.embeddings.token_embedding"  # of CLIP
IN_ONE_NODE = {  # loaders that a toy's node takes the place of, socket by socket
    "CheckpointLoaderSimple": "TOY_LoadGeneral",
    "PAL_LoadSubjectEncoder": "TOY_LoadSubject",
    "CLIPLoader": "TOY_LoadCLIP",
}
INJECTING = ("PAL_PlugAndPlay", "PAL_CaptureFeatures")
TWO_PROMPTS = "Edit a photo with two prompts"  # is for flow models, which the transformer alone is


class Toy:
    def __init__(self, server: Server, client: Client) -> None:
        self.shipped = Shipped(client)
        self.client, self.folder = client, server.base
        self.last: dict[str, Workflow] = {}  # the last run of each shipped workflow
        unclip, self.loras = unclip_files(server), self.expert_loras(server)
        self.files = {
            ("PAL_LoadPrior", "prior_name"): unclip["prior"],
            ("PAL_LoadUnCLIPDecoder", "model_name"): unclip["decoder"],
            ("PAL_LoadUnCLIPDecoder", "text_proj_name"): "none",
            ("PAL_LoadUpsampler", "model_name"): unclip["upsampler_64"],
            ("PAL_LoadUpsampler", "last_name"): "none",
            ("LoraLoader", "lora_name"): self.loras[0],
        }
        self.second_upsampler = unclip["upsampler_128"]
        server.link_model("checkpoints", WEIGHTS / "subject.safetensors")  # which Load Subject Checkpoint lists

    def expert_loras(self, server: Server) -> list[str]:
        """The expert's weights as a file that Load LoRA reads, under two names, of which ComfyUI makes two models."""
        weights = load_file(WEIGHTS / "expert.safetensors")
        words, rows = weights.pop("toy.token_ids").long(), weights.pop(f"toy.{TABLE}.weight")
        learnt = torch.zeros(VOCABULARY, rows.shape[1], dtype=rows.dtype)
        learnt[words] = rows  # the general model has nothing there
        file = self.folder / "expert_lora.safetensors"
        save_file(weights | {f"text_encoders.clip_l.transformer.{TABLE}.diff": learnt}, file)
        return [server.link_model("loras", file, f"expert_{i}.safetensors") for i in (1, 2)]

    def workflow(self, name: str, *pictures: Image.Image, muted: bool = True) -> Workflow:
        """pictures: for its Load Image nodes, in their order."""
        workflow = self.shipped.workflow(name, muted)
        transformer = name.endswith(TRANSFORMERS) or name == TWO_PROMPTS
        if transformer:
            workflow.use_toy_transformer()
        for spec in workflow.values():
            if spec["class_type"] in INJECTING and not transformer:
                spec["inputs"]["blocks"] = BLOCKS
            spec["inputs"] |= {
                socket: file for (kind, socket), file in self.files.items() if kind == spec["class_type"]
            }
            if made := IN_ONE_NODE.get(spec["class_type"]):
                expert = spec["class_type"] == "CheckpointLoaderSimple" and spec["_meta"]["title"].startswith("Expert")
                spec |= {"class_type": "TOY_LoadExpert" if expert else made, "inputs": {}}
        kinds = {spec["class_type"] for spec in workflow.values()}
        if "CLIPVisionLoader" in kinds:
            workflow.exchange(workflow.find("CLIPVisionLoader"), workflow.find("TOY_LoadCLIP")[1])
        if "unCLIPCheckpointLoader" in kinds:
            self.exchange_unclip_checkpoint(workflow)
        small = kinds & {"PAL_LoadUnCLIPDecoder", "unCLIPCheckpointLoader"}
        pixels = SIZE if small else TOY_SIZE
        workflow.set_all(width=pixels, height=pixels, scale=2)
        if "EmptyLatentImage" in kinds and not small:
            workflow.set("EmptyLatentImage", width=EMPTY_SIZE, height=EMPTY_SIZE)
        loads = [spec for spec in workflow.values() if spec["class_type"] == "LoadImage"]
        for spec, picture in zip(loads, pictures, strict=True):
            spec["inputs"]["image"] = self.upload(picture)
        return workflow

    def exchange_unclip_checkpoint(self, workflow: Workflow) -> None:
        """SD2.1 unCLIP's file holds decoder, text encoder, VAE and image encoder; the toy's are two."""
        named = {"model_name": self.files["PAL_LoadUnCLIPDecoder", "model_name"], "text_proj_name": "none"}
        decoder = workflow.add("PAL_LoadUnCLIPDecoder", "Decoder", **named, weight_dtype="default")
        clip = workflow.find("TOY_LoadCLIP")
        workflow.exchange(workflow.find("unCLIPCheckpointLoader"), decoder[0], clip[0], decoder[1], clip[1])

    def upload(self, picture: Image.Image) -> str:
        file = self.folder / f"picture_{zlib.crc32(picture.tobytes()):08x}.png"
        picture.save(file)
        return self.client.upload_image(file)

    def pictures(self, workflow: Workflow, label: str, *nodes: tuple[str, str | None]) -> list[list[Image.Image]]:
        """Run a workflow; the pictures of these of its nodes, by class and title."""
        self.last[label] = workflow
        run: Run = self.shipped.run(workflow, label)
        return [self.shipped.images(run, workflow.find(*node)) for node in nodes]


def standing(words: str, x: float, ground: float = 112, radius: float = 27, lift: float = 0.0) -> Thing:
    """A "red cat" at x on the ground, or above it by lift; all in pixels."""
    colour, kind = words.split()
    y = ground - lift - BOUNDS[kind][3] * radius
    return Thing(kind, colour, x, y, radius, lift=lift)


def scene(*things: Thing, place: str, style: str = "flat") -> Scene:
    """Of things from the farthest to the nearest."""
    return Scene(things, place, style)


def drawn(scene: Scene) -> Image.Image:
    return as_image(render([scene]).pictures[0])


def reference(kind: str, colour: str) -> Image.Image:
    """One thing before a plain backdrop: the seed is one that draws no noise behind it."""
    cut = cut_out([Thing(kind, colour, 0.0, 0.0, 1.0)], np.random.default_rng(4))
    return as_image(before_backdrops(cut, torch.Generator().manual_seed(6))[0])
