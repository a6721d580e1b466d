from __future__ import annotations

from dataclasses import replace
from functools import partial

from comfy_api.latest import io
from server import PromptServer

from ..diffusion.sockets import TrajectoryIO
from ..display.feedback import RESENDS_RESULT, result, temporary_pictures
from ..display.heatmap import heatmap
from ..text.tokens import tokenize
from .attention_mask import enlarged, mask_of, require_picture, stretched, word_maps, words_of
from .control import prompt_to_prompt, require_prompt
from .live_edit import ROUTE, answer
from .on_the_node import described_edit, word_heat
from .prompt_edit import MODES, PROMPT, PromptEdit, prompt_edit
from .settings import Settings, window

CATEGORY = "palimpsest/prompt_to_prompt"
ALIASES = ["p2p", "prompt to prompt", "hertz", "cross attention control", "word swap"]
PAPER = "Prompt-to-Prompt (Hertz 2022, arXiv 2208.01626)"


@io.comfytype(io_type="PAL_PROMPT_EDIT")
class PromptEditIO(io.ComfyTypeIO):
    Type = PromptEdit


def _trajectory_input() -> io.Input:
    return TrajectoryIO.Input(
        "trajectory",
        tooltip="The source picture, from DDIM Invert or Sample Trajectory. Its steps must be the sampler's: same scheduler, steps and "
        "denoise.",
    )


class EncodePromptEdit(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PAL_EncodePromptEdit",
            display_name="Encode Prompt Edit",
            category=CATEGORY,
            description="Two prompts and what connects them: which words follow which, which count more or less, and which may "
            f"change pixels. {PAPER}.",
            search_aliases=[*ALIASES, "reweight", "attention refine", "attention replace", "local blend"],
            inputs=[
                io.Clip.Input("clip", tooltip="The checkpoint's CLIP, one of SD1.x, SD2.x or SDXL."),
                io.String.Input(
                    "source_text",
                    multiline=True,
                    dynamic_prompts=True,
                    tooltip="What the picture shows now. The picture itself may have been inverted with this prompt or with an empty one.",
                ),
                io.String.Input(
                    "target_text",
                    multiline=True,
                    dynamic_prompts=True,
                    tooltip="What it is to show: the same prompt with words exchanged or added. To reweight only, the same prompt.",
                ),
                io.Combo.Input(
                    "mode",
                    options=list(MODES),
                    default="auto",
                    tooltip="auto: words may be exchanged, added and left out in one edit; new words get attention of their own. "
                    "replace, refine: the published modes. replace is word for word, with as many words in both prompts; refine lets "
                    "words be added or left out, and an exchanged word counts as new.",
                ),
                io.String.Input(
                    "reweight",
                    default="",
                    tooltip="Words of target_text as they stand there, with a factor for their attention: 'fluffy: 2, red: -1'. 1 changes nothing, 0 takes "
                    "the word away, negative values push it away. Strong factors distort: stay within -2 and 4 or so.",
                ),
                io.String.Input(
                    "blend_words",
                    default="",
                    tooltip="Words whose place may change, from either prompt: 'cat, dog'. Everything elsewhere stays the source's "
                    "pixels. Empty: the whole picture may change.",
                ),
                io.String.Input(
                    "keep_words",
                    default="",
                    optional=True,
                    advanced=True,
                    tooltip="Words whose place must not change, also where blend_words lie, from either prompt: 'mat'. For use with "
                    "blend_words. Published as substruct_words.",
                ),
                io.String.Input(
                    "word_windows",
                    default="",
                    optional=True,
                    advanced=True,
                    tooltip="Words of target_text that take the source's cross-attention in steps of their own instead of up to cross_end, "
                    "as shares: 'fluffy: 0.2-0.8, red: 0.4'. A single number is the end.",
                ),
            ],
            outputs=[
                io.Conditioning.Output(
                    display_name="target", tooltip="The target prompt: the sampler's positive, just as it is."
                ),
                PromptEditIO.Output(display_name="edit", tooltip="For Prompt-to-Prompt, and for Attention Mask."),
            ],
            **RESENDS_RESULT,
        )

    @classmethod
    def execute(
        cls, clip, source_text, target_text, mode, reweight, blend_words, keep_words="", word_windows=""
    ) -> io.NodeOutput:
        edit = prompt_edit(
            partial(tokenize, clip), source_text, target_text, mode, reweight, blend_words, keep_words, word_windows
        )
        source, target = (
            clip.encode_from_tokens_scheduled(clip.tokenize(text), add_dict={PROMPT: text})
            for text in (source_text, target_text)
        )
        edit = replace(edit, encoded_source=source)
        new = sum(not bool(edit.alignment.aligned[list(word)].any()) for word in edit.target.words)
        counted = f"{len(edit.source.words)} and {len(edit.target.words)} words, {new} of them new"
        return io.NodeOutput(target, edit, ui={**result(counted), **described_edit(edit)})


