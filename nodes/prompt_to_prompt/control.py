"""Prompt-to-prompt (2208.01626): a source picture's attention steers the rows of another prompt while they are sampled.

At each step the source row is the trajectory's own latent. Attention to words, inside their windows:
A = edit(A_source, A_target) * equalizer, edit being the prompts' alignment. Self-attention, inside its window: q and k of the
source. Only rows of the sampler's positive conditioning are edited. Where in a network that is, `word_sites` says.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from comfy.patcher_extension import WrappersMP, add_wrapper_with_key

from ..attention.calls import Chunk, ModelOptions, Record, chunks_of, is_source_pass, value_of
from ..attention.families import family_of
from ..diffusion.conditioning import Conditioning
from ..diffusion.context_window import Part
from ..diffusion.source_run import Run, SourceRuns, exact_retracing
from ..diffusion.trajectory import Trajectory
from ..text.prompt_tokens import PromptTokens
from ..text.tokens import columns_of_conditioning
from .local_blend import LocalBlend, Maps
from .prompt_edit import PROMPT, PromptEdit
from .settings import Settings
from .word_sites import Place, WordCall, WordSites, word_sites_of

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher

KEY = "palimpsest.prompt_to_prompt"
EDITED = "palimpsest.edited"  # marks the entries of the sampler's positive in their dicts


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
    sites = word_sites_of(model, trajectory.latents.shape[2:])
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
        if family_of(model) is not None:
            _require_references_of(source, positive)
        for cond in positive:
            cond[EDITED] = True
        whole = frozenset(cond["uuid"] for cond in positive if "area" not in cond)
        if not settings.blends:
            return _Edit(settings, sites, whole, None)
        if not whole:
            raise ValueError(
                "blend_words: expected a positive prompt for the whole picture, got only prompts with an area. "
                "Leave blend_words empty, or remove the area."
            )
        blend = LocalBlend.of(run, trajectory, settings, sites)
        options = run.guider.model_options
        add_wrapper_with_key(WrappersMP.PREDICT_NOISE, KEY, blend.predict_noise, options, is_model_options=True)
        return _Edit(settings, sites, whole, blend)

    return SourceRuns(KEY, trajectory, source, begin, exact).patched(model)


def _require_references_of(source: Conditioning, positive: list[dict[str, Any]]) -> None:
    """Raise ValueError unless both prompts have as many reference pictures: they take attention that the words would have."""
    wanted = max(len(options.get("reference_latents", ())) for _, options in source)
    got = next((own for cond in positive if (own := len(cond.get("reference_latents", ()))) != wanted), wanted)
    if got != wanted:
        raise ValueError(
            f"positive: expected as many reference latents as the source's prompt, {wanted}, got {got}. Use the same Set Reference Latent "
            "nodes for the prompt of the trajectory, or `source`, and for the sampler's positive."
        )


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
    if prompt.letters is not None:  # of a language model
        what_to_do += " Pictures that TextEncodeQwenImageEdit puts into a prompt are tokens too: use Set Reference Latent in its place."
    for embedding, options in conditioning:
        columns, got = len(prompt.ids), columns_of_conditioning(embedding, options)
        if got != columns:
            raise ValueError(
                f"{socket}: expected {expected}, which has {columns} tokens, got conditioning of {got}. {what_to_do}"
            )
        text = options.get(PROMPT, prompt.text)
        if text.split() != prompt.text.split():
            raise ValueError(
                f"{socket}: expected {expected}, which is {prompt.text!r}, got an encoding of {text!r}. {what_to_do}"
            )


class _Edit:
    """One sampling run. whole: uuids of the positive's entries for the whole picture."""

    def __init__(self, settings: Settings, sites: WordSites, whole: frozenset[Any], blend: LocalBlend | None):
        self.settings = settings
        self.sites = sites
        self.whole = whole
        self.blend = blend
        self.blend_places = () if blend is None else sites.blend_places
        self.edited_places = sites.places
        self.columns = [sites.columns(prompt).read for prompt in (settings.edit.source, settings.edit.target)]
        self.last = settings.last
        self.tables: dict[tuple, _Tables] = {}

    def concerns(self, step: int, cond: dict[str, Any]) -> bool:
        # Core copies an entry with an area, uuid and all, into the other prompt's list, but it does so before a run begins.
        return EDITED in cond and bool(step in self.settings.self_attention or self.places(step))

    def kept(self, step: int, part: Part) -> None:
        return None

    def record(self, step: int, options: ModelOptions) -> Record:
        with_self = step in self.settings.self_attention
        return self.sites.record(options, with_self, self.places(step), self.settings.edit.source)

    def inject(self, step: int, options: ModelOptions, records: dict[Chunk, Record], part: Part) -> None:
        control = _WordControl(self, step, records, part)
        with_self = step in self.settings.self_attention
        self.sites.inject(options, with_self, self.places(step), self.settings.edit.target, records, control)

    def places(self, step: int) -> tuple[Place, ...]:
        """Where words' attention is read or edited."""
        if any(self.settings.words_at(step)):
            return tuple(dict.fromkeys((*self.edited_places, *self.blend_places)))
        return self.blend_places

    def tables_at(self, step: int, device: torch.device) -> _Tables:
        """Made once for each device and each set of words whose windows are open."""
        key = (device, self.settings.words_at(step))
        if key not in self.tables:
            self.tables[key] = _Tables.of(self.settings, step, device, *self.columns)
        return self.tables[key]


