"""The pack's sampling nodes, each with the identity that is checked."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from lab.evidence.compatibility import editing_columns, fusion_columns, mask_column
from lab.evidence.compatibility.graph import NEGATIVE, Graph, base, clip, schedule
from palimpsest.nodes.diffusion.conditioning import Conditioning
from palimpsest.nodes.unclip.decoder.conditioning import unclip_conditioning
from support.fixtures import twin_unclip, unclip


@functools.cache
def decoder_model(seed: int):
    return unclip.decoder(twin_unclip.decoder(output=0.3))


@functools.cache
def told(text: str) -> Conditioning:
    guidance = unclip_conditioning(clip(), decoder_model(0), text, unclip.embedding())
    return guidance.negative if text == NEGATIVE else guidance.positive


def decoder_base() -> Graph:
    model = decoder_model(0)
    noise = unclip.noise(2)
    return Graph(
        model, model, {"samples": 0.5 * unclip.noise(2, seed=4)}, noise, schedule(model), prompts=told, tolerance=1e-4
    )


@dataclass(frozen=True)
class Column:
    """check: raises what a cell can find; what it returns has one row for each picture. start: the graph without the row."""

    name: str
    node_ids: str
    check: Callable[[Graph], torch.Tensor]
    start: Callable[[], Graph] = base

    @property
    def identity(self) -> str:
        return self.check.__doc__


COLUMNS = [
    Column("DDIM Invert", "PAL_DDIMInvert", editing_columns.ddim_invert),
    Column("Sample Trajectory", "PAL_SampleTrajectory", editing_columns.sample_trajectory),
    Column("Null-Text Optimize", "PAL_NullTextOptimize", editing_columns.null_text),
    Column("Plug-and-Play", "PAL_PlugAndPlay", editing_columns.plug_and_play),
    Column("Plug-and-Play, captured", "PAL_CaptureFeatures, PAL_PlugAndPlay", editing_columns.captured),
    Column("Prompt-to-Prompt", "PAL_PromptToPrompt", editing_columns.prompt_to_prompt),
    Column("local blend", "PAL_PromptToPrompt", editing_columns.local_blend),
    Column("Attention Mask", "PAL_AttentionMask", mask_column.attention_mask),
    Column("Exact Retracing", "PAL_ExactRetracing", editing_columns.exact_retracing),
    Column("Saliency Fusion", "PAL_SaliencyFusionGuider", fusion_columns.saliency_fusion),
    Column("Subject Fusion", "PAL_SubjectFusionGuider", fusion_columns.subject_fusion),
    Column("unCLIP decoder", "PAL_LoadUnCLIPDecoder", fusion_columns.decoder, decoder_base),
]
NAMES = [column.name for column in COLUMNS]

THIRD_PROMPT = "the node evaluates an empty prompt as well, and it gets the features of the source like all prompts"

WHOLE_PICTURE = "with an area or mask, ComfyUI itself uses the negative of the first step at every step; no node of this pack runs there"

# Why a group of rows, or one row, says nothing about a column.
SENSELESS = {
    ("samplers", "Attention Mask"): "the node runs no sampler",
    ("guiders", "Attention Mask"): "the node runs no guider",
    ("guiders", "Saliency Fusion"): "the node is a guider itself",
    ("guiders", "Subject Fusion"): "the node is a guider itself",
    ("BasicGuider", "Null-Text Optimize"): "this guider reads no negative prompt",
    ("CFGGuider at 1", "Null-Text Optimize"): "this guider reads no negative prompt",
    ("DualCFGGuider, regular", "Null-Text Optimize"): "the optimisation is for another kind of guidance",
    ("DualCFGGuider, nested", "Null-Text Optimize"): "the optimisation is for another kind of guidance",
    ("PerpNegGuider", "Null-Text Optimize"): "the optimisation is for another kind of guidance",
    (
        "ConditioningSetTimestepRange, another prompt later",
        "Prompt-to-Prompt",
    ): "the later prompt is not that of the source",
    **{(f"ConditioningSet{what} alone", "Null-Text Optimize"): WHOLE_PICTURE for what in ("Area", "Mask")},
    **{
        ("LoRA hook in a mask, with a prompt for the whole picture", column): "the source is evaluated without the hook"
        for column in ("Plug-and-Play", "Plug-and-Play, captured", "Prompt-to-Prompt")
    },
    **{
        (row, column): THIRD_PROMPT
        for row in ("PerpNeg (model)", "PerpNegGuider")
        for column in ("Plug-and-Play", "Plug-and-Play, captured")
    },
    ("EasyCache", "unCLIP decoder"): "with a cache, a prediction depends on those before it",
    ("LazyCache", "unCLIP decoder"): "with a cache, a prediction depends on those before it",
    ("models", "unCLIP decoder"): "the column is a model itself",
    ("precisions", "unCLIP decoder"): "the column is a model itself",
}
