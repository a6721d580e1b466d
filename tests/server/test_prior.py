"""A text becomes an image embedding through the server; files, encoders and numbers that do not fit are refused."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.host.client import Client, Graph, Node, PromptRejected, Run
from support.host.server import Server

pytestmark = pytest.mark.server

SIZE = {"heads": 2, "layers": 2, "embedding": 768}


@dataclass(frozen=True)
class Files:
    clip: str
    karlo: str
    stats: str
    diffusers: str


@pytest.fixture(scope="module")
def files(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Files:
    import torch
    from safetensors.torch import save_file
    from support.fixtures import checkpoints
    from support.fixtures.twin_prior import karlo_layout, twin

    folder = tmp_path_factory.mktemp("priors")
    weights = dict(twin(**SIZE).state_dict())
    state, stats = karlo_layout(weights)
    torch.save({"state_dict": state}, folder / "prior-ckpt.ckpt")
    torch.save(stats, folder / "ViT-L-14_stats.th")
    save_file(weights, folder / "karlo_diffusers.safetensors")
    names = ("prior-ckpt.ckpt", "ViT-L-14_stats.th", "karlo_diffusers.safetensors")
    linked = [server.link_model("diffusion_models", folder / name) for name in names]
    return Files(server.link_model("text_encoders", checkpoints.clip_l()), *linked)


@dataclass
class Wired:
    graph: Graph
    loader: Node
    clip: Node
    sampler: Node
    shown: Node

    def score(self, run: Run) -> float:
        assert run.status == "success", run.error
        return float(run.outputs[self.shown.id]["text"][0])


def wired(files: Files, loader: dict | None = None, **changed) -> Wired:
    graph = Graph()
    loaded = graph.add("PAL_LoadPrior", **(loader or {"prior_name": files.karlo, "stats_name": files.stats}))
    clip = graph.add("CLIPLoader", clip_name=files.clip, type="stable_diffusion")
    inputs = {"text": "a red cube", "negative_text": "", "steps": 5, "cfg": 4.0, "seed": 1, "candidates": 3, **changed}
    sampler = graph.add("PAL_SamplePrior", prior=loaded[0], clip=clip[0], **inputs)
    return Wired(graph, loaded, clip, sampler, graph.add("PreviewAny", source=sampler[1]))


def expect_error(client: Client, graph: Graph, node: Node, message: str) -> None:
    run = client.run(graph)
    assert run.status == "error"
    assert (run.error.node_id, run.error.type) == (node.id, "ValueError"), run.error.message
    assert message in run.error.message


def test_both_layouts_give_one_embedding_and_core_s_conditioning_takes_it(client: Client, files: Files, sd15: str):
    made = wired(files)
    graph = made.graph
    checkpoint = graph.add("CheckpointLoaderSimple", ckpt_name=sd15)
    text = graph.add("CLIPTextEncode", clip=checkpoint[1], text="a red cube")
    unclip = graph.add(
        "unCLIPConditioning", conditioning=text[0], clip_vision_output=made.sampler[0], strength=1.0, noise_augmentation=0.0
    )  # fmt: skip
    latent = graph.add("EmptyLatentImage", width=64, height=64, batch_size=1)
    sampled = graph.add(
        "KSampler", model=checkpoint[0], positive=unclip[0], negative=text[0], latent_image=latent[0], seed=1, steps=1,
        cfg=2.0, sampler_name="euler", scheduler="normal", denoise=1.0,
    )  # fmt: skip
    decoded = graph.add("VAEDecode", samples=sampled[0], vae=checkpoint[2])
    graph.add("PreviewImage", images=decoded[0])
    run = client.run(graph)
    score = made.score(run)
    assert -1.0 <= score <= 1.0
    assert run.results(made.loader) == ["2 layers of width 128, embeddings of width 768"]
    assert run.results(made.sampler) == [f"cosine to the text: {score:.3f}"]
    assert run.progress[0][1:] == (1, 5)

    again = client.run(graph)
    assert made.sampler.id in again.cached and made.score(again) == score
    client.post("/free", {"unload_models": True, "free_memory": True})
    other = wired(files, {"prior_name": files.diffusers})
    assert other.score(client.run(other.graph)) == score


def test_after_an_interrupt_the_next_run_is_as_if_nothing_had_happened(client: Client, files: Files):
    made = wired(files, seed=2)
    expected = made.score(client.run(made.graph))
    long = wired(files, seed=2, steps=1000, candidates=64)
    stopped = client.run(long.graph, on_progress=lambda node, value, _: client.interrupt())
    assert stopped.status == "interrupted" and stopped.error is None
    assert stopped.progress[-1][1] < 1000
    client.post("/free", {"unload_models": True, "free_memory": True})
    assert made.score(client.run(made.graph)) == expected


def test_a_long_text_is_cut_and_the_node_says_so(client: Client, files: Files):
    made = wired(files, text=" ".join(["word"] * 80))
    run = client.run(made.graph)
    made.score(run)
    assert run.results(made.sampler)[0].endswith("5 tokens beyond the 75th were not read")


@pytest.mark.compat
def test_wrong_files_are_told_apart_and_leave_nothing_behind(
    client: Client, server: Server, files: Files, sd15: str, tmp_path_factory: pytest.TempPathFactory
):
    from support.fixtures import checkpoints

    folder = tmp_path_factory.mktemp("wrong")
    whole = Path(server.base, "models", "diffusion_models", files.diffusers).read_bytes()
    (folder / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    (folder / "code.ckpt").write_bytes(pickle.dumps(Payload(folder / "ran")))
    link = lambda file: server.link_model("diffusion_models", file)  # noqa: E731
    messages = {
        link(folder / "cut.safetensors"): "cut.safetensors could not be read",
        link(folder / "code.ckpt"): "holds more than tensors, which is never loaded",
        link(checkpoints.sd15()): "an ordinary checkpoint. Use Load Checkpoint for it",
        files.karlo: "stats_name: expected the mean and deviation",
    }
    for file, message in messages.items():
        made = wired(files, {"prior_name": file})
        expect_error(client, made.graph, made.loader, message)
    made = wired(files, {"prior_name": files.karlo, "stats_name": "code.ckpt"})
    expect_error(client, made.graph, made.loader, "stats_name: code.ckpt could not be read")
    assert not (folder / "ran").exists()
    made = wired(files, seed=3)
    made.score(client.run(made.graph))


class Payload:
    def __init__(self, file: Path):
        self.file = file

    def __reduce__(self):
        return (Path.touch, (self.file,))


def test_a_clip_without_projection_or_of_another_layer_or_width_is_refused(
    client: Client, server: Server, files: Files, sd15: str, tmp_path_factory: pytest.TempPathFactory
):
    from safetensors.torch import save_file
    from support.fixtures.twin_prior import twin

    made = wired(files)
    skip = made.graph.add("CLIPSetLastLayer", clip=made.clip[0], stop_at_clip_layer=-2)
    inputs = made.graph[made.sampler.id]["inputs"]
    inputs["clip"] = skip[0]
    expect_error(client, made.graph, made.sampler, "clip: expected its last layer, which the prior was trained with")

    file = tmp_path_factory.mktemp("wide") / "kandinsky_2_2.safetensors"
    save_file(dict(twin(2, 1, 1280).state_dict()), file)
    wide = wired(files, {"prior_name": server.link_model("diffusion_models", file)})
    expect_error(
        client,
        wide.graph,
        wide.sampler,
        "clip: expected a CLIP text encoder of width 1280, which the prior was trained with, got 768.",
    )


@pytest.mark.parametrize(
    ("changed", "details"),
    [
        ({"candidates": 0}, "candidates"),
        ({"batch_size": 0}, "batch_size"),
        ({"steps": 1}, "steps"),
        ({"clamp": 0.0}, "clamp"),
    ],
)
def test_numbers_without_meaning_are_refused_before_anything_runs(client: Client, files: Files, changed, details: str):
    made = wired(files, **changed)
    with pytest.raises(PromptRejected, match=f"smaller than min of .*{details}") as refusal:
        client.run(made.graph)
    assert list(refusal.value.node_errors) == [made.sampler.id]


@pytest.mark.parametrize(
    ("loader", "message"),
    [
        (
            {"prior_name": "../../secret.safetensors"},
            r"prior_name: expected a file in models/diffusion_models, got '\.\./\.\./secret\.safetensors', .* \(4\.1 GB\)",
        ),
        (
            {"prior_name": "karlo_diffusers.safetensors", "stats_name": "gone.th"},
            r"stats_name: .* ViT-L-14_stats\.th \(7 KB\)",
        ),
    ],
)
def test_a_missing_file_is_named_with_its_folder_and_size(client: Client, files: Files, loader: dict, message: str):
    made = wired(files, loader)
    with pytest.raises(PromptRejected, match=message) as refusal:
        client.run(made.graph)
    assert list(refusal.value.node_errors) == [made.loader.id]


def test_the_statistics_of_karlo_are_offered_under_their_own_name(client: Client, files: Files):
    offered = client.object_info()["PAL_LoadPrior"]["input"]
    assert files.stats == "ViT-L-14_stats.th" and files.stats in str(offered["optional"]["stats_name"])
    assert files.karlo in str(offered["required"]["prior_name"])
