"""Prompt-to-prompt (2208.01626): a source picture's attention steers the rows of another prompt while they are sampled.

At each step the source row is the trajectory's own latent. Cross-attention, at every layer and inside the words' windows:
A = edit(A_source, A_target) * equalizer, edit being the prompts' alignment. Self-attention, inside its window: q and k of the
source. Only rows of the sampler's positive conditioning are edited.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import comfy.model_patcher
import torch
from comfy.patcher_extension import WrappersMP

from ..attention.calls import Chunk, ModelOptions, Record, chunks_of, is_source_pass
from ..attention.cross_attention import CrossCall, on_cross_attention, record_cross
from ..attention.self_attention import inject_queries, record_queries
from ..attention.unet_layers import Layer, attention_layers, leave_behind
from ..diffusion.conditioning import Conditioning
from ..diffusion.context_window import Part
from ..diffusion.source_run import Run, SourceRuns, exact_retracing
from ..diffusion.trajectory import Trajectory
from ..text.prompt_tokens import PromptTokens
from .local_blend import LocalBlend, Maps
from .prompt_edit import PROMPT, PromptEdit
from .settings import Settings

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher

KEY = "palimpsest.prompt_to_prompt"
EDITED = "palimpsest.edited"  # marks the entries of the sampler's positive in their dicts

# The published code replaces self-attention of at most 32 x 32 pixels at a latent of 64 x 64. Counted in the latent's
# pixels that is every layer but those at full resolution, whatever the picture's size.
SELF_ATTENTION_FROM = 2


def prompt_to_prompt(
    model: ModelPatcher,
    trajectory: Trajectory,
    source: Conditioning | None,
    settings: Settings,
    exact: bool = False,
) -> ModelPatcher:
    """A clone of `model` whose every sampling run along `trajectory`'s levels is steered by the source's attention.

    source: the edit's source prompt if None. exact: retrace the trajectory exactly, also behind the windows.
    """
    layers = attention_layers(model)
    trajectory.model.require_match(model)
    if model.get_wrappers(WrappersMP.SAMPLER_SAMPLE, KEY):
        raise ValueError(
            "model: expected one without a prompt-to-prompt edit, got one that has been through Prompt-to-Prompt already. "
            "Write both edits into one Encode Prompt Edit."
        )
    if source is None:
        source = source_prompt(trajectory, settings.edit)
    else:
        require_prompt(
            source, settings.edit.source, "source", "an encoding of `source_text` of the connected Encode Prompt Edit"
        )
    if settings.last == 0:
        return exact_retracing(model, trajectory) if exact else model.clone()

    def begin(run: Run) -> _Edit:
        _require_prompts_apart(run.model_options)
        positive = run.guider.conds.get("positive")
        if positive is None:
            raise ValueError(
                f"guider: expected one with a positive conditioning, got {type(run.guider).__name__} without. Use CFGGuider."
            )
        require_prompt(
            [[cond["cross_attn"], cond] for cond in positive],
            settings.edit.target,
            "positive",
            "`target` of the connected Encode Prompt Edit",
        )
        for cond in positive:
            cond[EDITED] = True
        whole = frozenset(cond["uuid"] for cond in positive if "area" not in cond)
        if not settings.blends:
            return _Edit(settings, layers, whole, None)
        if not whole:
            raise ValueError(
                "blend_words: expected a positive prompt for the whole picture, got only prompts with an area. "
                "Leave blend_words empty, or remove the area."
            )
        blend = LocalBlend.of(run, trajectory, settings, layers)
        comfy.model_patcher.set_model_options_post_cfg_function(run.model_options, blend.post_cfg)
        return _Edit(settings, layers, whole, blend)

    return SourceRuns(KEY, trajectory, source, begin, exact).patched(model)


def _require_prompts_apart(model_options: ModelOptions) -> None:
    """Raise ValueError if attention lets prompts see each other: the source is evaluated alone."""
    patches = model_options["transformer_options"].get("patches", {})
    if model_options.get("disable_cfg1_optimization") and any(name.endswith("_output_patch") for name in patches):
        raise ValueError(
            "model: expected prompts that are kept apart inside the network, got guidance that mixes the "
            "negative into the positive's attention, as NAGuidance does. Remove it."
        )


def source_prompt(trajectory: Trajectory, edit: PromptEdit) -> Conditioning:
    """The edit's source prompt, with the ControlNet, mask and sizes of the prompt that the picture was inverted with.

    That prompt may be another or an empty one: its text is not read. Only where each picture of a batch has a prompt of its own
    do they stay, and have to be as long as the edit's.
    """
    own = trajectory.positive
    if not edit.encoded_source or any(text is not None and len(text) > 1 for text, _ in own):
        require_prompt(
            own, edit.source, "trajectory", "one inverted with `source_text` of the connected Encode Prompt Edit"
        )
        return own
    options = own[0][1] if len(own) == 1 else {}
    return [[text, {**options, **read}] for text, read in edit.encoded_source]


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
    """One sampling run. whole: uuids of the positive's entries for the whole picture."""

    def __init__(self, settings: Settings, layers: dict[Layer, int], whole: frozenset[Any], blend: LocalBlend | None):
        self.settings = settings
        self.layers = layers
        self.whole = whole
        self.blend = blend
        self.blend_layers = () if blend is None else blend.layers
        self.last = settings.last
        self.tables: dict[tuple, _Tables] = {}

    def concerns(self, step: int, cond: dict[str, Any]) -> bool:
        # Core copies an entry with an area, uuid and all, into the other prompt's list, but it does so before a run begins.
        return EDITED in cond and bool(self.self_layers(step) or self.cross_layers(step))

    def kept(self, step: int, part: Part) -> None:
        return None

    def record(self, step: int, options: ModelOptions) -> Record:
        record: Record = {}
        self_layers, cross_layers = self.self_layers(step), self.cross_layers(step)
        record_queries(options, self_layers, record)
        record_cross(options, cross_layers, len(self.settings.edit.source.ids), record)
        leave_behind(options, {*self_layers, *cross_layers})
        return record

    def inject(self, step: int, options: ModelOptions, records: dict[Chunk, Record], part: Part) -> None:
        inject_queries(options, self.self_layers(step), records)
        on_cross_attention(options, self.cross_layers(step), _CrossControl(self, step, records, part))

    def self_layers(self, step: int) -> frozenset[Layer]:
        if step not in self.settings.self_attention:
            return frozenset()
        return frozenset(layer for layer, factor in self.layers.items() if factor >= SELF_ATTENTION_FROM)

    def cross_layers(self, step: int) -> tuple[Layer, ...]:
        if any(self.settings.words_at(step)):
            return tuple(self.layers)
        return self.blend_layers

    def tables_at(self, step: int, device: torch.device) -> _Tables:
        """Made once for each device and each set of words whose windows are open."""
        key = (device, self.settings.words_at(step))
        if key not in self.tables:
            self.tables[key] = _Tables.of(self.settings, step, device)
        return self.tables[key]


