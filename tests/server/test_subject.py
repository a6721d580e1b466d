"""Subjects as an artist meets them: one published file through the server to a picture, and what is refused."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image
from skimage import data
from support.fixtures.server_runs import expect_error, pixels
from support.host.client import Client, Graph, Node, PromptRejected
from support.host.server import Server

pytestmark = pytest.mark.server

SIZE = 64
TEXT = "an astronaut <|image|> and a cat <subject> on a beach"


@pytest.fixture(scope="module")
def subject_file(server: Server) -> str:
    from support.fixtures import subject_checkpoint  # builds on ComfyUI's classes

    return server.link_model("checkpoints", subject_checkpoint.published(), "fastcomposer.safetensors")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("photos")
    astronaut = Image.fromarray(data.astronaut()).crop((120, 0, 320, 240))
    astronaut.save(folder / "astronaut.png")
    Image.fromarray(data.cat()).save(folder / "cat.png")
    return folder / "astronaut.png", folder / "cat.png"


@dataclass
class Scene:
    graph: Graph
    loader: Node
    subjects: Node
    pictures: tuple[Node, ...]

    def sample(self, positive: list, model: Node | None = None) -> Node:
        graph, loader = self.graph, model or self.loader
        negative = graph.add("CLIPTextEncode", clip=loader[1], text="")
        latent = graph.add("EmptyLatentImage", width=SIZE, height=SIZE, batch_size=1)
        sampled = graph.add(
            "KSampler", model=loader[0], positive=positive, negative=negative[0], latent_image=latent[0], seed=1, steps=2,
            cfg=5.0, sampler_name="euler", scheduler="normal", denoise=1.0,
        )  # fmt: skip
        decoded = graph.add("VAEDecode", samples=sampled[0], vae=loader[2])
        return graph.add("PreviewImage", images=decoded[0])


def scene(client: Client, file: str, photos: tuple[Path, Path], text: str = TEXT, **changed) -> Scene:
    graph = Graph()
    loader = graph.add("PAL_LoadSubjectEncoder", ckpt_name=file)
    pictures = tuple(graph.add("LoadImage", image=client.upload_image(photo)) for photo in photos)
    subjects = graph.add(
        "PAL_SubjectConditioning", clip=loader[1], subject_encoder=loader[3], images=pictures[0][0], text=text,
        **{"image_2": pictures[1][0], **changed},
    )  # fmt: skip
    return Scene(graph, loader, subjects, pictures)


def test_one_file_is_enough_for_a_picture_of_two_subjects(client: Client, subject_file: str, photos):
    made = scene(client, subject_file, photos)
    with_subjects, plain = made.sample(made.subjects[0]), made.sample(made.subjects[1])
    run = client.run(made.graph)
    picture = pixels(client, run, with_subjects)
    assert picture.shape == (SIZE, SIZE, 3) and picture.std() > 1
    assert (picture != pixels(client, run, plain)).any()

    made.graph[made.subjects.id]["inputs"]["images"] = made.pictures[1][0]
    made.graph[made.subjects.id]["inputs"]["image_2"] = made.pictures[0][0]
    swapped = client.run(made.graph)
    assert made.loader.id in swapped.cached and made.subjects.id in swapped.executed
    assert (pixels(client, swapped, with_subjects) != picture).any()

    client.free()
    again = scene(client, subject_file, photos)
    shown = again.sample(again.subjects[0])
    run = client.run(again.graph)
    assert run.cached == []
    assert (pixels(client, run, shown) == picture).all()


def test_a_text_only_file_gives_its_models_and_says_what_it_lacks(
    client: Client, server: Server, photos, tmp_path_factory: pytest.TempPathFactory
):
    from safetensors.torch import load_file, save_file
    from support.fixtures import subject_checkpoint

    file = tmp_path_factory.mktemp("tdm") / "tdm.safetensors"
    save_file(subject_checkpoint.text_only(load_file(subject_checkpoint.published())), file)
    made = scene(client, server.link_model("checkpoints", file), photos)
    text = made.graph.add("CLIPTextEncode", clip=made.loader[1], text="a beach")
    shown = made.sample(text[0])
    run = client.run(made.graph)
    assert pixels(client, run, shown).shape == (SIZE, SIZE, 3)

    made.sample(made.subjects[0])
    message = "subject_encoder: expected from a checkpoint with one, got tdm.safetensors, a text-only model"
    run = client.run(made.graph)
    assert run.error.node_id == made.subjects.id
    assert message in run.error.message


def test_wrong_files_are_told_apart_and_leave_nothing_behind(
    client: Client, server: Server, sd15: str, subject_file: str, photos, tmp_path_factory: pytest.TempPathFactory
):
    from support.fixtures import subject_checkpoint

    folder = tmp_path_factory.mktemp("wrong")
    (folder / "cut.safetensors").write_bytes(subject_checkpoint.published().read_bytes()[:1_000_000])
    (folder / "code.bin").write_bytes(pickle.dumps(Payload(folder / "ran")))
    messages = {
        sd15: "an ordinary checkpoint without a subject encoder. Use Load Checkpoint for it.",
        server.link_model("checkpoints", folder / "cut.safetensors"): "cut.safetensors could not be read",
        server.link_model("checkpoints", folder / "code.bin"): "holds more than tensors, which is never loaded",
    }
    for file, message in messages.items():
        made = scene(client, file, photos)
        made.sample(made.subjects[0])
        expect_error(client, made.graph, made.loader, message)
    assert not (folder / "ran").exists()
    made = scene(client, subject_file, photos)
    shown = made.sample(made.subjects[0])
    assert pixels(client, client.run(made.graph), shown).shape == (SIZE, SIZE, 3)


class Payload:
    def __init__(self, file: Path):
        self.file = file

    def __reduce__(self):
        return (Path.touch, (self.file,))


def test_only_listed_files_are_loaded(client: Client, subject_file: str, photos):
    offered = client.object_info()["PAL_LoadSubjectEncoder"]["input"]["required"]["ckpt_name"]
    assert subject_file in str(offered)
    made = scene(client, "../../secret.safetensors", photos)
    made.sample(made.subjects[0])
    with pytest.raises(PromptRejected) as refusal:
        client.run(made.graph)
    assert made.loader.id in refusal.value.node_errors


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("an astronaut and a cat on a beach", "text: expected one marker for each of the 2 reference pictures"),
        ("an astronaut <|image|> on a beach", "got 1 in"),
        ("<|image|> an astronaut and a cat <|image|>", "got nothing before marker 1"),
        ("an astronaut <|image|> <|image|> and a cat", "got another marker before marker 2"),
    ],
)
def test_markers_that_do_not_fit_are_refused(client: Client, subject_file: str, photos, text: str, message: str):
    made = scene(client, subject_file, photos, text)
    made.sample(made.subjects[0])
    expect_error(client, made.graph, made.subjects, message)


def test_pictures_and_masks_that_do_not_fit_are_refused(client: Client, subject_file: str, photos):
    made = scene(client, subject_file, photos)
    inputs = made.graph[made.subjects.id]["inputs"]
    made.sample(made.subjects[0])
    inputs["mask"] = made.pictures[0][1]
    expect_error(
        client,
        made.graph,
        made.subjects,
        "mask: expected one mask or 1 of the size of images, 200 x 240, got 1 of 64 x 64",
    )
    inputs["mask"] = made.graph.add("SolidMask", value=0.0, width=200, height=240)[0]
    expect_error(client, made.graph, made.subjects, "mask: expected white where the subject is")
    del inputs["mask"]
    inputs["mask_3"] = made.pictures[0][1]
    expect_error(client, made.graph, made.subjects, "mask_3: expected a mask of image_3, got one without that picture")
    del inputs["mask_3"]
    inputs["image_2"] = made.graph.add("RepeatImageBatch", image=made.pictures[1][0], amount=4)[0]
    expect_error(client, made.graph, made.subjects, "images: expected at most 4 reference pictures")


def test_another_clip_is_refused(client: Client, subject_file: str, photos):
    made = scene(client, subject_file, photos)
    skip = made.graph.add("CLIPSetLastLayer", clip=made.loader[1], stop_at_clip_layer=-2)
    made.graph[made.subjects.id]["inputs"]["clip"] = skip[0]
    made.sample(made.subjects[0])
    expect_error(
        client, made.graph, made.subjects, "clip: expected its last layer, which the subject encoder was trained with"
    )
