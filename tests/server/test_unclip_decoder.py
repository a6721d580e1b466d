"""A text becomes a picture through prior, decoder and upsampler of the server; a picture is inverted; what is wrong is refused."""

from __future__ import annotations

import io
import pickle
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.fixtures.server_runs import pixels, require_refusal
from support.host.client import Client, Graph, Node, PromptRejected
from support.host.server import Server

pytestmark = pytest.mark.server

SIZE = 16
TEXT = "a red cube"


@dataclass(frozen=True)
class Files:
    folder: Path
    clip: str
    prior: str
    karlo: str
    unet: str
    text_proj: str
    upsampler: str
    single: str


@pytest.fixture(scope="module")
def files(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Files:
    from support.fixtures import checkpoints, unclip_files

    folder = tmp_path_factory.mktemp("unclip")
    linked = {part: server.link_model("diffusion_models", file) for part, file in unclip_files.written(folder).items()}
    return Files(
        folder,
        server.link_model("text_encoders", checkpoints.clip_l()),
        prior=linked["prior"],
        karlo=linked["decoder_karlo"],
        unet=linked["decoder"],
        text_proj=linked["text_proj"],
        upsampler=linked["upsampler_karlo"],
        single=linked["super_res_first"],
    )


@dataclass
class Wired:
    graph: Graph
    decoder: Node
    clip: Node
    sampled: Node
    told: Node
    small: Node
    upsampler: Node
    large: Node
    shown: tuple[Node, Node]


def wired(files: Files, steps: int = 4, decoder: dict | None = None, upsampler: dict | None = None, **told) -> Wired:
    graph = Graph()
    loaded = graph.add("PAL_LoadUnCLIPDecoder", **(decoder or {"model_name": files.karlo}))
    clip = graph.add("CLIPLoader", clip_name=files.clip, type="stable_diffusion")
    prior = graph.add("PAL_LoadPrior", prior_name=files.prior)
    embedded = graph.add(
        "PAL_SamplePrior", prior=prior[0], clip=clip[0], text=TEXT, negative_text="", steps=3, cfg=4.0, seed=1, candidates=1
    )  # fmt: skip
    inputs = {"clip": clip[0], "model": loaded[0], "text": TEXT, "clip_vision_output": embedded[0], **told}
    conditions = graph.add("PAL_UnCLIPConditioning", **inputs)
    guider = graph.add("CFGGuider", model=loaded[0], positive=conditions[0], negative=conditions[1], cfg=4.0)
    sampled = graph.add(
        "SamplerCustomAdvanced",
        noise=graph.add("RandomNoise", noise_seed=3)[0],
        guider=guider[0],
        sampler=graph.add("PAL_UnCLIPSampler", spacing="published")[0],
        sigmas=graph.add("BasicScheduler", model=loaded[0], scheduler="normal", steps=steps, denoise=1.0)[0],
        latent_image=graph.add("EmptyLatentImage", width=SIZE, height=SIZE, batch_size=1)[0],
    )
    small = graph.add("VAEDecode", samples=sampled[0], vae=loaded[1])
    larger = graph.add("PAL_LoadUpsampler", **(upsampler or {"model_name": files.upsampler}))
    large = graph.add("PAL_Upsample", upsampler=larger[0], image=small[0], steps=0, seed=5, scale=2, tile=512)
    shown = graph.add("PreviewImage", images=small[0]), graph.add("PreviewImage", images=large[0])
    return Wired(graph, loaded, clip, sampled, conditions, small, larger, large, shown)


def test_text_to_picture_in_both_layouts(client: Client, files: Files):
    made = wired(files)
    run = client.run(made.graph)
    small, large = (pixels(client, run, node) for node in made.shown)
    assert small.shape == (SIZE, SIZE, 3) and large.shape == (2 * SIZE, 2 * SIZE, 3)
    assert small.std() > 1 and large.std() > 1
    assert (made.upsampler.id, "7 steps as published, the last by its own network") in run.texts
    assert [step for step in run.progress if step[0] == made.large.id][-1] == (made.large.id, 7, 7)
    # The decoder's last preview and the upsampler's show what came of it; ComfyUI blows them up to 512 pixels, as JPEG.
    previews = [np.asarray(Image.open(io.BytesIO(file)).convert("RGB"), float) for file in run.previews]
    for picture in (small, large):
        expected = np.asarray(Image.fromarray(picture).resize((512, 512), Image.BILINEAR), float)
        near = [np.abs(preview - expected).mean() for preview in previews]
        assert min(near) < 8 < max(near)

    again = client.run(made.graph)
    assert made.large.id in again.cached
    client.post("/free", {"unload_models": True, "free_memory": True})
    other = wired(files, decoder={"model_name": files.unet, "text_proj_name": files.text_proj})
    run = client.run(other.graph)
    assert all(
        (pixels(client, run, node) == picture).all() for node, picture in zip(other.shown, (small, large), strict=True)
    )


def test_a_picture_is_inverted_and_comes_back(client: Client, files: Files, tmp_path: Path):
    from support.fixtures.server_runs import photo_file

    made = wired(files)
    graph = made.graph
    photo = graph.add("LoadImage", image=client.upload_image(photo_file(tmp_path, SIZE)))
    latent = graph.add("VAEEncode", pixels=photo[0], vae=made.decoder[1])
    sigmas = graph.add("BasicScheduler", model=made.decoder[0], scheduler="karras", steps=12, denoise=1.0)
    inverted = graph.add(
        "PAL_DDIMInvert", model=made.decoder[0], positive=made.told[0], latent_image=latent[0], sigmas=sigmas[0],
        method="fixed_point", iterations=8,
    )  # fmt: skip
    back = graph.add(
        "SamplerCustomAdvanced",
        noise=inverted[1],
        guider=graph.add("BasicGuider", model=made.decoder[0], conditioning=made.told[0])[0],
        sampler=graph.add("KSamplerSelect", sampler_name="euler")[0],
        sigmas=sigmas[0],
        latent_image=latent[0],
    )
    shown = graph.add("PreviewImage", images=graph.add("VAEDecode", samples=back[0], vae=made.decoder[1])[0])
    source = graph.add("PreviewImage", images=photo[0])
    run = client.run(graph)
    difference = pixels(client, run, shown).astype(float) - pixels(client, run, source)
    assert np.abs(difference).mean() < 4


def test_one_network_is_run_as_dalle2_s_second_upsampler(client: Client, files: Files):
    made = wired(files, upsampler={"model_name": files.single})
    run = client.run(made.graph)
    assert pixels(client, run, made.shown[1]).shape == (2 * SIZE, 2 * SIZE, 3)
    assert (made.upsampler.id, "15 steps as published, one network for all") in run.texts


def test_after_an_interrupt_the_next_run_is_as_if_nothing_had_happened(client: Client, files: Files):
    made = wired(files)
    run = client.run(made.graph)
    expected = [pixels(client, run, node) for node in made.shown]
    for changed, long in ((wired(files, steps=500), "sampled"), (wired(files), "large")):
        if long == "large":
            changed.graph[changed.large.id]["inputs"]["steps"] = 500
        node = getattr(changed, long).id
        stopped = client.run(
            changed.graph, on_progress=lambda at, *_, node=node: client.interrupt() if at == node else None
        )
        assert stopped.status == "interrupted" and stopped.error is None
        client.post("/free", {"unload_models": True, "free_memory": True})
        run = client.run(made.graph)
        assert all((pixels(client, run, made.shown[i]) == expected[i]).all() for i in range(2))


@pytest.mark.parametrize(
    ("node", "changed", "socket", "got"),
    [
        ("decoder", {"model_name": "upsampler"}, "model_name", "got unclip_upsampler_karlo.ckpt"),
        ("decoder", {"model_name": "prior"}, "model_name", "got unclip_prior.safetensors, the prior"),
        ("decoder", {"model_name": "unet"}, "text_proj_name", "got none"),
        ("upsampler", {"model_name": "karlo"}, "model_name", "got unclip_decoder_karlo.ckpt"),
        ("upsampler", {"model_name": "upsampler", "last_name": "single"}, "last_name", "got unclip_super_res_first"),
    ],
)
def test_wrong_files_are_refused_by_name(client: Client, files: Files, node: str, changed: dict, socket: str, got: str):
    made = wired(files, **{node: {name: getattr(files, kind) for name, kind in changed.items()}})
    require_refusal(client.run(made.graph), made.graph, getattr(made, node), socket, got)


def test_broken_and_dangerous_files_are_refused_and_leave_nothing_behind(client: Client, server: Server, files: Files):
    cut, code = files.folder / "unclip_cut.safetensors", files.folder / "unclip_code.ckpt"
    cut.write_bytes((files.folder / "unclip_decoder.safetensors").read_bytes()[:100_000])
    code.write_bytes(pickle.dumps(Payload(files.folder / "ran")))
    for file, message in ((cut, "could not be read"), (code, "holds more than tensors, which is never loaded")):
        name = server.link_model("diffusion_models", file)
        for kind in ("decoder", "upsampler"):
            made = wired(files, **{kind: {"model_name": name}})
            run = client.run(made.graph)
            assert run.status == "error" and run.error.node_id == getattr(made, kind).id
            assert message in run.error.message
    assert not (files.folder / "ran").exists()
    made = wired(files)
    assert pixels(client, client.run(made.graph), made.shown[0]).std() > 1


class Payload:
    def __init__(self, file: Path):
        self.file = file

    def __reduce__(self):
        return (Path.touch, (self.file,))


def test_a_missing_file_is_named_with_its_folder_and_size(client: Client, files: Files):
    for kind, missing, published in (
        ("decoder", {"model_name": "gone.ckpt"}, "decoder-ckpt-step=01000000-of-01000000.ckpt (3.6 GB"),
        (
            "upsampler",
            {"model_name": files.single, "last_name": "gone.ckpt"},
            "improved-sr-ckpt-step=1.2M.ckpt (5.5 GB",
        ),
    ):
        made = wired(files, **{kind: missing})
        del made.graph[made.shown[0].id]  # would run without the upsampler
        with pytest.raises(PromptRejected) as refusal:
            client.run(made.graph)
        errors = str(refusal.value.node_errors[getattr(made, kind).id]["errors"])
        assert "expected a file in models/diffusion_models, got 'gone.ckpt'" in errors
        assert published in errors


def test_another_clip_another_model_and_another_embedding_are_refused(
    client: Client, server: Server, files: Files, sd15: str
):
    from support.fixtures import twin_unclip

    made = wired(files)
    checkpoint = made.graph.add("CheckpointLoaderSimple", ckpt_name=sd15)
    made.graph[made.told.id]["inputs"]["model"] = checkpoint[0]
    require_refusal(client.run(made.graph), made.graph, made.told, "model", "got BaseModel")
    made.graph[made.told.id]["inputs"] |= {"model": made.decoder[0], "clip": checkpoint[1]}
    run = client.run(made.graph)
    assert run.error.node_id == made.told.id and run.error.message.startswith("clip: expected a text encoder with its")

    narrow = twin_unclip.decoder(text_width=64, image_width=768)
    name = server.link_model("diffusion_models", twin_unclip.write(files.folder, "narrow.ckpt", narrow.karlo()))
    made = wired(files, decoder={"model_name": name})
    require_refusal(client.run(made.graph), made.graph, made.told, "clip", "got 768")
    other = twin_unclip.decoder(text_width=768, image_width=64)
    name = server.link_model("diffusion_models", twin_unclip.write(files.folder, "other.ckpt", other.karlo()))
    made = wired(files, decoder={"model_name": name})
    require_refusal(client.run(made.graph), made.graph, made.told, "clip_vision_output", "got [1, 768]")


def test_an_ordinary_model_is_refused_by_the_sampler_and_a_latent_of_another_kind_by_the_decoder(
    client: Client, files: Files, sd15: str
):
    made = wired(files)
    checkpoint = made.graph.add("CheckpointLoaderSimple", ckpt_name=sd15)
    text = made.graph.add("CLIPTextEncode", clip=checkpoint[1], text=TEXT)
    guider = made.graph.add("BasicGuider", model=checkpoint[0], conditioning=text[0])
    latent = made.graph.add("EmptyLatentImage", width=64, height=64, batch_size=1)
    inputs = made.graph[made.sampled.id]["inputs"]
    before = dict(inputs)
    inputs |= {"guider": guider[0], "latent_image": latent[0]}
    require_refusal(client.run(made.graph), made.graph, made.sampled, "sampler", "got BaseModel")
    encoded = made.graph.add(
        "VAEEncode",
        pixels=made.graph.add("EmptyImage", width=64, height=64, batch_size=1, color=255)[0],
        vae=checkpoint[2],
    )
    inputs |= before | {"latent_image": encoded[0]}
    require_refusal(client.run(made.graph), made.graph, made.sampled, "latent_image", "got [1, 4, 8, 8]")
