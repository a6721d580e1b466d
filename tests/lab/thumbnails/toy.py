"""The shipped workflows with the toy's models and pictures in them."""

from __future__ import annotations

import zlib

from lab.demo.shipped import TOY_SIZE, TRANSFORMERS, Shipped, Workflow
from lab.demo.unclip import SIZE, WEIGHTS, unclip_files
from lab.evidence.sheet import as_image
from lab.toy.low_rank import lora
from lab.toy.photos import LOOKS, central_square
from lab.toy.scenes import Scene, render
from PIL import Image
from safetensors.torch import load_file, save_file
from support.host.client import Client, Run
from support.host.server import Server

VOCABULARY = 49408  # of CLIP
IN_ONE_NODE = {  # loaders that a toy's node takes the place of, socket by socket
    "CheckpointLoaderSimple": "TOY_LoadGeneral",
    "PAL_LoadSubjectEncoder": "TOY_LoadSubject",
    "CLIPLoader": "TOY_LoadCLIP",
}


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
        """One file under two names, of which ComfyUI makes two models."""
        file = self.folder / "expert_lora.safetensors"
        save_file(
            lora(*(load_file(WEIGHTS / f"{name}.safetensors") for name in ("expert", "general")), VOCABULARY), file
        )
        return [server.link_model("loras", file, f"expert_{i}.safetensors") for i in (1, 2)]

    def workflow(self, name: str, *pictures: Image.Image, muted: bool = True) -> Workflow:
        """pictures: for its Load Image nodes, in their order."""
        workflow = self.shipped.workflow(name, muted)
        if name.endswith(TRANSFORMERS):
            workflow.use_toy_transformer()
        for spec in workflow.values():
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
        pixels = SIZE if kinds & {"PAL_LoadUnCLIPDecoder", "unCLIPCheckpointLoader"} else TOY_SIZE
        workflow.set_all(width=pixels, height=pixels, scale=2)
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


def drawn(scene: Scene) -> Image.Image:
    return as_image(render([scene])[0][0])


def photo(name: str, look: str | None = None) -> Image.Image:
    """One of scikit-image's, under one of the looks that the toy knows by name."""
    picture = central_square(name)[0]
    return as_image(LOOKS[look](picture) if look else picture)
