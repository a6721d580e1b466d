"""Inversion and Plug-and-Play as an artist meets them: through the server, with errors, cancel and second runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.cases import cases
from support.fixtures.server_runs import dit_file, expect_error, photo_file, pixels
from support.host.client import Client, Graph, Node, PromptRejected
from support.host.graphs import Stock, add_stock
from support.host.server import Server

pytestmark = pytest.mark.server

SIZE = 64
STEPS = 3


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return photo_file(tmp_path_factory.mktemp("photo"), SIZE)


@pytest.fixture(scope="module")
def dit(server: Server, tmp_path_factory: pytest.TempPathFactory) -> str:
    return server.link_model("diffusion_models", dit_file(tmp_path_factory.mktemp("dit")))


@dataclass
class Inversion:
    graph: Graph
    stock: Stock
    picture: Node
    sigmas: Node
    invert: Node

    def guider(self, model: list, cfg: float = 4.0) -> Node:
        return self.graph.add(
            "CFGGuider", model=model, positive=self.stock.positive[0], negative=self.stock.negative[0], cfg=cfg
        )

    def sample(self, guider: Node, sampler_name: str = "euler", sigmas: Node | None = None, **changed) -> Node:
        inputs = {"noise": self.invert[1], "latent_image": self.invert[2], **changed}
        sampler = self.graph.add("KSamplerSelect", sampler_name=sampler_name)
        sampled = self.graph.add(
            "SamplerCustomAdvanced", guider=guider[0], sampler=sampler[0], sigmas=(sigmas or self.sigmas)[0], **inputs
        )
        image = self.graph.add("VAEDecode", samples=sampled[0], vae=self.stock.vae)
        return self.graph.add("PreviewImage", images=image[0])

    def schedule(self, steps: int, scheduler: str = "ddim_uniform") -> Node:
        return self.graph.add("BasicScheduler", model=self.stock.model, scheduler=scheduler, steps=steps, denoise=1.0)


def inversion(client: Client, sd15: str, photo: Path, method: str = "ddim", steps: int = STEPS) -> Inversion:
    graph = Graph()
    stock = add_stock(graph, sd15, positive="a red circle")
    picture = graph.add("LoadImage", image=client.upload_image(photo))
    latent = graph.add("VAEEncode", pixels=picture[0], vae=stock.vae)
    sigmas = graph.add("BasicScheduler", model=stock.model, scheduler="ddim_uniform", steps=steps, denoise=1.0)
    empty = graph.add("CLIPTextEncode", clip=stock.clip, text="")
    invert = graph.add(
        "PAL_DDIMInvert", model=stock.model, positive=empty[0], latent_image=latent[0], sigmas=sigmas[0],
        method=method, iterations=3,
    )  # fmt: skip
    return Inversion(graph, stock, picture, sigmas, invert)


def add_edit(made: Inversion, **changed) -> Node:
    inputs = {"trajectory": made.invert[0], "feature_end": 0.8, "attention_end": 0.5, "blocks": "auto", **changed}
    return made.graph.add("PAL_PlugAndPlay", model=made.stock.model, **inputs)


def test_inverting_shows_progress_and_previews_and_a_second_edit_inverts_nothing(
    client: Client, sd15: str, photo: Path
):
    made = inversion(client, sd15, photo, method="fixed_point")
    edit = add_edit(made)
    shown = made.sample(made.guider(edit[0]))
    first = client.run(made.graph)
    picture = pixels(client, first, shown)
    assert picture.shape == (SIZE, SIZE, 3)
    levels = sorted({value for node, value, maximum in first.progress if node == made.invert.id})
    assert levels == list(range(1, levels[-1] + 1)) and levels[-1] >= STEPS
    assert len(first.previews) >= 2 * STEPS

    made.graph[edit.id]["inputs"]["attention_end"] = 0.0
    second = client.run(made.graph)
    assert {made.invert.id, made.picture.id} <= set(second.cached) and edit.id in second.executed
    assert (pixels(client, second, shown) != picture).any()


def test_capturing_shows_progress_and_previews_and_a_second_edit_captures_nothing(
    client: Client, sd15: str, photo: Path
):
    made = inversion(client, sd15, photo, steps=10)
    settings = {"feature_end": 0.8, "attention_end": 0.5, "blocks": "auto"}
    capture = made.graph.add(
        "PAL_CaptureFeatures", model=made.stock.model, trajectory=made.invert[0], dtype="fp16", **settings
    )
    edit = add_edit(made, features=capture[0], attention_end=0.3)
    shown = made.sample(made.guider(edit[0]))
    first = client.run(made.graph)
    picture = pixels(client, first, shown)
    assert sorted({(at, of) for node, at, of in first.progress if node == capture.id and at}) == [
        (i, 8) for i in range(1, 9)
    ]
    assert len(first.previews) >= 10 + 8 + 10

    made.graph[edit.id]["inputs"]["attention_end"] = 0.5
    second = client.run(made.graph)
    assert {made.invert.id, capture.id} <= set(second.cached) and edit.id in second.executed
    assert (pixels(client, second, shown) != picture).any()


def test_windows_of_zero_are_the_picture_without_the_node(client: Client, sd15: str, photo: Path):
    made = inversion(client, sd15, photo)
    plain = made.sample(made.guider(made.stock.model))
    neutral = made.sample(made.guider(add_edit(made, feature_end=0.0, attention_end=0.0)[0]))
    edited = made.sample(made.guider(add_edit(made)[0]))
    run = client.run(made.graph)
    assert (pixels(client, run, plain) == pixels(client, run, neutral)).all()
    assert (pixels(client, run, plain) != pixels(client, run, edited)).any()


@pytest.mark.compat
def test_a_trajectory_saved_in_one_run_is_loaded_in_the_next(client: Client, server: Server, sd15: str, photo: Path):
    made = inversion(client, sd15, photo)
    saved = made.graph.add("PAL_SaveTrajectory", trajectory=made.invert[0], filename_prefix="paths/portrait")
    strip = made.graph.add("PAL_PreviewTrajectory", trajectory=made.invert[0], frames=4, vae=made.stock.vae)
    run = client.run(made.graph)
    assert run.status == "success", run.error
    [file] = run.outputs[saved.id]["trajectories"]
    assert (file["subfolder"], file["filename"]) == ("paths", "portrait_00001_.trajectory.safetensors")
    path = server.base / "output" / "paths" / file["filename"]
    assert run.results(saved) == [f"{path.name}, {path.stat().st_size / 2**20:.1f} MB"]

    name = f"{file['subfolder']}/{file['filename']} [output]"
    assert name in client.object_info()["PAL_LoadTrajectory"]["input"]["required"]["trajectory_file"][1]["options"]
    graph = Graph()
    loader = graph.add("PAL_LoadTrajectory", trajectory_file=name)
    stock = add_stock(graph, sd15)
    graph.add("PAL_TrajectoryStart", model=stock.model, trajectory=loader[0])
    again = graph.add("PAL_PreviewTrajectory", trajectory=loader[0], frames=4, vae=stock.vae)
    assert (pixels(client, client.run(graph), again) == pixels(client, run, strip)).all()

    path.write_bytes(path.read_bytes()[:-100])
    expect_error(
        client, graph, loader, "portrait_00001_.trajectory.safetensors is not a trajectory this version can read"
    )


def test_loading_reads_nothing_outside_the_folders(client: Client, server: Server):
    secret = server.base / "secret.trajectory.safetensors"
    secret.write_bytes(b"x" * 100)
    (server.base / "output").mkdir(exist_ok=True)
    link = server.base / "output" / "link.trajectory.safetensors"
    link.symlink_to(secret)
    for name in ("../secret.trajectory.safetensors [output]", str(secret), "link.trajectory.safetensors [output]"):
        graph = Graph()
        loader = graph.add("PAL_LoadTrajectory", trajectory_file=name)
        graph.add("PAL_PreviewTrajectory", trajectory=loader[0], frames=4)
        with pytest.raises(PromptRejected) as refusal:
            client.run(graph)
        [error] = refusal.value.node_errors[loader.id]["errors"]
        assert "is not in the output or input folder" in error["details"]
    link.unlink()


def test_saving_writes_nothing_outside_the_output_folder(client: Client, server: Server, sd15: str, photo: Path):
    made = inversion(client, sd15, photo)
    saved = made.graph.add("PAL_SaveTrajectory", trajectory=made.invert[0], filename_prefix="../../escaped")
    expect_error(client, made.graph, saved, "outside the output folder")
    assert not list(server.base.parent.glob("escaped*")) and not list(server.base.glob("escaped*"))


def test_compare_images_gives_figures_and_shows_them(client: Client, photo: Path):
    graph = Graph()
    picture = graph.add("LoadImage", image=client.upload_image(photo))
    other = graph.add("ImageInvert", image=picture[0])
    compare = graph.add("PAL_CompareImages", image_a=picture[0], image_b=other[0], gain=4.0)
    figures = client.run(graph).outputs[compare.id]
    a = np.asarray(Image.open(photo).convert("RGB")) / 255
    expected = -10 * np.log10(np.mean((2 * a - 1) ** 2))
    assert f"PSNR {expected:.2f} dB" in figures["palimpsest_result"][0]
    assert figures["images"]
    graph[compare.id]["inputs"]["image_b"] = graph.add("EmptyImage", width=32, height=32, batch_size=1, color=0)[0]
    expect_error(client, graph, compare, "image_a, image_b: expected pictures of one size and batch")


@pytest.mark.parametrize("node", cases(["PAL_DDIMInvert", "PAL_CaptureFeatures"], "PAL_DDIMInvert"))
@pytest.mark.compat
def test_after_an_interrupt_the_next_run_is_as_if_nothing_had_happened(
    client: Client, sd15: str, photo: Path, node: str
):
    def build(steps: int) -> tuple[Graph, Node, Node]:
        made = inversion(client, sd15, photo, steps=steps)
        captured = made.graph.add(
            "PAL_CaptureFeatures", model=made.stock.model, trajectory=made.invert[0], blocks="auto", dtype="fp16",
            feature_end=1.0, attention_end=1.0,
        )  # fmt: skip
        shown = made.sample(made.guider(add_edit(made, features=captured[0])[0]))
        stopped = {"PAL_DDIMInvert": made.invert, "PAL_CaptureFeatures": captured}[node]
        return made.graph, stopped, shown

    graph, _, shown = build(STEPS)
    before = pixels(client, client.run(graph), shown)
    longer, target, _ = build(12)
    stopped = client.run(longer, on_progress=lambda at, value, _: at == target.id and value == 2 and client.interrupt())
    assert stopped.status == "interrupted"
    assert stopped.progress[-1][0] == target.id and stopped.progress[-1][1] < 12
    client.free()
    again = client.run(graph)
    assert again.cached == []
    assert (pixels(client, again, shown) == before).all()


@pytest.mark.parametrize("sampler", cases(["euler_ancestral", "dpmpp_2m_sde"], "euler_ancestral"))
def test_a_sampler_with_noise_of_its_own_edits_but_records_nothing(
    client: Client, sd15: str, photo: Path, sampler: str
):
    made = inversion(client, sd15, photo)
    made.sample(made.guider(add_edit(made)[0]), sampler)
    assert client.run(made.graph).status == "success"

    made = inversion(client, sd15, photo)
    recorded = made.graph.add(
        "PAL_SampleTrajectory", noise=made.invert[1], guider=made.guider(made.stock.model)[0], sigmas=made.sigmas[0],
        sampler=made.graph.add("KSamplerSelect", sampler_name=sampler)[0], latent_image=made.invert[2],
    )  # fmt: skip
    made.graph.add("PAL_PreviewTrajectory", trajectory=recorded[1], frames=4)
    expect_error(client, made.graph, recorded, f"got {sampler}, which adds noise")


@pytest.mark.parametrize("sampler", cases(["dpm_2", "dpmpp_sde"], "dpm_2"))
def test_a_sampler_between_the_levels_is_refused(client: Client, sd15: str, photo: Path, sampler: str):
    made = inversion(client, sd15, photo)
    made.sample(made.guider(add_edit(made)[0]), sampler)
    node = next(Node(i) for i, spec in made.graph.items() if spec["class_type"] == "SamplerCustomAdvanced")
    expect_error(client, made.graph, node, f"levels only, got {sampler}, which also needs sigma")


def test_another_step_grid_is_refused(client: Client, sd15: str, photo: Path):
    made = inversion(client, sd15, photo)
    made.sample(made.guider(add_edit(made)[0]), sigmas=made.schedule(STEPS + 1))
    node = next(Node(i) for i, spec in made.graph.items() if spec["class_type"] == "SamplerCustomAdvanced")
    expect_error(client, made.graph, node, "sigmas: expected noise levels of the trajectory")


def test_a_latent_of_another_size_is_refused(client: Client, sd15: str, photo: Path):
    made = inversion(client, sd15, photo)
    other = made.graph.add("EmptyLatentImage", width=128, height=64, batch_size=1)
    noise = made.graph.add("RandomNoise", noise_seed=1)
    made.sample(made.guider(add_edit(made)[0]), noise=noise[0], latent_image=other[0])
    node = next(Node(i) for i, spec in made.graph.items() if spec["class_type"] == "SamplerCustomAdvanced")
    expect_error(client, made.graph, node, "latent_image: expected the trajectory's")


def test_a_model_without_unet_blocks_and_one_of_another_kind_are_refused(
    client: Client, sd15: str, dit: str, photo: Path
):
    made = inversion(client, sd15, photo)
    loader = made.graph.add("UNETLoader", unet_name=dit, weight_dtype="default")
    edit = made.graph.add(
        "PAL_PlugAndPlay", model=loader[0], trajectory=made.invert[0], feature_end=0.8, attention_end=0.5, blocks="auto"
    )
    made.sample(made.guider(edit[0]))
    expect_error(client, made.graph, edit, "model: expected")

    made = inversion(client, sd15, photo)
    v = made.graph.add("ModelSamplingDiscrete", model=made.stock.model, sampling="v_prediction", zsnr=False)
    edit = made.graph.add(
        "PAL_PlugAndPlay", model=v[0], trajectory=made.invert[0], feature_end=0.8, attention_end=0.5, blocks="auto"
    )
    made.sample(made.guider(edit[0]))
    expect_error(client, made.graph, edit, "model: expected the kind of model the trajectory was made with")


@pytest.mark.parametrize(
    ("blocks", "message"),
    [("features 99", "99"), ("attention 0", "0"), ("colours 4", "colours"), ("features 4-", "4-")],
)
def test_blocks_that_do_not_exist_are_named(client: Client, sd15: str, photo: Path, blocks: str, message: str):
    made = inversion(client, sd15, photo)
    edit = add_edit(made, blocks=blocks)
    made.sample(made.guider(edit[0]))
    expect_error(client, made.graph, edit, "blocks: ")
    assert message in client.run(made.graph).error.message


def test_flipped_or_cut_sigmas_and_an_empty_latent_are_refused_by_the_inversion(client: Client, sd15: str, photo: Path):
    for change, message in (
        (lambda made: made.graph.add("FlipSigmas", sigmas=made.sigmas[0])[0], "sigmas: expected strictly descending"),
        (
            lambda made: made.graph.add("SplitSigmas", sigmas=made.sigmas[0], step=1)[0],
            "expected the schedule to end at 0",
        ),
    ):
        made = inversion(client, sd15, photo)
        made.graph[made.invert.id]["inputs"]["sigmas"] = change(made)
        made.graph.add("PAL_PreviewTrajectory", trajectory=made.invert[0], frames=4)
        expect_error(client, made.graph, made.invert, message)
    made = inversion(client, sd15, photo)
    made.graph[made.invert.id]["inputs"]["latent_image"] = made.stock.latent[0]
    made.graph.add("PAL_PreviewTrajectory", trajectory=made.invert[0], frames=4)
    expect_error(client, made.graph, made.invert, "latent_image: expected the latent of a picture, got an empty latent")
