"""Null-text optimisation through the server: bad input, quantised models; and for all edits by words cache, cancel, progress."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support.fixtures.server_runs import pixels, quantised_unet_file, require_refusal
from support.host.client import Client, Graph, Node, PromptRejected, Run
from support.host.graphs import WordEdit, add_preview, add_word_edit
from support.host.server import Server

pytestmark = pytest.mark.server

QUANTISED = "quantised.safetensors"


@pytest.fixture(scope="module", autouse=True)
def unets(server: Server, sd15: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    checkpoint = (server.base / "models" / "checkpoints" / sd15).resolve()
    server.link_model("diffusion_models", checkpoint, sd15)
    quantised = quantised_unet_file(tmp_path_factory.mktemp("quantised"), checkpoint)
    assert server.link_model("diffusion_models", quantised) == QUANTISED


@pytest.fixture
def edit(client: Client, sd15: str, photo: Path) -> Callable[..., WordEdit]:
    def made(steps: int = 1, **words) -> WordEdit:
        return add_word_edit(Graph(), sd15, client.upload_image(photo), steps, **words)

    return made


def v_prediction(made: WordEdit) -> list:
    return made.graph.add("ModelSamplingDiscrete", model=made.stock.model, sampling="v_prediction", zsnr=False)[0]


def rescaled(made: WordEdit) -> list:
    return made.graph.add("RescaleCFG", model=made.stock.model, multiplier=0.7)[0]


def unet(made: WordEdit, name: str, weight_dtype: str = "default") -> list:
    return made.graph.add("UNETLoader", unet_name=name, weight_dtype=weight_dtype)[0]


def combined(made: WordEdit) -> list:
    two = {"conditioning_1": made.stock.negative[0], "conditioning_2": made.words[0]}
    return made.graph.add("ConditioningCombine", **two)[0]


def timed(made: WordEdit) -> list:
    negative = made.stock.negative[0]
    return made.graph.add("ConditioningSetTimestepRange", conditioning=negative, start=0.0, end=0.5)[0]


def reconstructed(made: WordEdit, negative: Node, **guider) -> Node:
    inputs = {"positive": made.stock.positive[0], "negative": negative[0], **guider}
    return add_preview(made.graph, made.stock, made.sample(made.guider(**inputs))[0])


BAD = {
    "guidance of 1": (lambda made: made.null_text(cfg=1.0), "cfg", "got 1,"),
    "two negatives": (lambda made: made.null_text(negative=combined(made)), "negative", "got 2 combined"),
    "a negative for some steps": (lambda made: made.null_text(negative=timed(made)), "negative", "start_percent"),
    "a model of another prediction": (lambda made: made.null_text(model=v_prediction(made)), "model", "V_PREDICTION"),
    "a model with guidance of its own": (lambda made: made.null_text(model=rescaled(made)), "model", "RescaleCFG"),
    "quantised weights": (lambda made: made.null_text(model=unet(made, QUANTISED)), "model", "QuantizedTensor"),
}


def refused(made: WordEdit, build: Callable[[WordEdit], Node]) -> tuple[Graph, Node]:
    node = build(made)
    made.graph.add("PreviewAny", source=node[0])
    return made.graph, node


@pytest.mark.parametrize(("build", "socket", "got"), BAD.values(), ids=BAD.keys())
def test_bad_input_is_named(client: Client, edit: Callable[..., WordEdit], build: Callable, socket: str, got: str):
    graph, node = refused(edit(), build)
    require_refusal(client.run(graph), graph, node, socket, got)


@pytest.mark.parametrize("value", [0, 501])
def test_inner_steps_beyond_the_limits_are_rejected_before_anything_runs(
    client: Client, edit: Callable[..., WordEdit], value: int
):
    made = edit()
    node = made.null_text(inner_steps=value)
    made.graph.add("PreviewAny", source=node[0])
    with pytest.raises(PromptRejected, match="inner_steps") as refusal:
        client.run(made.graph)
    assert list(refusal.value.node_errors) == [node.id]


def test_empty_prompts_on_both_sides_leave_the_negative_as_it_is(client: Client, edit: Callable[..., WordEdit]):
    """Guidance between equal prompts vanishes, so that nothing can be gained, and nothing is divided by."""
    made = edit(2)
    empty = {"positive": made.stock.negative[0]}
    found = made.null_text(**empty, method="fast")
    shown = [reconstructed(made, negative, **empty) for negative in (made.stock.negative, found)]
    run = client.run(made.graph)
    plain, optimised = (pixels(client, run, node) for node in shown)
    assert (optimised == plain).all()


def test_quantised_weights_serve_the_methods_without_gradients(client: Client, edit: Callable[..., WordEdit]):
    """Stands for every loader whose weights are no plain tensors, GGUF's too, which is no part of ComfyUI."""
    made = edit()
    model = unet(made, QUANTISED)
    shown = [
        reconstructed(made, made.null_text(model=model, method=method), model=model)
        for method in ("fast", "negative_prompt")
    ]
    run = client.run(made.graph)
    assert all(pixels(client, run, node).std() > 0 for node in shown)


