import io

import pytest
from PIL import Image
from support.host.client import Client, Graph, PromptRejected
from support.host.graphs import add_ksampler, add_preview, add_stock

pytestmark = pytest.mark.server


def test_text_to_image_runs_and_a_second_queueing_is_cached(client: Client, sd15: str):
    graph = Graph()
    stock = add_stock(graph, sd15)
    sampler = add_ksampler(graph, stock, steps=3)
    shown = add_preview(graph, stock, sampler[0])

    first, second = client.run(graph), client.run(graph)

    assert (first.status, second.status) == ("success", "success")
    assert sampler.id in first.executed
    assert (second.executed, set(second.cached)) == ([], set(graph))
    assert first.progress == [(sampler.id, step, 3) for step in (1, 2, 3)]
    assert len(first.previews) == 3
    for run in (first, second):
        [item] = run.images(shown)
        assert Image.open(io.BytesIO(client.image(item))).size == (64, 64)


def test_after_an_interrupt_the_next_run_is_as_if_nothing_had_happened(client: Client, sd15: str):
    def picture(seed: int) -> bytes:
        graph = Graph()
        stock = add_stock(graph, sd15)
        sampler = add_ksampler(graph, stock, steps=2, seed=seed)
        shown = add_preview(graph, stock, sampler[0])
        run = client.run(graph)
        assert run.status == "success" and sampler.id in run.executed
        return Image.open(io.BytesIO(client.image(run.images(shown)[0]))).tobytes()

    before = picture(seed=11)
    graph = Graph()
    stock = add_stock(graph, sd15)
    sampler = add_ksampler(graph, stock, steps=200, seed=12)
    add_preview(graph, stock, sampler[0])

    stopped = client.run(graph, on_progress=lambda node, value, maximum: value == 2 and client.interrupt())

    assert stopped.status == "interrupted"
    assert 2 <= len(stopped.progress) < 20
    client.free()
    assert picture(seed=11) == before


def test_a_wrong_input_is_refused_before_anything_runs(client: Client, sd15: str):
    graph = Graph()
    stock = add_stock(graph, sd15)
    sampler = add_ksampler(graph, stock, steps=0)
    add_preview(graph, stock, sampler[0])

    with pytest.raises(PromptRejected, match="smaller than min") as refusal:
        client.run(graph)

    [error] = refusal.value.node_errors[sampler.id]["errors"]
    assert (refusal.value.node_errors[sampler.id]["class_type"], error["type"]) == (
        "KSampler",
        "value_smaller_than_min",
    )


def test_a_failing_node_is_named_and_the_server_goes_on(client: Client, tmp_path):
    fake = tmp_path / "not_a_picture.png"
    fake.write_bytes(b"text")
    graph = Graph()
    loader = graph.add("LoadImage", image=client.upload_image(fake))
    graph.add("PreviewImage", images=loader[0])

    run = client.run(graph)

    assert run.status == "error"
    assert (run.error.node_id, run.error.node_type) == (loader.id, "LoadImage")
    assert run.error.type.endswith("UnidentifiedImageError")
    assert "cannot identify image file" in run.error.message
    good = Graph()
    good.add("PreviewImage", images=good.add("EmptyImage", width=8, height=8, batch_size=1, color=0)[0])
    assert client.run(good).status == "success"
