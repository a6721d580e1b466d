"""Two models in one picture as an artist meets them: through the server, with previews, neutral settings and a third model."""

from __future__ import annotations

import io
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image
from support.fixtures.server_runs import lora_file, pixels, second_checkpoint_file
from support.host.client import Client, Graph
from support.host.graphs import Fusion, saliency_fusion, subject_fusion
from support.host.server import Server

pytestmark = pytest.mark.server

SIZE = 64
STEPS = 3


@pytest.fixture(scope="module")
def lora(server: Server, tmp_path_factory: pytest.TempPathFactory) -> str:
    return server.link_model("loras", lora_file(tmp_path_factory.mktemp("lora")))


@pytest.fixture(scope="module")
def second(server: Server, tmp_path_factory: pytest.TempPathFactory) -> str:
    return server.link_model("checkpoints", second_checkpoint_file(tmp_path_factory.mktemp("second")))


def test_two_checkpoints_make_one_picture_with_its_mask_in_the_preview(client: Client, sd15: str, second: str):
    made = saliency_fusion(sd15, STEPS, second)
    alone = made.plain(), made.plain(made.graph[made.guider.id]["inputs"]["model_expert"])
    run = client.run(made.graph)
    picture = pixels(client, run, made.shown)
    assert all((picture != pixels(client, run, single)).any() for single in alone)

    previews = client.run(fusion_only(made)).previews
    assert len(previews) > STEPS  # ComfyUI's own and, after at least one of them, the one with the mask
    colours = [np.asarray(Image.open(io.BytesIO(file)).convert("RGB"), dtype=float) for file in previews]
    tinted = [(b - a) for a, b in pairwise(colours) if a.shape == b.shape]
    assert (
        max(float(change[..., 0].max() - change[..., 2].min()) for change in tinted) > 60
    )  # orange: red up, blue down


def fusion_only(made: Fusion) -> Graph:
    """The same run once more, from other noise so that nothing is cached, without the pictures beside it."""
    graph = Graph({**made.graph})
    noise = next(node for node in graph.values() if node["class_type"] == "RandomNoise")
    noise["inputs"]["noise_seed"] += 1
    keep, wanted = set(), [made.shown.id]
    while wanted:
        node = wanted.pop()
        keep.add(node)
        wanted += [value[0] for value in graph[node]["inputs"].values() if isinstance(value, list)]
    return Graph({node: graph[node] for node in graph if node in keep})


def test_a_checkpoint_and_its_lora_and_neutral_settings(client: Client, sd15: str, lora: str):
    made = saliency_fusion(sd15, STEPS, lora=lora)
    variant = made.graph[made.guider.id]["inputs"]["model_expert"]
    inputs = made.graph[made.guider.id]["inputs"]
    shown = {
        name: made.sample(made.graph.add("PAL_SaliencyFusionGuider", **{**inputs, **changed}))
        for name, changed in {
            "never": {"start_percent": 0.3, "end_percent": 0.3},
            "soft": {"mode": "soft", "mode.temperature": 1.0},
            "general uncond": {"expert_uncond": "general", "blur": "gaussian"},
            "published": {"saliency": "published", "saliency.k_general": 1.0, "saliency.k_expert": 1.0},
        }.items()
    }
    mask = made.graph.add("SolidMask", value=1.0, width=SIZE, height=SIZE)
    everywhere = made.graph.add("PAL_SaliencyFusionGuider", **{**inputs, "mask": mask[0], "mask_use": "decide"})
    shown["everywhere"] = made.sample(everywhere)
    general, expert = made.plain(), made.plain(variant)
    run = client.run(made.graph)
    pictures = {name: pixels(client, run, node) for name, node in shown.items()}
    fused, general, expert = (pixels(client, run, node) for node in (made.shown, general, expert))
    assert (general != expert).any() and (fused != general).any() and (fused != expert).any()
    assert (pictures["never"] == general).all()
    assert np.abs(pictures["everywhere"].astype(int) - expert).max() <= 1
    assert (pictures["soft"] != fused).any() and (pictures["general uncond"] != fused).any()
    assert (pictures["published"] != fused).any()


def test_a_third_model_comes_from_a_fusion_expert(client: Client, sd15: str, second: str, lora: str):
    made = saliency_fusion(sd15, STEPS, lora=lora)
    other = made.graph.add("CheckpointLoaderSimple", ckpt_name=second)
    inputs = made.graph[made.guider.id]["inputs"]
    own = ("positive_expert", "negative_expert", "cfg_expert", "start_percent", "end_percent")
    third = made.graph.add(
        "PAL_FusionExpert",
        model_expert=other[0],
        mask_use="restrict",
        **{name: inputs[name] for name in own},
        **{"saliency": "published", "saliency.k_expert": 5.0},
    )
    both = made.graph.add("PAL_SaliencyFusionGuider", **inputs, **{"experts.expert0": third[0]})
    shown = made.sample(both)
    look = made.graph.add(
        "PAL_SaliencyMap", guider=both[0], step=0, expert=2, latent_image=made.stock.latent[0],
        sigmas=made.graph.add("BasicScheduler", model=made.stock.model, scheduler="normal", steps=4, denoise=1.0)[0],
        noise=made.graph.add("RandomNoise", noise_seed=3)[0],
    )  # fmt: skip
    heat = made.graph.add("PreviewImage", images=look[1])
    mask = made.graph.add("PreviewImage", images=made.graph.add("MaskToImage", mask=look[0])[0])
    run = client.run(made.graph)
    assert (pixels(client, run, shown) != pixels(client, run, made.shown)).any()
    assert pixels(client, run, heat).shape == (SIZE, 3 * SIZE, 3)
    assert set(np.unique(pixels(client, run, mask))) == {0, 255}


def test_a_subject_fusion(client: Client, sd15: str, second: str):
    made = subject_fusion(sd15, second)
    alone = made.plain(), made.plain(made.graph[made.guider.id]["inputs"]["model_subject"])
    run = client.run(made.graph)
    picture = pixels(client, run, made.shown)
    assert all((picture != pixels(client, run, single)).any() for single in alone)