def test_weights_in_fp8_have_gradients(client: Client, edit: Callable[..., WordEdit], sd15: str):
    made = edit()
    model = unet(made, sd15, "fp8_e4m3fn")
    found = made.null_text(model=model, inner_steps=1)
    shown = [reconstructed(made, negative, model=model) for negative in (made.stock.negative, found)]
    run = client.run(made.graph)
    plain, optimised = (pixels(client, run, node) for node in shown)
    assert (optimised != plain).any()
    assert evaluations(run, found) == (3, 1)


def evaluations(run: Run, node: Node) -> tuple[int, int]:
    [text] = run.results(node)
    forward, backward = re.search(r"(\d+) forward, (\d+) backward", text).groups()
    return int(forward), int(backward)


def test_a_negative_saved_in_one_run_is_loaded_in_the_next(
    client: Client, server: Server, edit: Callable[..., WordEdit]
):
    made = edit(steps=2)
    negative = made.null_text(method="fast")
    shown = reconstructed(made, negative)
    saved = made.graph.add("PAL_SaveConditioning", conditioning=negative[0], filename_prefix="found/negative")
    run = client.run(made.graph)
    [file] = run.outputs[saved.id]["conditionings"]
    again = edit(steps=2)
    name = f"{file['subfolder']}/{file['filename']} [output]"
    loaded = again.graph.add("PAL_LoadConditioning", conditioning_file=name)
    other = reconstructed(again, loaded)
    later = client.run(again.graph)
    assert later.results(loaded) == ["for cfg 4, 2 steps"]
    assert (pixels(client, later, other) == pixels(client, run, shown)).all()
    path = server.base / "output" / "found" / file["filename"]
    path.write_bytes(path.read_bytes()[:-100])
    error = client.run(again.graph).error
    assert error.node_id == loaded.id
    assert error.message.startswith("conditioning_file: expected a file of Save Conditioning, got negative_00001_.")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"cfg": 7.0}, "was optimised for cfg 4, not 7"),
        ({"steps": 3}, "was optimised for 2 steps"),
        ({"scheduler": "karras"}, "or another scheduler"),
    ],
    ids=["guidance", "steps", "scheduler"],
)
def test_sample_trajectory_says_what_the_negative_was_not_made_for(
    client: Client, edit: Callable[..., WordEdit], change: dict, says: str
):
    made = edit(2)
    found = made.null_text(method="fast")
    schedule = made.schedule(change.get("steps", 2), change.get("scheduler", "ddim_uniform"))
    guider = made.guider(positive=made.stock.positive[0], negative=found[0], cfg=change.get("cfg", 4.0))
    recorded = made.graph.add(
        "PAL_SampleTrajectory", noise=made.invert[1], guider=guider[0], sigmas=schedule[0],
        sampler=made.graph.add("KSamplerSelect", sampler_name="euler")[0], latent_image=made.invert[2],
    )  # fmt: skip
    made.graph.add("PreviewAny", source=recorded[0])
    run = client.run(made.graph)
    assert run.status == "success", run.error
    [text] = run.results(recorded)
    assert says in text and "Use" in text


