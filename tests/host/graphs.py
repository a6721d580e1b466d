"""Stock parts of workflows in the API format, for tests and the demo to build on."""

from __future__ import annotations

from dataclasses import dataclass

from host.client import Graph, Node


@dataclass(frozen=True)
class Stock:
    """A loaded checkpoint, two prompts and an empty latent: what a KSampler wants."""

    checkpoint: Node
    positive: Node
    negative: Node
    latent: Node

    @property
    def model(self) -> list:
        return self.checkpoint[0]

    @property
    def clip(self) -> list:
        return self.checkpoint[1]

    @property
    def vae(self) -> list:
        return self.checkpoint[2]


def add_stock(
    graph: Graph, checkpoint: str, positive: str = "a red circle", negative: str = "", size: int = 64
) -> Stock:
    loader = graph.add("CheckpointLoaderSimple", ckpt_name=checkpoint)
    return Stock(
        loader,
        graph.add("CLIPTextEncode", clip=loader[1], text=positive),
        graph.add("CLIPTextEncode", clip=loader[1], text=negative),
        graph.add("EmptyLatentImage", width=size, height=size, batch_size=1),
    )


def add_ksampler(graph: Graph, stock: Stock, steps: int, **changed) -> Node:
    inputs = {
        "model": stock.model,
        "positive": stock.positive[0],
        "negative": stock.negative[0],
        "latent_image": stock.latent[0],
        "seed": 1,
        "steps": steps,
        "cfg": 7.0,
        "sampler_name": "euler",
        "scheduler": "normal",
        "denoise": 1.0,
    }
    return graph.add("KSampler", **{**inputs, **changed})


def add_preview(graph: Graph, stock: Stock, latent: list) -> Node:
    """Decode a latent and show it."""
    decoded = graph.add("VAEDecode", samples=latent, vae=stock.vae)
    return graph.add("PreviewImage", images=decoded[0])
