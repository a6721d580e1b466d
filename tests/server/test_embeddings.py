"""Embedding nodes as an artist meets them: files written and read, texts, lists, and what is refused."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from support.fixtures.server_runs import require_refusal
from support.host.client import Client, Graph, Node, PromptRejected
from support.host.server import Server

pytestmark = pytest.mark.server

SUFFIX = ".embedding.safetensors"


def embeddings(width: int, batch: int = 1, seed: int = 0) -> torch.Tensor:
    return 10 * torch.randn(batch, width, generator=torch.Generator().manual_seed(seed)) / width**0.5


@pytest.fixture(scope="module")
def files(server: Server) -> dict[str, str]:
    """Embeddings as the input folder has them, by a word for each."""
    from palimpsest.nodes.unclip.embeddings.embedding_io import save_embedding

    folder = server.base / "input" / "made"
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in {
        "one": embeddings(768), "two": embeddings(768, seed=1), "three_rows": embeddings(768, 3), "four_rows": embeddings(768, 4),
        "wide": embeddings(1024), "zero": torch.zeros(1, 768),
    }.items():  # fmt: skip
        save_embedding(value, folder / f"{name}{SUFFIX}")
    data = (folder / f"one{SUFFIX}").read_bytes()
    (folder / f"cut{SUFFIX}").write_bytes(data[: len(data) // 2])
    (folder / f"code{SUFFIX}").write_bytes(pickle.dumps(Payload(folder / "ran")))
    return {path.name.removesuffix(SUFFIX): f"made/{path.name} [input]" for path in folder.iterdir()}


class Payload:
    def __init__(self, file: Path):
        self.file = file

    def __reduce__(self):
        return (Path.touch, (self.file,))


@pytest.fixture(scope="module")
def clip_l(server: Server) -> str:
    from support.fixtures import stock_unclip

    return server.link_model("text_encoders", stock_unclip.clip_text("l"))


def load(graph: Graph, files: dict[str, str], name: str) -> Node:
    return graph.add("PAL_LoadEmbedding", embedding_file=files[name])


def save(graph: Graph, embedding: list, prefix: str = "embeddings/test") -> Node:
    return graph.add("PAL_SaveEmbedding", embedding=embedding, filename_prefix=prefix)


def saved(server: Server, run, node: Node) -> list[torch.Tensor]:
    from palimpsest.nodes.unclip.embeddings.embedding_io import load_embedding

    assert run.status == "success", run.error
    found = run.outputs[node.id]["embeddings"]
    return [load_embedding(server.base / "output" / item["subfolder"] / item["filename"]) for item in found]


def test_slerp_mix_and_files_give_what_they_say_on_any_day(client: Client, server: Server, files):
    graph = Graph()
    one, two = load(graph, files, "one"), load(graph, files, "two")
    slerp = graph.add(
        "PAL_EmbeddingSlerp", embedding_a=one[0], embedding_b=two[0], thetas="0, 1", frames=5,
    )  # fmt: skip
    batch, each = save(graph, slerp[0]), save(graph, slerp[1], "embeddings/each")
    mix = save(
        graph,
        graph.add(
            "PAL_EmbeddingMix", weights="0, 1", norm="keep",
            **{"embeddings.embedding0": one[0], "embeddings.embedding1": two[0]},
        )[0],
        "embeddings/mix",
    )  # fmt: skip
    run = client.run(graph)
    [whole] = saved(server, run, batch)
    [file] = run.outputs[batch.id]["embeddings"]
    size = (server.base / "output" / file["subfolder"] / file["filename"]).stat().st_size
    assert run.results(batch) == [f"{file['filename']}, {size / 2**10:.1f} KB"]
    assert whole.shape == (5, 768)
    assert whole[:1].equal(embeddings(768)) and whole[4:].equal(embeddings(768, seed=1))
    rows = saved(server, run, each)
    assert len(rows) == 5 and torch.cat(rows).equal(whole)
    assert saved(server, run, mix)[0].equal(embeddings(768, seed=1))

    name = f"embeddings/{run.outputs[batch.id]['embeddings'][0]['filename']} [output]"
    options = client.object_info()["PAL_LoadEmbedding"]["input"]["required"]["embedding_file"]
    assert name in str(options)
    again = Graph()
    loaded = save(again, again.add("PAL_LoadEmbedding", embedding_file=name)[0], "embeddings/again")
    assert saved(server, client.run(again), loaded)[0].equal(whole)


def test_texts_score_and_move_embeddings(client: Client, server: Server, files, clip_l: str):
    graph = Graph()
    clip = graph.add("CLIPLoader", clip_name=clip_l, type="stable_diffusion")
    rows = load(graph, files, "three_rows")
    moved = graph.add(
        "PAL_EmbeddingTextDiff", embedding=rows[0], clip=clip[0], text="a red cube", base_text="a photo", thetas="0, 1",
        frames=0,
    )  # fmt: skip
    before = graph.add("PAL_EmbeddingScore", embedding=rows[0], clip=clip[0], text="a red cube")
    after = graph.add("PAL_EmbeddingScore", embedding=moved[0], clip=clip[0], text="a red cube")
    kept = save(graph, moved[0])
    run = client.run(graph)
    [whole] = saved(server, run, kept)
    assert whole[0::2].equal(embeddings(768, 3))
    torch.testing.assert_close(whole.norm(dim=-1)[1::2], whole.norm(dim=-1)[0::2])

    def shown(node: Node) -> list[float]:
        [text] = run.results(node)
        return [float(part.split(": ")[1]) for part in text.split("  ")]

    assert len(shown(before)) == 3 and all(abs(score) < 0.2 for score in shown(before))
    assert shown(after)[0::2] == shown(before)
    assert max(shown(after)[1::2]) - min(shown(after)[1::2]) < 1e-3 and shown(after)[1] > max(shown(before))


def refused(client: Client, graph: Graph, node: Node, socket: str, got: str) -> None:
    require_refusal(client.run(graph), graph, node, socket, got)


@pytest.mark.parametrize(
    ("changed", "socket", "got"),
    [
        ({"thetas": ""}, "thetas", "none"),
        ({"thetas": "0, half"}, "thetas", "'half'"),
        ({"thetas": "0, 1.5"}, "thetas", "1.5"),
        ({"thetas": "0.5", "frames": 8}, "thetas", "'0.5'"),
        ({"embedding_b": "wide"}, "embedding_b", "1024 wide (CLIP ViT-H/14)"),
        ({"embedding_a": "zero"}, "embedding_a", "an embedding of zeros"),
        ({"embedding_a": "three_rows", "embedding_b": "four_rows"}, "embedding_b", "4"),
    ],
)
def test_slerp_says_what_does_not_fit(client: Client, files, changed: dict, socket: str, got: str):
    graph = Graph()
    inputs = {"embedding_a": "one", "embedding_b": "two", "thetas": "0, 1", "frames": 0, **changed}
    for name in ("embedding_a", "embedding_b"):
        inputs[name] = load(graph, files, inputs[name])[0]
    slerp = graph.add("PAL_EmbeddingSlerp", **inputs)
    save(graph, slerp[0])
    refused(client, graph, slerp, socket, got)


@pytest.mark.parametrize(
    ("weights", "second", "socket", "got"),
    [
        ("1, 1, 1", "two", "weights", "got 3"),
        ("a, b", "two", "weights", "'a'"),
        ("0, 0", "two", "weights", "'0, 0'"),
        ("1, -1", "one", "weights", "cancel out"),
        ("1, 1", "wide", "embedding1", "1024 wide"),
    ],
)
def test_mix_says_what_does_not_fit(client: Client, files, weights: str, second: str, socket: str, got: str):
    graph = Graph()
    sockets = {
        "embeddings.embedding0": load(graph, files, "one")[0],
        "embeddings.embedding1": load(graph, files, second)[0],
    }
    mix = graph.add("PAL_EmbeddingMix", weights=weights, norm="keep", **sockets)
    save(graph, mix[0])
    refused(client, graph, mix, socket, got)


@pytest.mark.parametrize("node", ["PAL_EmbeddingScore", "PAL_EmbeddingTextDiff"])
def test_a_text_encoder_of_another_width_is_refused(client: Client, files, clip_l: str, node: str):
    graph = Graph()
    clip = graph.add("CLIPLoader", clip_name=clip_l, type="stable_diffusion")
    more = {"base_text": "a photo", "thetas": "0.5", "frames": 0} if node == "PAL_EmbeddingTextDiff" else {}
    asked = graph.add(node, embedding=load(graph, files, "wide")[0], clip=clip[0], text="a cat", **more)
    if more:
        save(graph, asked[0])
    refused(client, graph, asked, "clip", "768")


@pytest.mark.parametrize("name", ["cut", "code"])
def test_a_file_that_is_no_embedding_is_refused_and_runs_nothing(client: Client, server: Server, files, name: str):
    graph = Graph()
    loader = load(graph, files, name)
    save(graph, loader[0])
    run = client.run(graph)
    assert run.error.node_id == loader.id and run.error.type.endswith("EmbeddingFileError")
    assert f"embedding_file: expected a file of unCLIP Save Embedding, got {name}{SUFFIX}" in run.error.message
    assert not (server.base / "input" / "made" / "ran").exists()


@pytest.mark.parametrize(
    "name", ["../../secret.embedding.safetensors [output]", "/etc/passwd", "nothing.embedding.safetensors [input]", ""]
)
def test_only_listed_files_are_read(client: Client, name: str):
    graph = Graph()
    loader = graph.add("PAL_LoadEmbedding", embedding_file=name)
    save(graph, loader[0])
    with pytest.raises(PromptRejected) as refusal:
        client.run(graph)
    assert "is not in the output or input folder. Choose one from the list." in str(refusal.value)
    assert loader.id in refusal.value.node_errors


def test_nothing_is_written_outside_the_output_folder(client: Client, server: Server, files):
    graph = Graph()
    node = save(graph, load(graph, files, "one")[0], "../../escaped")
    run = client.run(graph)
    assert run.status == "error" and run.error.node_id == node.id
    assert not list(server.base.parent.glob("escaped*")) and not list(server.base.glob("escaped*"))


def test_a_core_node_that_wants_patches_says_what_it_got(client: Client, files):
    graph = Graph()
    loaded = load(graph, files, "one")
    hunyuan = graph.add("Hunyuan3Dv2Conditioning", clip_vision_output=loaded[0])
    graph.add("PreviewAny", source=hunyuan[0])
    run = client.run(graph)
    assert run.error.node_id == hunyuan.id
    assert "clip_vision_output: expected an encoded picture with its last_hidden_state" in run.error.message