@dataclass(frozen=True)
class _Tables:
    """What one step does to probabilities [..., columns that are edited], as matrices.

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
    def of(
        cls, settings: Settings, step: int, device: torch.device, source: Sequence[int], target: Sequence[int]
    ) -> _Tables:
        """source, target: the columns of each prompt."""
        edit, old, new = settings.edit, list(source), list(target)
        mapper, aligned = edit.alignment.mapper.float(), edit.alignment.aligned.float()
        opened = settings.opened(step)
        follows = aligned * opened
        target_words = _indicators(len(edit.target.ids), edit.target_blend, edit.target_kept)
        tensors = (
            (mapper * (follows * edit.equalizer))[old][:, new],
            (opened * ((1.0 - aligned) * edit.equalizer - 1.0))[new],
            _indicators(len(edit.source.ids), edit.source_blend, edit.source_kept)[old],
            ((mapper * follows) @ target_words)[old],
            ((1.0 - follows)[:, None] * target_words)[new],
        )
        mapped, *rest = (tensor.to(device) for tensor in tensors)
        return cls(mapped if bool(opened.any()) else None, *rest)


def _indicators(columns: int, *groups: tuple[int, ...]) -> torch.Tensor:
    """[columns, groups]: 1 where a column is one of a group's."""
    indicators = torch.zeros(columns, len(groups))
    for i, group in enumerate(groups):
        indicators[list(group), i] = 1.0
    return indicators


class _WordControl:
    """Attention to words in the calls for one set of conditions; `records` has those of the positive conditioning."""

    def __init__(self, edit: _Edit, step: int, records: dict[Chunk, Record], part: Part):
        self.edit = edit
        self.step = step
        self.records = records
        self.maps: Maps | None = None
        if edit.blend is not None and any(uuid in edit.whole for _, uuid in records):
            self.maps = edit.blend.new_maps(step, part)

    def __call__(self, call: WordCall) -> torch.Tensor:
        if is_source_pass(call.options):
            return call.output
        chunks = chunks_of(call.options)
        count = len(call.output) // len(chunks)
        output = call.output
        for i, chunk in enumerate(chunks):
            if chunk not in self.records:
                continue
            rows = slice(i * count, (i + 1) * count)
            change = self._change(call, rows, chunk)
            if change is not None:
                output = output.clone() if output is call.output else output
                call.picture(output)[rows] += change
        return output

    def _change(self, call: WordCall, rows: slice, chunk: Chunk) -> torch.Tensor | None:
        """What the edited probabilities add to the layer's output in these rows, None outside the windows."""
        own = call.probabilities(rows)
        source = _repeated(value_of(self.records[chunk], ("cross", *call.layer)), own)
        tables = self.edit.tables_at(self.step, own.device)
        if self.maps is not None and call.layer in self.edit.blend_places and chunk[1] in self.edit.whole:
            self._add_maps(call, rows, self.records[chunk], source, own, tables)
        if tables.mapped is None or call.layer not in self.edit.edited_places:
            return None
        return call.applied(source @ tables.mapped + own * tables.kept, rows)

    def _add_maps(
        self, call: WordCall, rows: slice, record: Record, source: torch.Tensor, own: torch.Tensor, tables: _Tables
    ) -> None:
        """A transformer divides its attention between picture and text, in another way at each pixel: words count by their share
        of the text's."""
        if ("text", *call.layer) in record:
            source = source / _repeated(record[("text", *call.layer)], own)
            own = own / call.text_probability(rows)
        target = source @ tables.target_mapped + own @ tables.target_own
        self.maps.add(call.size, (source @ tables.source_words).sum(1), target.sum(1))


def _repeated(source: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
    """The source's rows for those of a larger batch."""
    return source.to(own).repeat(len(own) // len(source), 1, 1, 1)
