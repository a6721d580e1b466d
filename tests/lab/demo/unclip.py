"""The demo's rows of unCLIP: texts become embeddings, small pictures and larger ones; one picture becomes another."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lab.demo.shipped import Row, Shipped
from lab.evidence.sheet import as_image
from lab.world.render import render
from lab.world.scenes import Scene, Thing
from PIL import Image
from support.host.client import Graph, Node
from support.host.server import Server

WEIGHTS = Path(__file__).resolve().parents[1] / "world" / "weights"
# The prior with the settings of docs/unclip.md.
STEPS, PRIOR_CFG, CFG = 25, 1.0, 2.0
SIZE = 32  # pixels of the decoder
FRAMES = 7
TEXTS = (
    "a red balloon and a pink castle in a meadow, flat drawing",
    "a blue castle to the right of an orange cactus at night, flat drawing",
)
# A morph's ends, and what the sheet says of them.
ENDS = {
    "a red balloon in a meadow": Scene((Thing("balloon", "red", 62.0, 56.0, 28.0),), "meadow", "flat"),
    "a yellow tree at night": Scene((Thing("tree", "yellow", 66.0, 72.0, 30.0),), "night", "flat"),
}


@dataclass(frozen=True)
class Loaded:
    clip: Node
    decoder: Node
    upsamplers: list[Node]


class UnCLIPDemo:
    def __init__(self, server: Server, shipped: Shipped) -> None:
        self.client, self.run, self.show = shipped.client, shipped.run, shipped.images
        self.files = unclip_files(server)

    def load(self, graph: Graph) -> Loaded:
        return Loaded(
            graph.add("TOY_LoadCLIP"),
            graph.add("PAL_LoadUnCLIPDecoder", model_name=self.files["decoder"]),
            [graph.add("PAL_LoadUpsampler", model_name=self.files[f"upsampler_{size}"]) for size in (64, 128)],
        )

    def imagine(self, text: str) -> list[Image.Image]:
        """What the decoder and each upsampler make of the text."""
        graph = Graph()
        loaded = self.load(graph)
        clip, decoder = loaded.clip, loaded.decoder
        prior = graph.add("PAL_LoadPrior", prior_name=self.files["prior"])
        embedding = graph.add(
            "PAL_SamplePrior", prior=prior[0], clip=clip[0], text=text, negative_text="", steps=STEPS, cfg=PRIOR_CFG, seed=1,
            candidates=2,
        )  # fmt: skip
        told = graph.add(
            "PAL_UnCLIPConditioning", clip=clip[0], model=decoder[0], text=text, clip_vision_output=embedding[0]
        )
        guider = graph.add("CFGGuider", model=decoder[0], positive=told[0], negative=told[1], cfg=CFG)
        sampled = graph.add(
            "SamplerCustomAdvanced",
            noise=graph.add("RandomNoise", noise_seed=1)[0],
            guider=guider[0],
            sampler=graph.add("PAL_UnCLIPSampler", spacing="published")[0],
            sigmas=graph.add("BasicScheduler", model=decoder[0], scheduler="normal", steps=STEPS, denoise=1.0)[0],
            latent_image=graph.add("EmptyLatentImage", width=SIZE, height=SIZE, batch_size=1)[0],
        )
        picture = graph.add("VAEDecode", samples=sampled[0], vae=decoder[1])
        shown = [graph.add("PreviewImage", images=picture[0])]
        for upsampler in loaded.upsamplers:
            picture = upsampled(graph, upsampler, picture)
            shown.append(graph.add("PreviewImage", images=picture[0]))
        run = self.run(graph, f"unCLIP: {text}")
        return [self.show(run, node)[0] for node in shown]

    def morph(self, folder: Path) -> list[Image.Image]:
        """From the first of ENDS to the second, both inverted."""
        graph = Graph()
        loaded = self.load(graph)
        clip, decoder = loaded.clip, loaded.decoder
        sigmas = graph.add("BasicScheduler", model=decoder[0], scheduler="karras", steps=STEPS, denoise=1.0)
        seen, starts = [], []
        for i, image in enumerate(render(list(ENDS.values())).pictures):
            file = folder / f"morph_end_{i}.png"
            as_image(image).save(file)
            picture = graph.add("LoadImage", image=self.client.upload_image(file))
            small = graph.add(
                "ImageScale", image=picture[0], upscale_method="area", width=SIZE, height=SIZE, crop="disabled"
            )
            seen.append(graph.add("CLIPVisionEncode", clip_vision=clip[1], image=picture[0], crop="center"))
            told = graph.add(
                "PAL_UnCLIPConditioning", clip=clip[0], model=decoder[0], text="", clip_vision_output=seen[-1][0]
            )
            latent = graph.add("VAEEncode", pixels=small[0], vae=decoder[1])
            inverted = graph.add(
                "PAL_DDIMInvert", model=decoder[0], positive=told[0], latent_image=latent[0], sigmas=sigmas[0],
                method="fixed_point", iterations=3,
            )  # fmt: skip
            starts.append(inverted)
        way = {"thetas": "0, 1", "frames": FRAMES}
        between = graph.add("PAL_EmbeddingSlerp", embedding_a=seen[0][0], embedding_b=seen[1][0], **way)
        noises = graph.add("PAL_LatentSlerp", latent_a=starts[0][2], latent_b=starts[1][2], **way)
        told = graph.add(
            "PAL_UnCLIPConditioning", clip=clip[0], model=decoder[0], text="", clip_vision_output=between[0]
        )
        sampled = graph.add(
            "SamplerCustom", model=decoder[0], add_noise=False, noise_seed=1, cfg=1.0, positive=told[0], negative=told[1],
            sampler=graph.add("KSamplerSelect", sampler_name="euler")[0], sigmas=sigmas[0], latent_image=noises[0],
        )  # fmt: skip
        picture = graph.add("VAEDecode", samples=sampled[0], vae=decoder[1])
        for upsampler in loaded.upsamplers:
            picture = upsampled(graph, upsampler, picture)
        shown = graph.add("PreviewImage", images=picture[0])
        return self.show(self.run(graph, "a morph between two pictures"), shown)

    def rows(self, folder: Path) -> dict[str, Row]:
        texts: Row = []
        for text in TEXTS:
            labels = [f"{text}\nprior and decoder, {SIZE} pixels", "upsampled to 64", "upsampled to 128"]
            texts += zip(self.imagine(text), labels, strict=True)
        morph = self.morph(folder)
        first, last = ENDS
        labels = [first, *[""] * (len(morph) - 2), last]
        return {"unclip": texts, "morph": list(zip(morph, labels, strict=True))}


def unclip_files(server: Server) -> dict[str, str]:
    """The names by which the server's loaders know the toy's parts."""
    return {
        part: server.link_model("diffusion_models", WEIGHTS / f"unclip_{part}.safetensors")
        for part in ("prior", "decoder", "upsampler_64", "upsampler_128")
    }


def upsampled(graph: Graph, upsampler: Node, picture: Node) -> Node:
    return graph.add("PAL_Upsample", upsampler=upsampler[0], image=picture[0], steps=0, seed=1, scale=2, tile=512)
