"""Edits by words through the server: bad input is named, and what is queued behind it runs as if it had not been there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from support.fixtures.server_runs import all_pixels, dit_file, pixels, require_refusal
from support.host.client import Client, Graph, Node, PromptRejected, Run
from support.host.graphs import SOURCE_TEXT, WordEdit, add_preview, add_word_edit
from support.host.server import Server

pytestmark = pytest.mark.server

STEPS = 2
DIT = "dit.safetensors"
LONG = "a picture of " + "very " * 80


@pytest.fixture(scope="module", autouse=True)
def dit(server: Server, tmp_path_factory: pytest.TempPathFactory) -> None:
    assert server.link_model("diffusion_models", dit_file(tmp_path_factory.mktemp("dit"))) == DIT


# Each adds a node that is to refuse its input and returns it.
Build = Callable[[WordEdit], Node]


def words(**inputs) -> Build:
    def build(made: WordEdit) -> Node:
        made.graph[made.words.id]["inputs"].update(inputs)
        return made.words

    return build


def linked(socket: str, text: str) -> Build:
    """The text comes from another node."""

    def build(made: WordEdit) -> Node:
        return words(**{socket: made.graph.add("PrimitiveString", value=text)[0]})(made)

    return build


def mask(**inputs) -> Build:
    return lambda made: made.attention_mask(**inputs)


def v_prediction(made: WordEdit) -> list:
    return made.graph.add("ModelSamplingDiscrete", model=made.stock.model, sampling="v_prediction", zsnr=False)[0]


def transformer(made: WordEdit) -> list:
    return made.graph.add("UNETLoader", unet_name=DIT, weight_dtype="default")[0]


def pictures(made: WordEdit, count: int) -> list:
    return made.graph.add("EmptyImage", width=48, height=48, batch_size=count, color=0)[0]


def sampled(sampler: str = "euler", positive: Callable[[WordEdit], list] | None = None) -> Build:
    def build(made: WordEdit) -> Node:
        model = made.prompt_to_prompt()[0]
        guider = made.guider(model=model, **({"positive": positive(made)} if positive else {}))
        return made.sample(guider, sampler)

    return build


def otherwise(**change: Callable[[WordEdit], list]) -> Build:
    """Sampled with other inputs of the sampler."""

    def build(made: WordEdit) -> Node:
        guider = made.guider(model=made.prompt_to_prompt()[0])
        return made.sample(guider, **{name: value(made) for name, value in change.items()})

    return build


def other_latent(made: WordEdit) -> list:
    return made.graph.add("EmptyLatentImage", width=128, height=64, batch_size=1)[0]


def noise(made: WordEdit) -> list:
    return made.graph.add("RandomNoise", noise_seed=1)[0]


def other_edit(made: WordEdit) -> Node:
    inputs = made.graph[made.words.id]["inputs"]
    return made.graph.add("PAL_EncodePromptEdit", **{**inputs, "target_text": "a red dog on a blue wall"})


def joined(made: WordEdit) -> list:
    inputs = {"conditioning_to": made.words[0], "conditioning_from": made.words[0]}
    return made.graph.add("ConditioningConcat", **inputs)[0]


def long_edit(made: WordEdit) -> Node:
    inputs = made.graph[made.words.id]["inputs"]
    return made.graph.add(
        "PAL_EncodePromptEdit", **{**inputs, "source_text": LONG + "cat", "target_text": LONG + "dog"}
    )


# What the refused input is: how it comes about, the socket the message names, what came.
BAD = {
    "prompts": {
        "a word of another node that is not there": (linked("reweight", "dog: 2"), "reweight", "'dog'"),
        "blending more words than the prompt has": (
            linked("blend_words", f"{SOURCE_TEXT} and more"), "blend_words", "has 9 tokens, and no prompt more than 7",
        ),
        "a factor of another node missing": (linked("reweight", "red"), "reweight", "'red'"),
        "no source": (words(source_text=""), "source_text", "''. Write what the picture shows"),
        "no target": (words(target_text=" \n"), "target_text", "Write what the picture should show"),
        "no prompts": (words(source_text="", target_text=""), "source_text", "''"),
        "a prompt of brackets": (words(source_text="(())"), "source_text", "'(())'"),
        "replace with unequal numbers of words": (
            words(mode="replace", target_text="a big red square on a blue wall"), "mode", "7 in source_text and 8 in",
        ),
    },
    "prompt-to-prompt": {
        "a model of another prediction": (
            lambda made: made.prompt_to_prompt(model=v_prediction(made)), "model", "V_PREDICTION",
        ),
        "a model of another kind": (lambda made: made.prompt_to_prompt(model=transformer(made)), "model", "SD3"),
        "the model of another edit": (
            lambda made: made.prompt_to_prompt(model=made.prompt_to_prompt()[0]), "model", "already",
        ),
        "the target as source": (
            lambda made: made.prompt_to_prompt(source=made.words[0]), "source", "an encoding of 'a red square on",
        ),
        "a source of other length": (
            lambda made: made.prompt_to_prompt(source=joined(made)), "source", "got conditioning of 154",
        ),
        "the target of a longer edit": (sampled(positive=lambda made: long_edit(made)[0]), "positive", "of 154"),
        "the target of another edit": (sampled(positive=lambda made: other_edit(made)[0]), "positive", "'a red dog on"),
        "other steps": (otherwise(sigmas=lambda made: made.schedule(STEPS + 1)[0]), "sigmas", "3 steps with"),
        "another scheduler": (otherwise(sigmas=lambda made: made.schedule(STEPS, "karras")[0]), "sigmas", "2 steps with"),
        "another size": (otherwise(latent_image=other_latent, noise=noise), "latent_image", "8 x 16"),
        "a sampler between the levels": (sampled("dpm_2"), "sampler", "dpm_2"),
        "an SDE sampler between the levels": (sampled("dpmpp_sde"), "sampler", "dpmpp_sde"),
    },
    "mask": {
        "words that are not in the text": (mask(words="circle, dog"), "words", "'dog'"),
        "no text": (mask(text=""), "text", "''"),
        "no words": (mask(words=" , "), "words", "got none"),
        "an empty range": (mask(start=0.5, end=0.5), "end", "0.5 and 0.5"),
        "a range backwards": (mask(start=0.8, end=0.2), "end", "0.8 and 0.2"),
        "a model of another prediction": (
            lambda made: made.attention_mask(model=v_prediction(made)), "model", "V_PREDICTION",
        ),
        "a model of another kind": (lambda made: made.attention_mask(model=transformer(made)), "model", "SD3"),
        "more pictures than the trajectory": (
            lambda made: made.attention_mask(image=pictures(made, 2)), "image", "a batch of 2",
        ),
        "the encoding of another text": (
            lambda made: made.attention_mask(positive=made.words[0]), "positive", "an encoding of 'a red square on",
        ),
        "an edit without blend words": (lambda made: made.attention_mask(edit=made.words[1]), "edit", "none of them"),
    },
}  # fmt: skip


# What is refused before anything runs: what is written, the socket the message names, what came.
EARLY = {
    "reweighting a word that is not there": ({"reweight": "dog: 2"}, "reweight", "'dog'"),
    "reweighting a word of the source only": ({"reweight": "circle: 2"}, "reweight", "'circle'"),
    "blending a word that is not there": ({"blend_words": "square, dog"}, "blend_words", "'dog'"),
    "a factor missing": ({"reweight": "red"}, "reweight", "'red'"),
    "a factor that is no number": ({"reweight": "blue: 1, red: x"}, "reweight", "'red: x'"),
    "a factor of nan": ({"reweight": "red: nan"}, "reweight", "'red: nan'"),
    "a factor beyond numbers": ({"reweight": "red: 1e999"}, "reweight", "'red: 1e999'"),
    "a factor without a word": ({"reweight": ": 2"}, "reweight", "': 2'"),
}


CASES = {f"{node}: {name}": bad for node, cases in BAD.items() for name, bad in cases.items()}


def refused(client: Client, sd15: str, photo: Path, build: Build) -> tuple[Graph, Node]:
    made = add_word_edit(Graph(), sd15, client.upload_image(photo), STEPS)
    node = build(made)
    made.graph.add("PreviewAny", source=node[0])
    return made.graph, node


def good(client: Client, sd15: str, photo: Path, spaces: int) -> tuple[WordEdit, list[Node]]:
    """An edited picture and a heatmap. Spaces change no token, but nothing behind a prompt comes from the cache."""
    blank = " " * spaces
    image = client.upload_image(photo)
    made = add_word_edit(
        Graph(), sd15, image, STEPS, SOURCE_TEXT + blank, blank, reweight="red: 2", blend_words="square"
    )
    edited = made.sample(made.guider(model=made.prompt_to_prompt()[0]))
    heatmap = made.attention_mask(text=SOURCE_TEXT + blank)
    shown = [add_preview(made.graph, made.stock, edited[0]), made.graph.add("PreviewImage", images=heatmap[1])]
    return made, shown


@dataclass
class Queue:
    """All bad input queued at once, between two prompts that ask for the same pictures."""

    refused: dict[str, tuple[Run, Graph, Node]]
    good: WordEdit
    last: Run
    before: list[np.ndarray]
    after: list[np.ndarray]


@pytest.fixture(scope="module")
def queue(server: Server, sd15: str, photo: Path) -> Queue:
    with Client(server.address) as client:
        made, shown = good(client, sd15, photo, 1)
        first = client.run(made.graph)
        before = [pixels(client, first, node) for node in shown]
        built = {name: refused(client, sd15, photo, build) for name, (build, *_) in CASES.items()}
        ids = {name: client.queue(graph) for name, (graph, _) in built.items()}
        made, shown = good(client, sd15, photo, 2)
        last = client.queue(made.graph)
        runs = {name: (client.follow(ids[name]), *built[name]) for name in CASES}
        run = client.follow(last)
        return Queue(runs, made, run, before, [pixels(client, run, node) for node in shown])


@pytest.mark.parametrize("name", CASES)
def test_bad_input_is_named(queue: Queue, name: str):
    _, socket, got = CASES[name]
    require_refusal(*queue.refused[name], socket, got)


@pytest.mark.parametrize("name", EARLY)
def test_words_that_no_prompt_has_are_refused_before_anything_runs(client: Client, sd15: str, photo: Path, name: str):
    written, socket, got = EARLY[name]
    graph, node = refused(client, sd15, photo, words(**written))
    with pytest.raises(PromptRejected) as refusal:
        client.queue(graph)
    [error, *_] = refusal.value.node_errors[node.id]["errors"]
    assert f" - {socket}: expected words" in error["details"] and got in error["details"]


def test_what_is_queued_behind_bad_input_is_as_if_it_had_not_been_there(queue: Queue):
    assert {queue.good.words.id, queue.good.invert.id} <= set(queue.last.executed)
    assert queue.good.stock.checkpoint.id in queue.last.cached  # the very model that the bad input met
    assert all((after == before).all() for after, before in zip(queue.after, queue.before, strict=True))


def test_nothing_to_edit_is_the_picture_without_the_node(client: Client, sd15: str, photo: Path):
    made = add_word_edit(Graph(), sd15, client.upload_image(photo), STEPS)
    models = (made.stock.model, made.prompt_to_prompt(cross_end=0.0, self_end=0.0)[0], made.prompt_to_prompt()[0])
    shown = [add_preview(made.graph, made.stock, made.sample(made.guider(model=model))[0]) for model in models]
    run = client.run(made.graph)
    plain, neutral, edited = (pixels(client, run, node) for node in shown)
    assert (neutral == plain).all()
    assert (edited != plain).any()


def test_prompts_beyond_77_tokens_edit_and_blend(client: Client, sd15: str, photo: Path):
    made = add_word_edit(
        Graph(), sd15, client.upload_image(photo), STEPS, LONG + "cat", target_text=LONG + "dog", blend_words="cat, dog"
    )
    edited = made.sample(made.guider(model=made.prompt_to_prompt()[0]))
    shown = add_preview(made.graph, made.stock, edited[0])
    run = client.run(made.graph)
    assert pixels(client, run, shown).std() > 0
    assert run.results(made.words) == ["84 source words, 84 target words"]


def test_several_targets_are_edits_of_one_inversion_P4(client: Client, sd15: str, photo: Path):
    """ComfyUI's own list of texts: the edit and all behind it run once for each."""
    texts = ["a red dog on a wall", "a blue dog on a wall"]
    image = client.upload_image(photo)

    def shown(made: WordEdit) -> Node:
        return add_preview(made.graph, made.stock, made.sample(made.guider(model=made.prompt_to_prompt()[0]))[0])

    made = add_word_edit(Graph(), sd15, image, STEPS)
    each = {f"inputs.input{i}": made.graph.add("PrimitiveString", value=text)[0] for i, text in enumerate(texts)}
    made.graph[made.words.id]["inputs"]["target_text"] = made.graph.add("CreateList", **each)[0]
    together = shown(made)
    run = client.run(made.graph)
    assert run.executed.count(made.invert.id) == 1
    for text, picture in zip(texts, all_pixels(client, run, together), strict=True):
        alone = add_word_edit(Graph(), sd15, image, STEPS, target_text=text)
        node = shown(alone)
        assert (picture == pixels(client, client.run(alone.graph), node)).all()


def test_the_mask_takes_the_size_of_an_image_of_another_one(client: Client, sd15: str, photo: Path):
    made = add_word_edit(Graph(), sd15, client.upload_image(photo), STEPS)
    found = made.attention_mask(image=pictures(made, 1))
    as_image = made.graph.add("MaskToImage", mask=found[0])
    shown = [made.graph.add("PreviewImage", images=image) for image in (as_image[0], found[1])]
    run = client.run(made.graph)
    flat, heatmap = (pixels(client, run, node) for node in shown)
    assert flat.shape == heatmap.shape == (48, 48, 3)
    assert set(flat.flatten()) == {0, 255}


@pytest.mark.parametrize("value", [-1.1, 1.1])
def test_windows_beyond_the_steps_are_rejected_before_anything_runs(
    client: Client, sd15: str, photo: Path, value: float
):
    graph, node = refused(client, sd15, photo, lambda made: made.prompt_to_prompt(cross_end=value))
    with pytest.raises(PromptRejected) as refusal:
        client.run(graph)
    assert "cross_end" in str(refusal.value) and list(refusal.value.node_errors) == [node.id]
