"""Two models in one picture as an artist meets them: through the server, with previews, errors, cancel and many runs."""

from __future__ import annotations

import io
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from host.client import Client, Graph, Node, PromptRejected, Run
from host.graphs import Stock, add_stock
from host.server import Server
from PIL import Image

pytestmark = pytest.mark.server

SIZE = 64
STEPS = 3


@pytest.fixture(scope="module")
def lora(server: Server, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A LoRA of the random checkpoint's first cross-attention, strong enough to be seen."""
    import torch
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(3)
    name = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
    file = tmp_path_factory.mktemp("lora") / "variant.safetensors"
    weights = {
        f"{name}.lora_up.weight": torch.randn(320, 4, generator=generator),
        f"{name}.lora_down.weight": torch.randn(4, 768, generator=generator),
        f"{name}.alpha": torch.tensor(4.0),
    }
    save_file(weights, file)
    return server.link_model("loras", file)


@pytest.fixture(scope="module")
def second(server: Server, sd15: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Another random checkpoint."""
    from fixtures.checkpoints import sd15_weights
    from safetensors.torch import save_file

    file = tmp_path_factory.mktemp("second") / "expert.safetensors"
    save_file(sd15_weights(seed=1), file)
    return server.link_model("checkpoints", file)


@pytest.fixture(scope="module")
def dit(server: Server, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A one-block SD3 model in its published layout: latents of 16 channels."""
    from fixtures.tiny_models import flow_dit
    from safetensors.torch import save_file

    weights = flow_dit().model.diffusion_model.state_dict()
    file = tmp_path_factory.mktemp("dit") / "fusion_dit.safetensors"
    save_file({key: value.contiguous() for key, value in weights.items()}, file)
    return server.link_model("diffusion_models", file)


@dataclass
class Fusion:
    graph: Graph
    stock: Stock
    guider: Node
    shown: Node


def fusion(sd15: str, expert: list | None = None, lora: str | None = None, steps: int = STEPS, **changed) -> Fusion:
    graph = Graph()
    stock = add_stock(graph, sd15, size=SIZE)
    if lora is not None:
        expert = graph.add("LoraLoaderModelOnly", model=stock.model, lora_name=lora, strength_model=1.0)[0]
    inputs = {
        "model": stock.model, "positive": stock.positive[0], "negative": stock.negative[0], "cfg": 5.0,
        "model_expert": expert or stock.model, "positive_expert": stock.positive[0],
        "negative_expert": stock.negative[0], "cfg_expert": 5.0, "k_general": 1.0, "k_expert": 1.0,
        "start_percent": 0.0, "end_percent": 1.0, "blur": "box", "expert_uncond": "own", "mode": "hard",
        "temperature": 0.5, **changed,
    }  # fmt: skip
    guider = graph.add(
        "PAL_SaliencyFusionGuider", **{name: value for name, value in inputs.items() if value is not None}
    )
    return Fusion(graph, stock, guider, sample(graph, stock, guider, steps))


def sample(graph: Graph, stock: Stock, guider: Node, steps: int = STEPS) -> Node:
    sampled = graph.add(
        "SamplerCustomAdvanced",
        noise=graph.add("RandomNoise", noise_seed=7)[0],
        guider=guider[0],
        sampler=graph.add("KSamplerSelect", sampler_name="euler")[0],
        sigmas=graph.add("BasicScheduler", model=stock.model, scheduler="ddim_uniform", steps=steps, denoise=1.0)[0],
        latent_image=stock.latent[0],
    )
    image = graph.add("VAEDecode", samples=sampled[0], vae=stock.vae)
    return graph.add("PreviewImage", images=image[0])


def plain(made: Fusion, model: list | None = None) -> Node:
    guider = made.graph.add(
        "CFGGuider",
        model=model or made.stock.model,
        positive=made.stock.positive[0],
        negative=made.stock.negative[0],
        cfg=5.0,
    )
    return sample(made.graph, made.stock, guider)


def pixels(client: Client, run: Run, shown: Node) -> np.ndarray:
    assert run.status == "success", run.error
    [item] = run.images(shown)
    return np.asarray(Image.open(io.BytesIO(client.image(item))).convert("RGB"))


def expect_error(client: Client, graph: Graph, node: Node, message: str) -> None:
    run = client.run(graph)
    assert run.status == "error"
    assert (run.error.node_id, run.error.node_type) == (node.id, graph[node.id]["class_type"]), run.error.message
    assert message in run.error.message


def test_two_checkpoints_make_one_picture_with_its_mask_in_the_preview(client: Client, sd15: str, second: str):
    made = fusion(sd15)
    other = made.graph.add("CheckpointLoaderSimple", ckpt_name=second)
    made.graph[made.guider.id]["inputs"]["model_expert"] = other[0]
    alone = plain(made), plain(made, other[0])
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
    made = fusion(sd15, lora=lora)
    variant = made.graph[made.guider.id]["inputs"]["model_expert"]
    inputs = made.graph[made.guider.id]["inputs"]
    shown = {
        name: sample(made.graph, made.stock, made.graph.add("PAL_SaliencyFusionGuider", **{**inputs, **changed}))
        for name, changed in {
            "never": {"start_percent": 0.3, "end_percent": 0.3},
            "soft": {"mode": "soft", "temperature": 1.0},
            "general uncond": {"expert_uncond": "general", "blur": "gaussian"},
        }.items()
    }
    mask = made.graph.add("SolidMask", value=1.0, width=SIZE, height=SIZE)
    everywhere = made.graph.add("PAL_SaliencyFusionGuider", **{**inputs, "mask": mask[0], "mask_use": "decide"})
    shown["everywhere"] = sample(made.graph, made.stock, everywhere)
    general, expert = plain(made), plain(made, variant)
    run = client.run(made.graph)
    pictures = {name: pixels(client, run, node) for name, node in shown.items()}
    fused, general, expert = (pixels(client, run, node) for node in (made.shown, general, expert))
    assert (general != expert).any() and (fused != general).any() and (fused != expert).any()
    assert (pictures["never"] == general).all()
    assert np.abs(pictures["everywhere"].astype(int) - expert).max() <= 1
    assert (pictures["soft"] != fused).any() and (pictures["general uncond"] != fused).any()


def test_a_third_model_comes_from_a_fusion_expert(client: Client, sd15: str, second: str, lora: str):
    made = fusion(sd15, lora=lora)
    other = made.graph.add("CheckpointLoaderSimple", ckpt_name=second)
    inputs = made.graph[made.guider.id]["inputs"]
    own = ("positive_expert", "negative_expert", "cfg_expert", "start_percent", "end_percent")
    third = made.graph.add(
        "PAL_FusionExpert",
        model_expert=other[0],
        k_expert=5.0,
        mask_use="restrict",
        **{name: inputs[name] for name in own},
    )
    both = made.graph.add("PAL_SaliencyFusionGuider", **inputs, **{"experts.expert0": third[0]})
    shown = sample(made.graph, made.stock, both)
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
    made = fusion(sd15)
    subject = made.graph.add("CheckpointLoaderSimple", ckpt_name=second)
    augmented = made.graph.add("CLIPTextEncode", clip=made.stock.clip, text="a red square")
    guider = made.graph.add(
        "PAL_SubjectFusionGuider", model_scene=made.stock.model, model_subject=subject[0], cfg=5.0, scene_end=0.3,
        positive=made.stock.positive[0], positive_subject=augmented[0], negative=made.stock.negative[0], fusion_end=0.6,
    )  # fmt: skip
    shown = sample(made.graph, made.stock, guider)
    del made.graph[made.shown.id]
    assert pixels(client, client.run(made.graph), shown).std() > 0


def test_many_runs_and_one_cancelled_leave_no_model_behind(
    client: Client, server: Server, sd15: str, second: str, lora: str
):
    made = fusion(sd15, steps=2)
    other = made.graph.add("CheckpointLoaderSimple", ckpt_name=second)
    variant = made.graph.add("LoraLoaderModelOnly", model=other[0], lora_name=lora, strength_model=0.5)
    inputs = made.graph[made.guider.id]["inputs"]
    inputs["model_expert"] = variant[0]
    memory = []
    for i in range(20):
        inputs["k_expert"] = 1.0 + i  # another guider each time
        if i == 10:
            cancelled = client.run(made.graph, on_progress=lambda node, value, maximum: client.interrupt())
            assert cancelled.status == "interrupted"
        assert client.run(made.graph).status == "success"
        memory.append(resident(server))
    print("MB resident:", [round(value) for value in memory])
    weights = Path(server.base / "models" / "checkpoints" / second).stat().st_size / 2**20
    assert max(memory[5:]) - memory[4] < 0.1 * weights


def resident(server: Server) -> float:
    """The server's memory in MB."""
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1]) / 1024


