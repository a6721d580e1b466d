"""A workflow whose nodes all have something drawn on them by the pack, quick to run, laid out for a screenshot."""

from __future__ import annotations

from support.host.client import Graph
from support.host.frontend import Frontend

TEXT = "a red circle on a blue background"
SIZE, STEPS = (
    128,
    4,
)  # pixels of the picture: the toy has one latent pixel for 4 of them, where Empty Latent Image counts 8
# By type: x, y, width, height on the canvas.
PLACES = {
    "PAL_AttentionMask": (20, 40, 360, 640),
    "PAL_EncodePromptEdit": (400, 40, 360, 520),
    "PAL_PromptToPrompt": (400, 620, 360, 330),
    "PAL_PreviewTrajectory": (780, 40, 320, 640),
    "PAL_CompareImages": (1120, 40, 320, 640),
    "PAL_SampleTrajectory": (780, 740, 320, 160),
    "PreviewImage": (1120, 800, 320, 260),
}
LAY = """async places => {
    let far = 0
    for (const node of app.graph.nodes) {
        const [x, y, width, height] = places[node.type] ?? [2000 + 400 * far++, 2000, 300, 200]
        node.pos = [x, y]
        node.setSize([width, height])
        for (const widget of node.widgets ?? []) if (widget.name === 'control_after_generate') widget.value = 'fixed'
    }
    await app.loadGraphData(app.graph.serialize())
    app.canvas.ds.scale = 1
    app.canvas.ds.offset[0] = 40
    app.canvas.ds.offset[1] = 60
    app.canvas.setDirty(true, true)
}"""


def drawn_graph(seed: int) -> Graph:
    graph = Graph()
    toy = graph.add("TOY_LoadGeneral")
    positive, negative = (graph.add("CLIPTextEncode", clip=toy[1], text=text) for text in (TEXT, ""))
    sampled = graph.add(
        "PAL_SampleTrajectory",
        noise=graph.add("RandomNoise", noise_seed=seed)[0],
        guider=graph.add("CFGGuider", model=toy[0], positive=positive[0], negative=negative[0], cfg=3.0)[0],
        sampler=graph.add("KSamplerSelect", sampler_name="euler")[0],
        sigmas=graph.add("BasicScheduler", model=toy[0], scheduler="ddim_uniform", steps=STEPS, denoise=1.0)[0],
        latent_image=graph.add("EmptyLatentImage", width=2 * SIZE, height=2 * SIZE, batch_size=1)[0],
    )
    image = graph.add("VAEDecode", samples=sampled[0], vae=toy[2])
    mask = graph.add(
        "PAL_AttentionMask", model=toy[0], clip=toy[1], trajectory=sampled[1], text=TEXT, words="circle", start=0.0,
        end=1.0, threshold=0.0, image=image[0],
    )  # fmt: skip
    edit = graph.add(
        "PAL_EncodePromptEdit", clip=toy[1], source_text=TEXT, target_text="a red square on a blue background",
        mode="auto", reweight="blue: 2", blend_words="circle",
    )  # fmt: skip
    graph.add("PreviewAny", source=edit[1])
    graph.add(
        "PAL_PromptToPrompt", model=toy[0], trajectory=sampled[1], edit=edit[1], cross_end=0.8,
        self_end=0.4, blend_start=0.2, blend_threshold=0.3,
    )  # fmt: skip
    graph.add("PAL_PreviewTrajectory", trajectory=sampled[1], vae=toy[2], frames=STEPS + 1)
    graph.add("PAL_CompareImages", image_a=image[0], image_b=mask[1], gain=4.0)
    graph.add("PreviewImage", images=image[0])
    return graph


def open_drawn(frontend: Frontend, seed: int) -> None:
    frontend.page.evaluate("graph => app.loadApiJson(graph, 'drawn')", drawn_graph(seed))
    frontend.page.evaluate(LAY, PLACES)
    frontend.wait_for_redraws()
