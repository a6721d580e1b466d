"""Embeddings into the stock models that take them, through the server, in files that ComfyUI's own detection takes for the real ones.

At theta 0 the pictures equal those of core's own route, to the bit. The CLIP model of SDXL's embeddings, ViT-bigG/14, has 1.8 billion
weights; here they come from files instead. tests/model/test_embeddings.py has its class with an encoder of its width.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data
from support.host.client import Client, Graph, Node, Run
from support.host.server import Server

pytestmark = [pytest.mark.server, pytest.mark.slow]  # files of 5.6 GB

SIZE = 64  # pixels; Stable Cascade takes at least 256


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("photos")
    Image.fromarray(data.astronaut()).save(folder / "astronaut.png")
    Image.fromarray(data.coffee()).save(folder / "coffee.png")
    return folder / "astronaut.png", folder / "coffee.png"


@pytest.fixture
def roomy(client: Client):
    """Leave the memory of what ran before to this test."""
    client.post("/free", {"unload_models": True, "free_memory": True})


def pictures(client: Client, run: Run, shown: Node) -> list[np.ndarray]:
    assert run.status == "success", run.error
    return [np.asarray(Image.open(io.BytesIO(client.image(item))).convert("RGB")) for item in run.images(shown)]


def encoded(client: Client, graph: Graph, vision: list, photos: tuple[Path, Path]) -> tuple[list, list]:
    """The outputs of core's CLIP Vision Encode."""
    return tuple(
        graph.add(
            "CLIPVisionEncode", clip_vision=vision, image=graph.add("LoadImage", image=client.upload_image(photo))[0],
            crop="center",
        )[0]
        for photo in photos
    )  # fmt: skip


def morphed(graph: Graph, a: list, b: list) -> list:
    """Embeddings for theta 0 and 0.5, one after the other."""
    return graph.add("PAL_EmbeddingSlerp", embedding_a=a, embedding_b=b, thetas="0, 0.5", frames=0)[1]


def with_picture(graph: Graph, text: list, embedding: list) -> list:
    return graph.add(
        "unCLIPConditioning", conditioning=text, clip_vision_output=embedding, strength=1.0, noise_augmentation=0.1
    )[0]


def sampled(graph: Graph, model: list, positive: list, negative: list, latent: list, **changed) -> list:
    inputs = {
        "model": model, "positive": positive, "negative": negative, "latent_image": latent, "seed": 1, "steps": 2, "cfg": 4.0,
        "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0,
    }  # fmt: skip
    return graph.add("KSampler", **{**inputs, **changed})[0]


def shown(graph: Graph, latent: list, vae: list) -> Node:
    return graph.add("PreviewImage", images=graph.add("VAEDecode", samples=latent, vae=vae)[0])


def require_route(client: Client, graph: Graph, direct: Node, morph: Node) -> None:
    run = client.run(graph, timeout=1800)
    [core] = pictures(client, run, direct)
    start, between = pictures(client, run, morph)
    assert core.std() > 1 and between.std() > 1
    assert (start == core).all() and (between != core).any()


@pytest.mark.parametrize("encoder", ["l", "h"])
def test_sd21_unclip(client: Client, server: Server, photos, encoder: str, roomy):
    from support.fixtures import stock_unclip

    graph = Graph()
    name = server.link_model("checkpoints", stock_unclip.sd21_unclip(encoder))
    loader = graph.add("unCLIPCheckpointLoader", ckpt_name=name)
    positive = graph.add("CLIPTextEncode", clip=loader[1], text="a photo")[0]
    negative = graph.add("CLIPTextEncode", clip=loader[1], text="")[0]
    latent = graph.add("EmptyLatentImage", width=SIZE, height=SIZE, batch_size=1)[0]
    a, b = encoded(client, graph, loader[3], photos)

    def picture(embedding: list) -> Node:
        conditioning = with_picture(graph, positive, embedding)
        return shown(graph, sampled(graph, loader[0], conditioning, negative, latent), loader[2])

    require_route(client, graph, picture(a), picture(morphed(graph, a, b)))


def test_stable_cascade(client: Client, server: Server, photos, roomy):
    """Its lite stages; the full ones have 3.6 and 1.5 billion weights and nothing else that an embedding meets."""
    from support.fixtures import stock_unclip

    graph = Graph()
    c, b = (
        graph.add("UNETLoader", unet_name=server.link_model("diffusion_models", file), weight_dtype="fp8_e5m2")[0]
        for file in (stock_unclip.stage_c(), stock_unclip.stage_b())
    )
    text_file = server.link_model("text_encoders", stock_unclip.clip_text("g"))
    clip = graph.add("CLIPLoader", clip_name=text_file, type="stable_cascade")[0]
    vision_file = server.link_model("clip_vision", stock_unclip.clip_vision_l())
    vision = graph.add("CLIPVisionLoader", clip_name=vision_file)[0]
    vae = graph.add("VAELoader", vae_name=server.link_model("vae", stock_unclip.stage_a()))[0]
    positive = graph.add("CLIPTextEncode", clip=clip, text="a photo")[0]
    negative = graph.add("ConditioningZeroOut", conditioning=positive)[0]
    latent = graph.add("StableCascade_EmptyLatentImage", width=256, height=256, compression=42, batch_size=1)
    first, second = encoded(client, graph, vision, photos)

    def picture(embedding: list) -> Node:
        stage_c = sampled(graph, c, with_picture(graph, positive, embedding), negative, latent[0], steps=1)
        prior = graph.add("StableCascade_StageB_Conditioning", conditioning=positive, stage_c=stage_c)[0]
        return shown(graph, sampled(graph, b, prior, negative, latent[1], steps=1, cfg=1.0), vae)

    require_route(client, graph, picture(first), picture(morphed(graph, first, second)))


def test_sdxl_revision(client: Client, server: Server, roomy):
    from palimpsest.nodes.unclip.embeddings.embedding_io import SUFFIX, save_embedding
    from support.fixtures import stock_unclip

    graph = Graph()
    loader = graph.add("CheckpointLoaderSimple", ckpt_name=server.link_model("checkpoints", stock_unclip.sdxl()))
    clip = graph.add(
        "DualCLIPLoader", type="sdxl", **{
            f"clip_name{i}": server.link_model("text_encoders", stock_unclip.clip_text(name)) for i, name in ((1, "l"), (2, "g"))
        },
    )[0]  # fmt: skip
    positive = graph.add("CLIPTextEncode", clip=clip, text="a photo")[0]
    negative = graph.add("CLIPTextEncode", clip=clip, text="")[0]
    latent = graph.add("EmptyLatentImage", width=SIZE, height=SIZE, batch_size=1)[0]
    generator = torch.Generator().manual_seed(0)
    embeddings = []
    for name in ("revision_a", "revision_b"):
        (server.base / "input").mkdir(exist_ok=True)
        save_embedding(torch.randn(1, 1280, generator=generator), server.base / "input" / f"{name}{SUFFIX}")
        embeddings.append(graph.add("PAL_LoadEmbedding", embedding_file=f"{name}{SUFFIX} [input]")[0])

    def picture(embedding: list) -> Node:
        conditioning = with_picture(graph, positive, embedding)
        return shown(graph, sampled(graph, loader[0], conditioning, negative, latent), loader[2])

    require_route(client, graph, picture(embeddings[0]), picture(morphed(graph, *embeddings)))