def add_all(made: WordEdit) -> tuple[dict[str, Node], list[Node]]:
    """A picture edited with a null-text negative, and a heatmap; the nodes that take long, by what they are."""
    found = made.null_text(inner_steps=1)
    steered = made.prompt_to_prompt()
    edited = made.sample(made.guider(model=steered[0], negative=found[0]))
    mask = made.attention_mask(text=made.graph[made.stock.positive.id]["inputs"]["text"])
    shown = [add_preview(made.graph, made.stock, edited[0]), made.graph.add("PreviewImage", images=mask[1])]
    return {"null-text": found, "prompt-to-prompt": edited, "mask": mask}, shown


def test_progress_and_previews_arrive_and_another_target_repeats_the_edit_only(
    client: Client, edit: Callable[..., WordEdit]
):
    made = edit()
    nodes, shown = add_all(made)
    first = client.run(made.graph)
    picture, heatmap = (pixels(client, first, node) for node in shown)
    for node in (made.invert, *nodes.values()):
        assert (node.id, 1, 1) in first.progress
    assert len(first.previews) >= 4
    [text] = [text for at, text in first.texts if at == nodes["null-text"].id]
    assert re.fullmatch(r"step 1 of 1: latent PSNR -?\d+\.\d dB", text)
    [text] = first.results(nodes["null-text"])
    assert re.fullmatch(r"latent PSNR -?\d+\.\d dB, 4 evaluations \(3 forward, 1 backward\), for cfg 4", text)

    again = client.run(made.graph)
    assert again.status == "success" and again.executed == []
    assert (pixels(client, again, shown[0]) == picture).all()

    made.graph[made.words.id]["inputs"]["target_text"] = "a red dog on a blue wall"
    other = client.run(made.graph)
    assert (pixels(client, other, shown[0]) != picture).any()
    assert (pixels(client, other, shown[1]) == heatmap).all()
    assert {made.invert.id, nodes["null-text"].id, nodes["mask"].id} <= set(other.cached)
    assert {made.words.id, nodes["prompt-to-prompt"].id} <= set(other.executed)


def test_after_interrupts_and_bad_input_the_next_run_is_as_if_nothing_had_happened(
    client: Client, edit: Callable[..., WordEdit]
):
    made = edit()
    _, shown = add_all(made)
    first = client.run(made.graph)
    before = [pixels(client, first, node) for node in shown]

    for name in ("null-text", "prompt-to-prompt", "mask"):
        longer = edit(3)
        nodes, (picture, heatmap) = add_all(longer)
        target = nodes[name]
        if name != "null-text":
            longer.graph[nodes["null-text"].id]["inputs"]["method"] = "negative_prompt"
        del longer.graph[(picture if name == "mask" else heatmap).id]
        asked: list[float] = []

        def stop(at: str, value: int, _: int, target: Node = target, asked: list[float] = asked) -> None:
            if (at, value) == (target.id, 1) and not asked:
                client.interrupt()
                asked.append(time.monotonic())

        stopped = client.run(longer.graph, on_progress=stop)
        waited = time.monotonic() - asked[0]
        assert stopped.status == "interrupted" and stopped.error is None
        assert stopped.progress[-1][0] == target.id and stopped.progress[-1][1] < 3
        assert waited < 3.0, name

    assert {client.run(refused(edit(), build)[0]).status for build, *_ in BAD.values()} == {"error"}
    blank = edit(source_text=made.graph[made.stock.positive.id]["inputs"]["text"] + " ", negative=" ")  # not cached
    _, shown = add_all(blank)
    after = client.run(blank.graph)
    assert blank.invert.id in after.executed
    assert blank.stock.checkpoint.id in after.cached  # the very model that was at work
    assert all((pixels(client, after, node) == picture).all() for node, picture in zip(shown, before, strict=True))