class PromptToPrompt(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PAL_PromptToPrompt",
            display_name="Prompt-to-Prompt",
            category=CATEGORY,
            description="Changes an inverted picture by changing words of its prompt: the attention of the words that stay is the "
            f"source's, so its composition stays too. {PAPER}.",
            search_aliases=[*ALIASES, "edit by words", "local blend", "cross_replace_steps", "self_replace_steps"],
            inputs=[
                io.Model.Input(
                    "model", tooltip="SD1.x, SD2.x or SDXL: the kind of model the trajectory was made with."
                ),
                _trajectory_input(),
                PromptEditIO.Input("edit", tooltip="`edit` of Encode Prompt Edit."),
                io.Float.Input(
                    "cross_end",
                    default=0.8,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Share of the steps, from the noisy end, in which words take the source's cross-attention: 0.8 of 50 is "
                    "the first 40. Higher keeps more of the composition. 0 turns it off, and reweighting with it; any other value is at "
                    "least one step. Published as cross_replace_steps.",
                ),
                io.Float.Input(
                    "self_end",
                    default=0.4,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Share of the steps, from the noisy end, that take the source's self-attention. Higher keeps more of the "
                    "shapes; lower it to change a shape. 0 turns it off; any other value is at least one step. Published as "
                    "self_replace_steps.",
                ),
                io.Float.Input(
                    "blend_start",
                    default=0.2,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Only with blend_words: share of the steps after which everything but those words' place is the source's.",
                ),
                io.Float.Input(
                    "blend_threshold",
                    default=0.3,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Only with blend_words: how much attention, as a share of the most, makes a pixel part of the words' place. "
                    "Higher is a smaller place.",
                ),
                io.Float.Input(
                    "self_start",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    optional=True,
                    advanced=True,
                    tooltip="Share of the steps after which self-attention begins to be the source's. 0 is from the first step.",
                ),
                io.Boolean.Input(
                    "exact_retracing",
                    default=False,
                    optional=True,
                    advanced=True,
                    tooltip="Corrects every step so that sampling goes back exactly the way the inversion came. Needs a trajectory by "
                    "method ddim, and euler or ddim as sampler. The source then comes back to rounding at one model call a step. It "
                    "keeps more of the source and lets fewer edits through.",
                ),
                io.Conditioning.Input(
                    "source",
                    optional=True,
                    tooltip="source_text, when another node has encoded it. Unconnected: as Encode Prompt Edit encodes it, with the "
                    "ControlNet and the mask that the picture was inverted with.",
                ),
            ],
            outputs=[
                io.Model.Output(
                    display_name="model",
                    tooltip="Connect to a sampler or guider, with `target` as its positive and the inversion's noise or latent.",
                )
            ],
            **RESENDS_RESULT,
        )

    @classmethod
    def execute(
        cls,
        model,
        trajectory,
        edit,
        cross_end,
        self_end,
        blend_start,
        blend_threshold,
        self_start=0.0,
        exact_retracing=False,
        source=None,
    ) -> io.NodeOutput:
        settings = Settings.of(edit, trajectory.steps, cross_end, self_end, blend_start, blend_threshold, self_start)
        patched = prompt_to_prompt(model, trajectory, source, settings, exact_retracing)
        return io.NodeOutput(patched, ui=result(f"{settings}, of {trajectory.steps}"))


