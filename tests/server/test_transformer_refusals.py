"""Bad and unusual input on transformers through the server: Flux in its three stock files. Each is right, or refused in words."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.fixtures import checkpoints, stock_transformers
from support.fixtures.inversions import relative
from support.fixtures.quantised_transformers import in_scaled_fp8
from support.fixtures.server_runs import require_refusal
from support.fixtures.shipped import saved_latent
from support.host.client import Client, Graph, Node, Run
from support.host.graphs import SOURCE_TEXT, Stock, WordEdit, add_word_edit
from support.host.server import Server

pytestmark = pytest.mark.server

STEPS = 2
TARGET_TEXT = "a red square on a blue wall"


@dataclass(frozen=True)
class Apart(Stock):
    """A model, text encoders and a VAE in files of their own."""

    encoders: Node
    decoder: Node

    @property
    def clip(self) -> list:
        return self.encoders[0]

    @property
    def vae(self) -> list:
        return self.decoder[0]


@pytest.fixture(scope="module")
def flux(server: Server, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Names of files. `scaled` has the model's matrices in 8 bits."""
    scaled = tmp_path_factory.mktemp("flux") / "flux-scaled.safetensors"
    save_file(in_scaled_fp8(load_file(stock_transformers.flux())), scaled)
    files = {
        "unet": ("diffusion_models", stock_transformers.flux()),
        "scaled": ("diffusion_models", scaled),
        "clip_l": ("text_encoders", checkpoints.clip_l()),
        "t5xxl": ("text_encoders", stock_transformers.t5xxl()),
        "vae": ("vae", stock_transformers.vae()),
    }
    return {name: server.link_model(folder, file) for name, (folder, file) in files.items()}


def inverted(client: Client, flux: dict[str, str], photo: Path, steps: int = STEPS) -> WordEdit:
    graph = Graph()
    unet = graph.add("UNETLoader", unet_name=flux["unet"], weight_dtype="default")
    clip = graph.add("DualCLIPLoader", clip_name1=flux["clip_l"], clip_name2=flux["t5xxl"], type="flux")
    vae = graph.add("VAELoader", vae_name=flux["vae"])
    source = graph.add("CLIPTextEncode", clip=clip[0], text=SOURCE_TEXT)
    picture = graph.add("LoadImage", image=client.upload_image(photo))
    latent = graph.add("VAEEncode", pixels=picture[0], vae=vae[0])
    sigmas = graph.add("BasicScheduler", model=unet[0], scheduler="simple", steps=steps, denoise=1.0)
    words = graph.add(
        "PAL_EncodePromptEdit", clip=clip[0], source_text=SOURCE_TEXT, target_text=TARGET_TEXT, mode="auto",
        reweight="", blend_words="",
    )  # fmt: skip
    invert = graph.add(
        "PAL_DDIMInvert", model=unet[0], positive=source[0], latent_image=latent[0], sigmas=sigmas[0], method="ddim",
        iterations=1,
    )  # fmt: skip
    return WordEdit(graph, Apart(unet, source, source, latent, clip, vae), picture, sigmas, words, invert)


def plug_and_play(made: WordEdit, **changed) -> Node:
    inputs = {"trajectory": made.invert[0], "feature_end": 1.0, "attention_end": 1.0, "blocks": "auto", **changed}
    return made.graph.add("PAL_PlugAndPlay", **{"model": made.stock.model, **inputs})


def sampled(made: WordEdit, model: list, positive: list | None = None) -> Node:
    """From noise that is not the trajectory's latent, as stock nodes wire it."""
    guider = made.guider(model=model, positive=positive or made.words[0], cfg=1.0)
    return made.sample(guider, latent_image=made.stock.latent[0])


def with_reference(made: WordEdit) -> list:
    return made.graph.add("ReferenceLatent", conditioning=made.words[0], latent=made.stock.latent[0])[0]


# Each adds a node that is to refuse its input and returns it.
Build = Callable[[WordEdit], Node]


def words(socket: str, text: str) -> Build:
    """The text comes from another node, so that it is first seen when the encoders are at hand."""

    def build(made: WordEdit) -> Node:
        made.graph[made.words.id]["inputs"][socket] = made.graph.add("PrimitiveString", value=text)[0]
        return made.words

    return build


def mask(**inputs) -> Build:
    return lambda made: made.attention_mask(positive=made.stock.positive[0], **inputs)


def cached_blocks(first: int, edit: Callable[..., Node]) -> Build:
    def build(made: WordEdit) -> Node:
        model = made.graph.add("OTHER_SkipBlocks", model=made.stock.model, first=first)[0]
        return sampled(made, edit(made, model=model)[0])

    return build


def easy_cache(made: WordEdit) -> Node:
    model = made.graph.add(
        "EasyCache", model=made.stock.model, reuse_threshold=3.0, start_percent=0.0, end_percent=1.0, verbose=False
    )[0]
    made.graph[made.sigmas.id]["inputs"]["steps"] = 10
    return sampled(made, plug_and_play(made, model=model)[0])


