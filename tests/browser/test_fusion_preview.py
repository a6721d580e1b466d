"""The mask of a running fusion on the sampler's node, as an artist sees it, in both of the frontend's renderers."""

import io
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.host.client import Client, Graph
from support.host.frontend import Frontend

pytestmark = pytest.mark.browser

SIZE = 128
STEPS = 1000  # more than are waited for
SHOW_SAMPLER = """() => {
    const sampler = app.graph.nodes.find(node => node.type === 'SamplerCustomAdvanced')
    for (const node of app.graph.nodes) node.pos = [3000, 3000]
    sampler.pos = [100, 100]
    sampler.setSize([420, 560])
    app.canvas.ds.scale = 1
    app.canvas.ds.offset[0] = app.canvas.ds.offset[1] = 0
    app.canvas.setDirty(true, true)
}"""
NODE = {"x": 60, "y": 40, "width": 520, "height": 700}  # on the screen
HALVES = [
    (slice(200, 560), slice(60, 230)),
    (slice(200, 560), slice(270, 440)),
]  # of the preview, in NODE: rows, columns


def left_half(seed: int) -> Graph:
    """A fusion whose expert has the left half of the picture."""
    graph = Graph()
    general, expert = graph.add("TOY_LoadGeneral"), graph.add("TOY_LoadExpert")
    nothing = graph.add("SolidMask", value=0.0, width=SIZE, height=SIZE)
    half = graph.add("SolidMask", value=1.0, width=SIZE // 2, height=SIZE)
    mask = graph.add("MaskComposite", destination=nothing[0], source=half[0], x=0, y=0, operation="add")
    texts = {
        f"{name}{of}": graph.add("CLIPTextEncode", clip=loader[1], text=text)[0]
        for of, loader in (("", general), ("_expert", expert))
        for name, text in (("positive", "a green circle on a gray background"), ("negative", ""))
    }
    guider = graph.add(
        "PAL_SaliencyFusionGuider", model=general[0], model_expert=expert[0], **texts, cfg=3.0, cfg_expert=3.0,
        start_percent=0.0, end_percent=1.0, blur="box", expert_uncond="own", mode="hard", mask=mask[0], mask_use="decide",
        **{"saliency": "sharpness", "saliency.sharpness_general": 1.0, "saliency.sharpness_expert": 3.0},
    )  # fmt: skip
    sampled = graph.add(
        "SamplerCustomAdvanced",
        noise=graph.add("RandomNoise", noise_seed=seed)[0],
        guider=guider[0],
        sampler=graph.add("KSamplerSelect", sampler_name="euler")[0],
        sigmas=graph.add("BasicScheduler", model=general[0], scheduler="ddim_uniform", steps=STEPS, denoise=1.0)[0],
        latent_image=graph.add("EmptySD3LatentImage", width=SIZE, height=SIZE, batch_size=1)[0],
    )
    graph.add("PreviewImage", images=graph.add("VAEDecode", samples=sampled[0], vae=general[2])[0])
    return graph


def test_the_expert_s_places_are_tinted_while_sampling(frontend: Frontend, client: Client, screenshots: Path):
    seed = 0 if frontend.renderer == "canvas" else 1
    frontend.page.evaluate("graph => app.loadApiJson(graph, 'fusion')", left_half(seed))
    frontend.page.evaluate(SHOW_SAMPLER)
    frontend.queue()
    picture = wait_for_tint(frontend)
    picture.save(screenshots / f"fusion preview {frontend.renderer}.png")
    client.interrupt()
    client.wait_until_idle()
    assert frontend.errors == []


def wait_for_tint(frontend: Frontend, timeout: float = 240) -> Image.Image:
    """A screenshot of the node whose preview is orange on the left, where noise of all colours alone is so by less than half."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        picture = Image.open(io.BytesIO(frontend.page.screenshot(clip=NODE))).convert("RGB")
        left, right = (orange_places(picture)[half].mean() for half in HALVES)
        if left > 0.85 and right < 0.65:
            return picture
        time.sleep(0.3)
    raise AssertionError("No preview with a mask on its left half was seen.")


def orange_places(picture: Image.Image) -> np.ndarray:
    red, _, blue = np.moveaxis(np.asarray(picture, dtype=float), -1, 0)
    return red - blue > 50