BAD = {
    "k_expert": ({"k_expert": 0.0}, "smaller than min"),
    "k_general": ({"k_general": 0.0}, "smaller than min"),
    "no expert prompt": ({"positive_expert": None}, "Required input is missing: positive_expert"),
    "no expert negative": ({"negative_expert": None}, "Required input is missing: negative_expert"),
}


@pytest.mark.parametrize("which", list(BAD))
def test_what_the_server_refuses_before_running(client: Client, sd15: str, which: str):
    changed, message = BAD[which]
    made = fusion(sd15, **changed)
    with pytest.raises(PromptRejected, match=message):
        client.run(made.graph)


def test_what_the_node_refuses(client: Client, sd15: str, second: str, dit: str):
    made = fusion(sd15)
    expect_error(
        client, made.graph, made.guider, "model_expert: expected a model of its own for expert 1, got one that is wired"
    )

    made = fusion(sd15)
    other = made.graph.add("CheckpointLoaderSimple", ckpt_name=second)
    inputs = made.graph[made.guider.id]["inputs"]
    inputs.update(model_expert=other[0], start_percent=0.7, end_percent=0.2)
    expect_error(client, made.graph, made.guider, "start_percent: expected at most end_percent, got 0.7 after 0.2")

    inputs.update(start_percent=0.0, end_percent=1.0)
    inputs["model_expert"] = made.graph.add("UNETLoader", unet_name=dit, weight_dtype="default")[0]
    expect_error(client, made.graph, made.guider, "SD15 (4 channels), got one with SD3 (16 channels)")

    inputs["model_expert"] = made.graph.add("ModelSamplingSD3", model=other[0], shift=3.0)[0]
    expect_error(client, made.graph, made.guider, "model_expert: expected a model sampled like `model`")