SKIPPED = "one with a patch that skipped some of them, as TeaCache and first-block caches do"
NONE_RAN = "Flux.1, none of whose blocks ran"
OF_FLUX = "of this Flux.1, which has 2 double and 3 single blocks"
# What the refused input is: how it comes about, the socket the message names, what it says.
BAD: dict[str, tuple[Build, str, str]] = {
    "blocks out of range": (lambda made: plug_and_play(made, blocks="attention 0-5"), "blocks", f"0-4 {OF_FLUX}"),
    "single blocks out of range": (
        lambda made: plug_and_play(made, blocks="features single 1-3"), "blocks", f"single numbers 0-2 {OF_FLUX}",
    ),
    "blocks of a UNet": (
        lambda made: plug_and_play(made, blocks="features 4; attention 4-11"), "blocks", "got '4-11' in",
    ),
    "no blocks": (mask(blocks="middle"), "blocks", "got 'middle'"),
    "a mask's blocks out of range": (mask(blocks="11, 14-18"), "blocks", f"0-4 {OF_FLUX}"),
    "a word to find that is not there": (mask(words="circle, dog"), "words", "'dog'"),
    "a word to blend that is not there": (words("blend_words", "dog"), "blend_words", "'dog'"),
    "a word to reweight that is not there": (words("reweight", "dog: 2"), "reweight", "'dog'"),
    "references that the trajectory was made without": (
        lambda made: sampled(made, made.prompt_to_prompt()[0], with_reference(made)), "positive",
        "as many reference latents as the source's prompt, 0, got 1.",
    ),
    "null-text on a guidance-distilled model": (
        lambda made: made.null_text(method="negative_prompt"), "model", "which is guidance-distilled",
    ),
    "a first-block cache and Plug-and-Play": (cached_blocks(1, plug_and_play), "model", SKIPPED),
    "a first-block cache and words": (cached_blocks(1, WordEdit.prompt_to_prompt), "model", SKIPPED),
    "TeaCache and Plug-and-Play": (cached_blocks(0, plug_and_play), "model", NONE_RAN),
    "TeaCache and words": (cached_blocks(0, WordEdit.prompt_to_prompt), "model", NONE_RAN),
    "EasyCache": (easy_cache, "model", NONE_RAN),
}  # fmt: skip


@pytest.fixture(scope="module")
def queue(server: Server, flux: dict[str, str], photo: Path) -> dict[str, tuple[Run, Graph, Node]]:
    """All of them queued at once."""
    with Client(server.address) as client:
        queued = {}
        for name, (build, *_) in BAD.items():
            made = inverted(client, flux, photo)
            node = build(made)
            made.graph.add("PreviewAny", source=node[0])
            queued[name] = client.queue(made.graph), made.graph, node
        return {name: (client.follow(prompt), graph, node) for name, (prompt, graph, node) in queued.items()}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_named(queue: dict, name: str):
    _, socket, got = BAD[name]
    require_refusal(*queue[name], socket, got)


def test_quantised_weights_and_references_of_the_edit_alone_are_edited_right(
    server: Server, client: Client, flux: dict[str, str], photo: Path
):
    """Weights of 8 bits give what whole ones give but for their rounding. Plug-and-Play needs no references of the source."""
    made = inverted(client, flux, photo)
    models = {
        "whole": made.stock.model,
        "scaled": made.graph.add("UNETLoader", unet_name=flux["scaled"], weight_dtype="default")[0],
        "packed": made.graph.add("OTHER_LoadPacked", unet_name=flux["unet"])[0],
    }
    saved = {"references": sampled(made, plug_and_play(made)[0], with_reference(made))}
    for name, model in models.items():
        edits = {
            "plain": model,
            "layout": plug_and_play(made, model=model)[0],
            "words": made.prompt_to_prompt(model=model)[0],
        }
        saved |= {(name, edit): sampled(made, edited) for edit, edited in edits.items()}
    shown = {key: made.graph.add("SaveLatent", samples=node[0], filename_prefix="t") for key, node in saved.items()}
    run = client.run(made.graph)
    assert run.status == "success", run.error
    found: dict = {key: saved_latent(server, run.outputs[node.id]) for key, node in shown.items()}
    assert all(bool(torch.isfinite(latent).all()) for latent in found.values())
    assert relative(found["references"], found["whole", "layout"]) > 1e-3
    for edit in ("layout", "words"):
        for name in models:
            assert relative(found[name, edit], found[name, "plain"]) > 1e-3
        off = {name: relative(found[name, edit], found["whole", edit]) for name in ("scaled", "packed")}
        print(edit, off)
        assert 1e-5 < off["scaled"] < 0.1 and 1e-5 < off["packed"] < 0.1


def test_blocks_of_a_transformer_are_refused_on_a_unet(client: Client, sd15: str, photo: Path):
    for add, got in (
        (lambda made: plug_and_play(made, blocks="features single 20-37; attention 0-56"), "got 'single' in"),
        (lambda made: made.attention_mask(blocks="11, 14-18"), "expected 'auto' for a UNet"),
    ):
        made = add_word_edit(Graph(), sd15, client.upload_image(photo), STEPS)
        node = add(made)
        made.graph.add("PreviewAny", source=node[0])
        require_refusal(client.run(made.graph), made.graph, node, "blocks", got)