class AttentionMask(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PAL_AttentionMask",
            display_name="Attention Mask",
            category=CATEGORY,
            description="Finds the place of words in a picture, by the model's own attention to them along the picture's trajectory: "
            f"a mask and a heatmap. {PAPER}.",
            search_aliases=[*ALIASES, "mask by text", "segment by words", "attention map", "heatmap", "daam"],
            inputs=[
                io.Model.Input(
                    "model", tooltip="SD1.x, SD2.x or SDXL: the kind of model the trajectory was made with."
                ),
                io.Clip.Input("clip", tooltip="The checkpoint's CLIP."),
                _trajectory_input(),
                io.String.Input(
                    "text",
                    multiline=True,
                    dynamic_prompts=True,
                    tooltip="What the picture shows, in a sentence that has the words. Not used when an edit is connected.",
                ),
                io.String.Input(
                    "words",
                    tooltip="Words of the text whose place is wanted: 'cat', or several: 'cat, red hat'. Not used when an edit is connected.",
                ),
                io.Float.Input(
                    "start",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Where along the trajectory reading starts, as a share of its steps from the noisy end.",
                ),
                io.Float.Input(
                    "end",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Where reading ends. Few steps are quicker: each costs one evaluation of the model.",
                ),
                io.Float.Input(
                    "threshold",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="How much attention, as a share of the most, belongs to the mask. Higher is smaller. 0 finds the level that "
                    "parts the picture best (Otsu).",
                ),
                io.Conditioning.Input(
                    "positive",
                    optional=True,
                    tooltip="The encoded text, when something else has encoded it. Unconnected: the text is encoded here.",
                ),
                PromptEditIO.Input(
                    "edit",
                    optional=True,
                    tooltip="From Encode Prompt Edit: the place of its blend_words in its source_text.",
                ),
                io.Image.Input(
                    "image",
                    optional=True,
                    tooltip="The picture that was inverted, to lay the heatmap over; another size is fine, another crop is not. The mask "
                    "takes its size.",
                ),
            ],
            outputs=[
                io.Mask.Output(
                    display_name="mask",
                    tooltip="1 where the words are, at the size of the image, or without one at that of the inverted picture.",
                ),
                io.Image.Output(
                    display_name="heatmap", tooltip="The attention as colours, over the image if there is one."
                ),
            ],
            **RESENDS_RESULT,
        )

    @classmethod
    def execute(
        cls, model, clip, trajectory, text, words, start, end, threshold, positive=None, edit=None, image=None
    ) -> io.NodeOutput:
        prompt, columns = words_of(partial(tokenize, clip), text, words, edit)
        steps = window(start, end, trajectory.steps)
        if not steps:
            raise ValueError(
                f"end: expected at least one of the trajectory's {trajectory.steps} steps between start and end, got {start} and "
                f"{end}. Raise end, or lower start."
            )
        pixels = model.get_model_object("latent_format").spacial_downscale_ratio
        size = tuple(pixels * n for n in trajectory.latents.shape[-2:])
        if image is not None:
            require_picture(image, trajectory.batch, size, pixels)
            size = tuple(image.shape[1:3])
        if positive is None:
            positive = clip.encode_from_tokens_scheduled(clip.tokenize(prompt.text))
        else:
            require_prompt(positive, prompt, "positive", "an encoding of the text")
        found = word_maps(model, trajectory, positive, [columns, *prompt.words], len(prompt.ids), steps)
        maps = enlarged(stretched(found[:, 0]), size)
        mask = mask_of(maps, threshold)
        share = f"{100 * float(mask.mean()):.1f} % of the picture, {len(steps)} steps read"
        [picture] = temporary_pictures(image[:1], cls) if image is not None else [None]
        words_shown = word_heat(prompt, found[0, 1:], picture, chosen_by="words" if edit is None else "edit")
        return io.NodeOutput(mask, heatmap(maps, image), ui={**result(share), **words_shown})


NODES = [EncodePromptEdit, PromptToPrompt, AttentionMask]

if hasattr(PromptServer, "instance"):
    PromptServer.instance.routes.post(ROUTE)(answer)
