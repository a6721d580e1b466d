"""Prompt-to-prompt (2208.01626): a source picture's attention steers the rows of another prompt while they are sampled.

At each step the source row is the trajectory's own latent. Cross-attention, at every layer and for the first `cross` steps:
A = (edit(A_source, A_target) * equalizer), edit being the prompts' alignment. Self-attention, for the first `self_attention`
steps: q and k of the source. Only rows of the sampler's positive conditioning are edited.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import comfy.model_patcher
import torch
from comfy.patcher_extension import WrappersMP

from ..attention.calls import Chunk, ModelOptions, Record, chunks_of, is_source_pass
from ..attention.cross_attention import KEY, CrossCall, on_cross_attention, record_cross
from ..attention.self_attention import inject_queries, record_queries
from ..attention.unet_layers import Layer, attention_layers
from ..diffusion.conditioning import Conditioning
from ..diffusion.schedule import first_steps
from ..diffusion.source_run import SourceRuns
from ..diffusion.trajectory import Trajectory
from ..text.prompt_tokens import PromptTokens
from .local_blend import LocalBlend, blend_layers
from .prompt_edit import PROMPT, PromptEdit

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher

# The published code replaces self-attention of at most 32 x 32 pixels at a latent of 64 x 64. Counted in the latent's
# pixels that is every layer but those at full resolution, whatever the picture's size.
SELF_ATTENTION_FROM = 2


@dataclass(frozen=True)
class Settings:
    """Steps are counts from the noisy end; blending starts after `blend_start` of them."""

    edit: PromptEdit
    cross: int
    self_attention: int
    blend_start: int
    blend_threshold: float

    @classmethod
    def of(
        cls, edit: PromptEdit, steps: int, cross_end: float, self_end: float, blend_start: float, blend_threshold: float
    ) -> Settings:
        return cls(
            edit,
            first_steps(cross_end, steps),
            first_steps(self_end, steps),
            first_steps(blend_start, steps),
            blend_threshold,
        )


def prompt_to_prompt(
    model: ModelPatcher, trajectory: Trajectory, source: Conditioning, settings: Settings
) -> ModelPatcher:
    """A clone of `model` whose every sampling run along `trajectory`'s levels is steered by the source's attention."""
    layers = attention_layers(model)
    trajectory.model.require_match(model)
    if model.get_wrappers(WrappersMP.SAMPLER_SAMPLE, KEY):
        raise ValueError(
            "model: expected one without a prompt-to-prompt edit, got one that has been through Prompt-to-Prompt already. "
            "Write both edits into one Encode Prompt Edit."
        )
    require_prompt(source, settings.edit.source, "source", "`source` of the connected Encode Prompt Edit")
    patched = model.clone()
    blends = settings.edit.blends and settings.blend_start < trajectory.steps
    if max(settings.cross, settings.self_attention) == 0 and not blends:
        return patched

    def begin(guider, sigmas: torch.Tensor, model_options: ModelOptions) -> _Edit:
        positive = guider.conds.get("positive")
        if positive is None:
            raise ValueError(
                f"guider: expected one with a positive conditioning, got {type(guider).__name__} without. Use CFGGuider."
            )
        require_prompt(
            [[cond["cross_attn"], cond] for cond in positive],
            settings.edit.target,
            "positive",
            "`target` of the connected Encode Prompt Edit",
        )
        if not blends:
            return _Edit(settings, layers, positive, None)
        if all("area" in cond for cond in positive):
            raise ValueError(
                "blend_words: expected a positive prompt for the whole picture, got only prompts with an area. "
                "Leave blend_words empty, or take the area away."
            )
        blend = LocalBlend(trajectory, sigmas, settings.blend_start, settings.blend_threshold)
        comfy.model_patcher.set_model_options_post_cfg_function(model_options, blend.post_cfg)
        return _Edit(settings, layers, positive, blend)

    SourceRuns(KEY, trajectory, source, begin).add_to(patched)
    return patched


def require_prompt(conditioning: Conditioning, prompt: PromptTokens, socket: str, expected: str) -> None:
    """Raise ValueError unless every entry has the prompt's number of tokens and, where it says of what it is, its text."""
    what_to_do = "Connect it as it comes from there, with nothing concatenated."
    for embedding, options in conditioning:
        columns = len(prompt.ids)
        if embedding.shape[1] != columns:
            raise ValueError(
                f"{socket}: expected {expected}, which has {columns} tokens, got conditioning of {embedding.shape[1]}. "
                f"{what_to_do}"
            )
        text = options.get(PROMPT, prompt.text)
        if text.split() != prompt.text.split():
            raise ValueError(
                f"{socket}: expected {expected}, which is {prompt.text!r}, got an encoding of {text!r}. {what_to_do}"
            )


