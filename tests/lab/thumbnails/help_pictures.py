"""The pictures of the help pages: nodes of a shipped workflow after a run with the toy's models, as Nodes 2.0 draws them."""

from __future__ import annotations

import io
from pathlib import Path
from typing import NamedTuple

from lab.demo.shipped import Workflow
from PIL import Image
from playwright.sync_api import Browser
from support.host.frontend import Frontend, open_frontend

MARGIN = 16  # pixels around the nodes
WIDTH = 400  # of each node
QUALITY = 70

# The nodes are taken to where nothing else is, side by side. One that did not run, as a Load node, is a new one.
GATHER = """async ({chosen, top, width, margin}) => {
    const missing = []
    const nodes = chosen.map(name => {
        const found = app.graph.nodes.find(node => node.title === name || node.type === name)
        if (found) return found
        const made = LiteGraph.createNode(name)
        app.graph.add(made)
        missing.push(made)
        return made
    })
    await app.refreshComboInNodes()
    for (const { widgets } of missing)
        for (const widget of widgets ?? [])
            if (widget.options?.values?.length) widget.value = widget.options.values[0]
    nodes.forEach((node, i) => {
        node.pos = [100000 + i * (width + 4 * margin), top]
        node.setSize([width, node.size[1]])
    })
    app.canvas.ds.scale = 1
    app.canvas.ds.offset[0] = 200 - 100000
    app.canvas.ds.offset[1] = 200 - top
    app.canvas.setDirty(true, true)
    return nodes.map(node => String(node.id))
}"""
BOX = """({ids, margin}) => {
    const boxes = ids.map(id => document.querySelector(`[data-node-id="${id}"]`).getBoundingClientRect())
    const left = Math.min(...boxes.map(box => box.left)), top = Math.min(...boxes.map(box => box.top))
    const right = Math.max(...boxes.map(box => box.right)), bottom = Math.max(...boxes.map(box => box.bottom))
    return {x: left - margin, y: top - margin, width: right - left + 2 * margin, height: bottom - top + 2 * margin}
}"""


class Picture(NamedTuple):
    name: str
    nodes: tuple[str, ...]  # from left to right, by type or title: those whose help shows it first


PICTURES = {
    "Invert and reconstruct": [
        Picture("trajectory_frames", ("PAL_PreviewTrajectory",)),
        Picture("compared", ("PAL_CompareImages",)),
        Picture("trajectory_files", ("PAL_SaveTrajectory", "PAL_LoadTrajectory")),
    ],
    "Retrace a photo exactly": [Picture("exact_retracing", ("PAL_ExactRetracing", "PAL_CompareImages"))],
    "Plug-and-Play on a photo": [
        Picture("captured_features", ("PAL_CaptureFeatures", "PAL_PlugAndPlay")),
        Picture("negative_schedule", ("PAL_NegativeSchedule",)),
    ],
    "Edit a generated picture": [
        Picture("recorded_trajectory", ("PAL_SampleTrajectory", "Before")),
        Picture("trajectory_start", ("PAL_TrajectoryStart",)),
    ],
    "Swap a word in a photo": [Picture("words_of_an_edit", ("PAL_EncodePromptEdit",))],
    "Add words to a photo": [
        Picture("null_text", ("PAL_NullTextOptimize",)),
        Picture("conditioning_files", ("PAL_SaveConditioning", "PAL_LoadConditioning")),
    ],
    "Edit a photo with two prompts": [Picture("flow_edit", ("PAL_FlowEditGuider", "SaveImage"))],
    "Two checkpoints, one picture": [Picture("saliency_map", ("PAL_SaliencyMap",))],
    "Two LoRAs, each in its place": [Picture("fusion_expert", ("PAL_FusionExpert", "SaveImage"))],
    "A subject in a scene": [
        Picture("subject_checkpoint", ("PAL_LoadSubjectEncoder", "PAL_SubjectConditioning")),
        Picture("subject_fusion", ("PAL_SubjectFusionGuider", "SaveImage")),
    ],
    "Text to picture by a prior, SD2.1 unCLIP": [
        Picture("prior", ("PAL_LoadPrior", "PAL_SamplePrior")),
        Picture("embedding_score", ("PAL_EmbeddingScore",)),
        Picture("embedding_files", ("PAL_SaveEmbedding", "PAL_LoadEmbedding")),
    ],
    "Text to picture with Karlo": [
        Picture("decoder", ("PAL_LoadUnCLIPDecoder", "PAL_UnCLIPConditioning")),
        Picture("decoder_sampler", ("PAL_UnCLIPSampler",)),
        Picture("upsampler", ("PAL_LoadUpsampler", "PAL_Upsample")),
    ],
    "Morph between two pictures": [
        Picture("embedding_mix", ("PAL_EmbeddingMix",)),
        Picture("between_noises", ("PAL_LatentSlerp",)),
        Picture("morph_frames", ("PAL_PreviewMorph",)),
    ],
    "Move a picture by words": [Picture("text_diff", ("PAL_EmbeddingTextDiff", "SaveImage"))],
}


def take(browser: Browser, address: str, workflow: Workflow, pictures: list[Picture], folder: Path) -> list[Path]:
    """Run the workflow, which has run on that server just now, in the frontend, and photograph its nodes."""
    with open_frontend(browser, address, vue_nodes=True) as frontend:
        frontend.page.evaluate("graph => app.loadApiJson(graph, 'help')", dict(workflow))
        frontend.run()
        return [photograph(frontend, picture, 10000 * i, folder) for i, picture in enumerate(pictures)]


def photograph(frontend: Frontend, picture: Picture, top: int, folder: Path) -> Path:
    chosen = {"chosen": picture.nodes, "top": top, "width": WIDTH, "margin": MARGIN}
    ids = frontend.page.evaluate(GATHER, chosen)
    frontend.page.wait_for_function('ids => ids.every(id => document.querySelector(`[data-node-id="${id}"]`))', arg=ids)
    frontend.page.wait_for_function("() => [...document.images].every(image => image.complete)")
    frontend.wait_for_redraws(60)
    clip = frontend.page.evaluate(BOX, {"ids": ids, "margin": MARGIN})
    file = folder / f"{picture.name}.webp"
    shot = Image.open(io.BytesIO(frontend.page.screenshot(clip=clip))).convert("RGB")
    shot.save(file, quality=QUALITY, method=6)
    return file
