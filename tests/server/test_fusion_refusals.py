"""Two models that cannot be fused, through the server: the input is named, and what is queued behind it runs as before."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
from support.fixtures.server_runs import dit_file, pixels, require_refusal, sdxl_file, second_checkpoint_file
from support.host.client import Client, Graph, Node, PromptRejected, Run
from support.host.graphs import Fusion, saliency_fusion, subject_fusion
from support.host.server import Server

pytestmark = pytest.mark.server

STEPS = 2
SECOND, DIT, SDXL = "second.safetensors", "dit.safetensors", "sdxl.safetensors"


@pytest.fixture(scope="module", autouse=True)
def models(server: Server, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("models")
    assert server.link_model("checkpoints", second_checkpoint_file(folder)) == SECOND
    assert server.link_model("diffusion_models", dit_file(folder)) == DIT
    assert server.link_model("diffusion_models", sdxl_file(folder)) == SDXL


# Builds a graph and returns it with the node that is to refuse its input.
Build = Callable[[str], tuple[Graph, Node]]
Change = Callable[[Fusion], dict]


def two(sd15: str) -> Fusion:
    return saliency_fusion(sd15, STEPS, SECOND)


def staged(sd15: str) -> Fusion:
    return subject_fusion(sd15, SECOND, STEPS)


def guider(change: Change, make: Callable[[str], Fusion] = two) -> Build:
    def build(sd15: str) -> tuple[Graph, Node]:
        made = make(sd15)
        made.graph[made.guider.id]["inputs"].update(change(made))
        return made.graph, made.guider

    return build


def sampler(change: Change, make: Callable[[str], Fusion] = two, name: str = "euler") -> Build:
    """What is seen only with the latent, or with the sampler."""

    def build(sd15: str) -> tuple[Graph, Node]:
        graph, _ = guider(change, make)(sd15)
        [node] = (Node(i) for i, spec in graph.items() if spec["class_type"] == "SamplerCustomAdvanced")
        graph[graph[node.id]["inputs"]["sampler"][0]]["inputs"]["sampler_name"] = name
        return graph, node

    return build


def looked_at(change: Change) -> Build:
    def build(sd15: str) -> tuple[Graph, Node]:
        made = two(sd15)
        sigmas = made.graph.add("BasicScheduler", model=made.stock.model, scheduler="normal", steps=4, denoise=1.0)
        inputs = {"guider": made.guider[0], "step": 0, "expert": 1, "latent_image": made.stock.latent[0]}
        look = made.graph.add("PAL_SaliencyMap", **{**inputs, "sigmas": sigmas[0], **change(made)})
        made.graph.add("PreviewImage", images=look[1])
        return made.graph, look

    return build


def nothing(made: Fusion) -> dict:
    return {}


def unet(made: Fusion, name: str) -> list:
    return made.graph.add("UNETLoader", unet_name=name, weight_dtype="default")[0]


def expert(made: Fusion) -> list:
    return made.graph[made.guider.id]["inputs"]["model_expert"]


def flow(made: Fusion) -> list:
    return made.graph.add("ModelSamplingSD3", model=expert(made), shift=3.0)[0]


def zero_terminal_snr(made: Fusion) -> dict:
    """A general model that starts at a level which the expert has not."""
    inputs = {"model": made.stock.model, "sampling": "eps", "zsnr": True}
    model = made.graph.add("ModelSamplingDiscrete", **inputs)[0]
    for node in made.graph.values():
        if node["class_type"] == "BasicScheduler":
            node["inputs"].update(model=model, scheduler="normal")
    return {"model": model}


def third(made: Fusion, model: list) -> dict:
    prompts, numbers = ("positive_expert", "negative_expert"), ("cfg_expert", "start_percent", "end_percent")
    own = (*prompts, *numbers, "saliency", "saliency.sharpness_expert")
    inputs = {name: made.graph[made.guider.id]["inputs"][name] for name in own}
    node = made.graph.add("PAL_FusionExpert", model_expert=model, mask_use="restrict", **inputs)
    return {"experts.expert0": node[0]}


def masks(made: Fusion, count: int) -> dict:
    image = made.graph.add("EmptyImage", width=64, height=64, batch_size=count, color=0xFFFFFF)
    return {"mask": made.graph.add("ImageToMask", image=image[0], channel="red")[0], "mask_use": "force"}


def without_choice(made: Fusion) -> dict:
    """As a script leaves it out."""
    del made.graph[made.guider.id]["inputs"]["saliency"]
    return {}


def plain_guider(made: Fusion) -> list:
    inputs = {"positive": made.stock.positive[0], "negative": made.stock.negative[0], "cfg": 5.0}
    return made.graph.add("CFGGuider", model=made.stock.model, **inputs)[0]


# What is built, the socket that the error names, and what it says it got.
CASES: dict[str, tuple[Build, str, str]] = {
    "one model in both places": (
        guider(lambda made: {"model_expert": made.stock.model}), "model_expert", "expert 1, got one that is already connected",
    ),
    "one model as two experts": (
        guider(lambda made: third(made, expert(made))), "model_expert", "expert 2, got one that is already connected",
    ),
    "latents of 16 channels": (
        guider(lambda made: {"model_expert": unet(made, DIT)}), "model_expert", "got one with SD3 (16 channels)",
    ),
    "other latents of 4 channels": (
        guider(lambda made: {"model_expert": unet(made, SDXL)}), "model_expert", "got one with SDXL (4 channels)",
    ),
    "a general model of other latents": (
        guider(lambda made: {"model": unet(made, SDXL)}), "model_expert", "got one with SD15 (4 channels)",
    ),
    "a third model of other latents": (
        guider(lambda made: third(made, unet(made, SDXL))), "model_expert", "got one with SDXL (4 channels)",
    ),
    "a flow model": (guider(lambda made: {"model_expert": flow(made)}), "model_expert", "got one by noise mixed with"),
    "no way to count saliency": (guider(without_choice), "saliency", "expected sharpness or published, got nothing"),
    "a window that ends before it starts": (
        guider(lambda made: {"start_percent": 0.7, "end_percent": 0.2}), "start_percent", "got 0.7 after 0.2",
    ),
    "levels that the expert has not": (sampler(zero_terminal_snr), "model_expert", "got one for up to 14.6"),
    "masks for other pictures": (sampler(lambda made: masks(made, 2)), "mask", "each of 1, got 2"),
    "a subject model of other latents": (
        guider(lambda made: {"model_subject": unet(made, SDXL)}, staged), "model_subject", "got one with SDXL (4 channels)",
    ),
    "a scene model of other latents": (
        guider(lambda made: {"model_scene": unet(made, DIT)}, staged), "model_subject", "got one with SD15 (4 channels)",
    ),
    "stages in the wrong order": (
        guider(lambda made: {"scene_end": 0.6, "fusion_end": 0.3}, staged), "scene_end", "got 0.6 after 0.3",
    ),
    "a sampler that adds noise": (sampler(nothing, staged, "euler_ancestral"), "sampler", "got euler_ancestral"),
    "a map of another guider": (looked_at(lambda made: {"guider": plain_guider(made)}), "guider", "got CFGGuider"),
    "a map of a step that is not there": (looked_at(lambda made: {"step": 4}), "step", "of `sigmas`, got 4"),
    "a map of an expert that is not there": (looked_at(lambda made: {"expert": 2}), "expert", "experts, got 2"),
}  # fmt: skip


@dataclass
class Queue:
    """A fusion, then all that is refused, then the fusion once more."""

    refused: dict[str, tuple[Run, Graph, Node]]
    last: Run
    before: np.ndarray
    after: np.ndarray
    good: Fusion


@pytest.fixture(scope="module")
def queue(server: Server, sd15: str) -> Queue:
    with Client(server.address) as client:
        made = two(sd15)
        before = pixels(client, client.run(made.graph), made.shown)
        built = {name: build(sd15) for name, (build, *_) in CASES.items()}
        ids = {name: client.queue(graph) for name, (graph, _) in built.items()}
        made.graph[made.guider.id]["inputs"]["mask_use"] = "force"  # which says nothing without a mask
        last = client.queue(made.graph)
        runs = {name: (client.follow(ids[name]), *built[name]) for name in CASES}
        run = client.follow(last)
        return Queue(runs, run, before, pixels(client, run, made.shown), made)


@pytest.mark.parametrize("name", CASES)
def test_what_cannot_be_fused_is_named(queue: Queue, name: str):
    _, socket, got = CASES[name]
    require_refusal(*queue.refused[name], socket, got)


def test_what_is_queued_behind_it_runs_on_the_same_models(queue: Queue):
    assert queue.good.guider.id in queue.last.executed and queue.good.stock.checkpoint.id in queue.last.cached
    assert (queue.before == queue.after).all()


@pytest.mark.parametrize(
    ("socket", "value", "message"),
    [
        ("saliency.sharpness_expert", 0.0, "smaller than min"),
        ("saliency.sharpness_general", 0.0, "smaller than min"),
        ("end_percent", 1.5, "bigger than max"),
        ("model_expert", None, "Required input is missing"),
        ("positive_expert", None, "Required input is missing"),
        ("negative_expert", None, "Required input is missing"),
    ],
)
def test_what_is_refused_before_anything_runs(
    client: Client, sd15: str, socket: str, value: float | None, message: str
):
    made = saliency_fusion(sd15, STEPS, SECOND, **{socket: value})
    with pytest.raises(PromptRejected, match=rf"{message}.*{socket}") as refusal:
        client.run(made.graph)
    assert list(refusal.value.node_errors) == [made.guider.id]


def test_an_empty_window_is_the_general_model_alone(client: Client, sd15: str):
    made = saliency_fusion(sd15, STEPS, SECOND, start_percent=0.5, end_percent=0.5)
    alone = made.plain()
    run = client.run(made.graph)
    assert (pixels(client, run, made.shown) == pixels(client, run, alone)).all()