class _Edit:
    """One sampling run."""

    def __init__(
        self, settings: Settings, layers: dict[Layer, int], positive: list[dict[str, Any]], blend: LocalBlend | None
    ):
        self.settings = settings
        self.layers = layers
        self.positive = [cond["model_conds"]["c_crossattn"] for cond in positive]
        self.without_area = frozenset(cond["uuid"] for cond in positive if "area" not in cond)
        self.blend = blend
        self.last = max(settings.cross, settings.self_attention)
        if blend is not None:
            self.last = blend.trajectory.steps

    def concerns(self, cond: dict[str, Any]) -> bool:
        # Known by the embedding, which other nodes and core hand on even where they copy the dict around it.
        return any(cond["model_conds"]["c_crossattn"] is embedding for embedding in self.positive)

    def record(self, step: int, options: ModelOptions) -> Record:
        record: Record = {}
        record_queries(options, self.self_layers(step), record)
        record_cross(options, self.cross_layers(step), len(self.settings.edit.source.ids), record)
        return record

    def inject(self, step: int, options: ModelOptions, records: dict[Chunk, Record]) -> None:
        inject_queries(options, self.self_layers(step), records)
        on_cross_attention(options, self.cross_layers(step), _CrossControl(self, step, records))

    def self_layers(self, step: int) -> frozenset[Layer]:
        if step >= self.settings.self_attention:
            return frozenset()
        return frozenset(layer for layer, factor in self.layers.items() if factor >= SELF_ATTENTION_FROM)

    def cross_layers(self, step: int) -> tuple[Layer, ...]:
        if step < self.settings.cross:
            return tuple(self.layers)
        return self.blend_layers()

    def blend_layers(self) -> tuple[Layer, ...]:
        if self.blend is None:
            return ()
        return blend_layers(self.layers, tuple(self.blend.trajectory.latents.shape[-2:]))


class _CrossControl:
    """Cross-attention in the calls for one set of conditions; `records` has those of the positive conditioning."""

    def __init__(self, edit: _Edit, step: int, records: dict[Chunk, Record]):
        self.edit = edit
        self.step = step
        self.records = records
        self.maps = None
        if edit.blend is not None and any(uuid in edit.without_area for _, uuid in records):
            self.blend_layers = edit.blend_layers()
            self.maps = edit.blend.new_maps(step)

    def __call__(self, call: CrossCall) -> torch.Tensor:
        if is_source_pass(call.options):
            return call.output
        chunks = chunks_of(call.options)
        count = len(call.q) // len(chunks)
        output = call.output
        for i, chunk in enumerate(chunks):
            if chunk not in self.records:
                continue
            rows = slice(i * count, (i + 1) * count)
            change = self._change(call, rows, chunk)
            if change is not None:
                output = output.clone() if output is call.output else output
                output[rows] += change
        return output

    def _change(self, call: CrossCall, rows: slice, chunk: Chunk) -> torch.Tensor | None:
        """What the edited probabilities add to the layer's output in these rows, None outside the window."""
        edit = self.edit.settings.edit
        own = call.probabilities(rows, len(edit.target.ids))
        source = self.records[chunk][("cross", *call.layer)].to(own)
        source = source.repeat(len(own) // len(source), 1, 1, 1)
        edited = own
        if self.step < self.edit.settings.cross:
            mapper, aligned = (t.to(own) for t in (edit.alignment.mapper, edit.alignment.aligned))
            edited = (source @ mapper) * aligned + own * (1.0 - aligned)
        if self.maps is not None and call.layer in self.blend_layers and chunk[1] in self.edit.without_area:
            # Before reweighting: a negative factor would turn its word's map upside down.
            self.maps.add(call.size, source[..., list(edit.source_blend)], edited[..., list(edit.target_blend)])
        if edited is own:
            return None
        return call.applied(edited * edit.equalizer.to(own) - own, rows)