@dataclass(frozen=True)
class _Tables:
    """What one step does to probabilities [..., columns], as matrices.

    change = source @ mapped + own * kept is what the edit adds to the row's own.
    The words' places before reweighting, which would turn the map of a word with a negative factor upside down:
    source @ source_words of the source, source @ target_mapped + own @ target_own of the target; two columns each, the words
    whose place may change and those whose place must not.
    """

    mapped: torch.Tensor | None  # None when no window is open
    kept: torch.Tensor
    source_words: torch.Tensor
    target_mapped: torch.Tensor
    target_own: torch.Tensor

    @classmethod
    def of(cls, settings: Settings, step: int, device: torch.device) -> _Tables:
        edit = settings.edit
        mapper, aligned = edit.alignment.mapper.float(), edit.alignment.aligned.float()
        opened = settings.opened(step)
        follows = aligned * opened
        target_words = _indicators(len(edit.target.ids), edit.target_blend, edit.target_kept)
        tensors = (
            mapper * (follows * edit.equalizer),
            opened * ((1.0 - aligned) * edit.equalizer - 1.0),
            _indicators(len(edit.source.ids), edit.source_blend, edit.source_kept),
            (mapper * follows) @ target_words,
            (1.0 - follows)[:, None] * target_words,
        )
        mapped, *rest = (tensor.to(device) for tensor in tensors)
        return cls(mapped if bool(opened.any()) else None, *rest)


def _indicators(columns: int, *groups: tuple[int, ...]) -> torch.Tensor:
    """[columns, groups]: 1 where a column is one of a group's."""
    indicators = torch.zeros(columns, len(groups))
    for i, group in enumerate(groups):
        indicators[list(group), i] = 1.0
    return indicators


class _CrossControl:
    """Cross-attention in the calls for one set of conditions; `records` has those of the positive conditioning."""

    def __init__(self, edit: _Edit, step: int, records: dict[Chunk, Record], part: Part):
        self.edit = edit
        self.step = step
        self.records = records
        self.maps: Maps | None = None
        if edit.blend is not None and any(uuid in edit.whole for _, uuid in records):
            self.maps = edit.blend.new_maps(step, part)

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
        """What the edited probabilities add to the layer's output in these rows, None outside the windows."""
        edit = self.edit.settings.edit
        own = call.probabilities(rows, len(edit.target.ids))
        source = self.records[chunk][("cross", *call.layer)].to(own)
        source = source.repeat(len(own) // len(source), 1, 1, 1)
        tables = self.edit.tables_at(self.step, own.device)
        if self.maps is not None and call.layer in self.edit.blend_layers and chunk[1] in self.edit.whole:
            target = source @ tables.target_mapped + own @ tables.target_own
            self.maps.add(call.size, (source @ tables.source_words).sum(1), target.sum(1))
        if tables.mapped is None:
            return None
        return call.applied(source @ tables.mapped + own * tables.kept, rows)
