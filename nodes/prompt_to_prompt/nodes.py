from __future__ import annotations

from dataclasses import replace
from functools import partial

from comfy_api.latest import io
from server import PromptServer

from ..diffusion.conditioning import read_beside_text
from ..display.feedback import RESENDS_RESULT, result, temporary_pictures
from ..display.heatmap import heatmap
from ..text.tokens import tokenize
from .attention_mask import enlarged, found_words, mask_of, require_picture, stretched, words_of
from .control import prompt_to_prompt, require_prompt
from .early_check import refusal
from .live_edit import ROUTE, answer
from .on_the_node import described_edit, word_heat
from .prompt_edit import MODES, PROMPT, prompt_edit
from .settings import Settings, window
from .sockets import PromptEditIO, trajectory_input, window_inputs
from .word_sites import word_sites_of

CATEGORY = "palimpsest/prompt_to_prompt"
ALIASES = ["p2p", "prompt to prompt", "hertz", "cross attention control", "word swap"]
PAPER = "Prompt-to-Prompt (Hertz 2022, arXiv 2208.01626)"


class EncodePromptEdit(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PAL_EncodePromptEdit",
            display_name="Encode Prompt Edit",
            category=CATEGORY,
            description="Encodes a source and a target prompt and finds which words match, which words count more or less, and where "
            f"pixels may change. {PAPER}.",
            search_aliases=[*ALIASES, "reweight", "attention refine", "attention replace", "local blend"],
            inputs=[
                io.Clip.Input("clip", tooltip="The text encoders that the model is used with."),
                io.String.Input(
                    "source_text",
                    multiline=True,
                    dynamic_prompts=True,
                    tooltip="What the picture shows now. The picture may have been inverted with this prompt or with an empty one.",
                ),
                io.String.Input(
                    "target_text",
                    multiline=True,
                    dynamic_prompts=True,
                    tooltip="What the picture should show: the same prompt with words replaced or added. Write the same prompt if you "
                    "only want to reweight words.",
                ),
                io.Combo.Input(
                    "mode",
                    options=list(MODES),
                    default="auto",
                    tooltip="auto: replace, add and leave out words in one edit; new words get their own attention. replace and refine "
                    "are the published modes. replace goes word by word and needs equally many words in both prompts. refine can add or "
                    "leave out words, and treats a replaced word as new.",
                ),
                io.String.Input(
                    "reweight",
                    default="",
                    tooltip="Words of target_text with a factor for their attention: 'fluffy: 2, red: -1'. 1 changes nothing, 0 removes "
                    "the word's effect, negative values push the picture away from it. Values below -2 or above 4 distort the picture.",
                ),
                io.String.Input(
                    "blend_words",
                    default="",
                    tooltip="Words whose area may change, from either prompt: 'cat, dog'. Outside that area the pixels of the source "
                    "are kept. If empty, all of the picture may change.",
                ),
                io.String.Input(
                    "keep_words",
                    default="",
                    optional=True,
                    advanced=True,
                    tooltip="Words whose area must not change, even where it overlaps with blend_words, from either prompt: 'mat'. Has "
                    "no effect without blend_words. Published as substruct_words.",
                ),
                io.String.Input(
                    "word_windows",
                    default="",
                    optional=True,
                    advanced=True,
                    tooltip="Words of target_text with their own steps for the source's cross-attention, in place of cross_end: "
                    "'fluffy: 0.2-0.8, red: 0.4', as fractions of all steps. A single number is the end.",
                ),
            ],
            outputs=[
                io.Conditioning.Output(
                    display_name="target",
                    tooltip="The encoded target prompt: connect it, unchanged, to the sampler's positive.",
                ),
                PromptEditIO.Output(display_name="edit", tooltip="Connect to Prompt-to-Prompt or Attention Mask."),
            ],
            **RESENDS_RESULT,
        )

    @classmethod
    def validate_inputs(
        cls, source_text=None, target_text=None, reweight=None, blend_words=None, keep_words=None, word_windows=None
    ) -> bool | str:
        return refusal(source_text, target_text, reweight, blend_words, keep_words, word_windows) or True

    @classmethod
    def execute(
        cls, clip, source_text, target_text, mode, reweight, blend_words, keep_words="", word_windows=""
    ) -> io.NodeOutput:
        texts = {
            **{"source_text": source_text, "target_text": target_text, "mode": mode, "reweight": reweight},
            **{"blend_words": blend_words, "keep_words": keep_words, "word_windows": word_windows},
        }
        edit = prompt_edit(partial(tokenize, clip), **texts)
        source, target = (
            clip.encode_from_tokens_scheduled(clip.tokenize(text), add_dict={PROMPT: text})
            for text in (source_text, target_text)
        )
        edit = replace(edit, encoded_source=source)
        new = sum(not bool(edit.alignment.aligned[list(word)].any()) for word in edit.target.words)
        counted = f"{len(edit.source.words)} source words, {len(edit.target.words)} target words"
        counted += f", {new} added" if new else ""
        return io.NodeOutput(target, edit, ui={**result(counted), **described_edit(edit), "palimpsest_texts": [texts]})


class PromptToPrompt(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PAL_PromptToPrompt",
            display_name="Prompt-to-Prompt",
            category=CATEGORY,
            description="Edits an inverted picture by changing words of its prompt. The words that stay use the attention of the "
            f"source, so the composition stays too. {PAPER}.",
            search_aliases=[*ALIASES, "edit by words", "local blend", "cross_replace_steps", "self_replace_steps"],
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="The kind of model the trajectory was made with: SD1.x, SD2.x, SDXL, or a transformer such as Flux, SD3.5, "
                    "Qwen-Image or Z-Image.",
                ),
                trajectory_input(),
                PromptEditIO.Input("edit", tooltip="`edit` of Encode Prompt Edit."),
                *window_inputs(),
                io.Float.Input(
                    "self_start",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    optional=True,
                    advanced=True,
                    tooltip="Fraction of the steps after which the source's self-attention begins to be used. 0 starts with the first "
                    "step.",
                ),
                io.Boolean.Input(
                    "exact_retracing",
                    default=False,
                    optional=True,
                    advanced=True,
                    tooltip="Corrects every step so that sampling follows the inversion back exactly. Needs a trajectory made with the "
                    "method ddim, and the sampler euler or ddim. For exact reconstruction: edits do not come out better with it.",
                ),
                io.Conditioning.Input(
                    "source",
                    optional=True,
                    tooltip="source_text, if another node has encoded it. If nothing is connected, the encoding of Encode Prompt Edit is "
                    "used, with the ControlNet and mask that the picture was inverted with.",
                ),
            ],
            outputs=[
                io.Model.Output(
                    display_name="model",
                    tooltip="Connect to a sampler or guider, with `target` as its positive prompt and the noise or latent of the inversion.",
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
        sites = word_sites_of(model, trajectory.latents.shape[2:])
        cross_end = sites.cross_end if cross_end < 0 else cross_end
        self_end = sites.self_end if self_end < 0 else self_end
        settings = Settings.of(edit, trajectory.steps, cross_end, self_end, blend_start, blend_threshold, self_start)
        patched = prompt_to_prompt(model, trajectory, source, settings, exact_retracing)
        return io.NodeOutput(patched, ui=result(f"{settings}, of {trajectory.steps} in all"))


class AttentionMask(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PAL_AttentionMask",
            display_name="Attention Mask",
            category=CATEGORY,
            description=f"Finds where words are in a picture, from the model's own attention to them, as a mask and a heatmap. {PAPER}.",
            search_aliases=[*ALIASES, "mask by text", "segment by words", "attention map", "heatmap", "daam"],
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="The kind of model the trajectory was made with: SD1.x, SD2.x, SDXL, or a transformer such as Flux, SD3.5, "
                    "Qwen-Image or Z-Image.",
                ),
                io.Clip.Input("clip", tooltip="The text encoders that the model is used with."),
                trajectory_input(),
                io.String.Input(
                    "text",
                    multiline=True,
                    dynamic_prompts=True,
                    tooltip="A sentence about the picture that contains the words. Not used when an edit is connected.",
                ),
                io.String.Input(
                    "words",
                    tooltip="Words of the text to find: 'cat', or several: 'cat, red hat'. Not used when an edit is connected.",
                ),
                io.Float.Input(
                    "start",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Where on the trajectory reading starts, as a fraction of its steps from the first (noisiest) on.",
                ),
                io.Float.Input(
                    "end",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Where reading ends. Fewer steps are faster: each step costs one model call.",
                ),
                io.Float.Input(
                    "threshold",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="How strong the attention must be, as a fraction of its maximum, to belong to the mask. Higher makes the "
                    "mask smaller. 0 chooses a threshold automatically (Otsu).",
                ),
                io.Conditioning.Input(
                    "positive",
                    optional=True,
                    tooltip="The encoded text, if another node has encoded it. If nothing is connected, the text is encoded here.",
                ),
                PromptEditIO.Input(
                    "edit",
                    optional=True,
                    tooltip="From Encode Prompt Edit: finds its blend_words in its source_text, in place of text and words.",
                ),
                io.Image.Input(
                    "image",
                    optional=True,
                    tooltip="The inverted picture, shown under the heatmap. Another size is fine, another crop is not. The mask gets its size.",
                ),
                io.String.Input(
                    "blocks",
                    default="auto",
                    optional=True,
                    advanced=True,
                    tooltip="Which blocks of a transformer are read. auto: those published to see words best, such as 11, 12, 14, 17, 18 of "
                    "Flux.1, or where nothing is published those whose maps are clearest. all, or numbers: '11, 14-18'. For UNets auto.",
                ),
            ],
            outputs=[
                io.Mask.Output(
                    display_name="mask",
                    tooltip="White where the words are. It has the size of image, or of the inverted picture if no image is connected.",
                ),
                io.Image.Output(
                    display_name="heatmap",
                    tooltip="The attention as colours, drawn over the image if one is connected.",
                ),
                io.String.Output(
                    display_name="report",
                    tooltip="For transformers, block by block: the text's attention, the words' share of it, and how much their map varies "
                    "over the picture. Connect Preview Any to find the blocks of a new model.",
                ),
            ],
            **RESENDS_RESULT,
        )

    @classmethod
    def execute(
        cls,
        model,
        clip,
        trajectory,
        text,
        words,
        start,
        end,
        threshold,
        positive=None,
        edit=None,
        image=None,
        blocks="auto",
    ) -> io.NodeOutput:
        prompt, columns = words_of(partial(tokenize, clip), text, words, edit)
        steps = window(start, end, trajectory.steps)
        if not steps:
            raise ValueError(
                f"end: expected at least one of the trajectory's {trajectory.steps} steps between start and end, got {start} and {end}. "
                "Raise end, or lower start."
            )
        pixels = model.get_model_object("latent_format").spacial_downscale_ratio
        size = tuple(pixels * n for n in trajectory.latents.shape[-2:])
        if image is not None:
            require_picture(image, trajectory.batch, size, pixels)
            size = tuple(image.shape[1:3])
        if positive is None:
            beside = read_beside_text(trajectory.positive)
            positive = clip.encode_from_tokens_scheduled(clip.tokenize(prompt.text), add_dict=beside)
        else:
            require_prompt(positive, prompt, "positive", "an encoding of the text")
        words_found = [columns, *prompt.words]
        found, report = found_words(model, trajectory, positive, words_found, prompt, steps, blocks)
        maps = enlarged(stretched(found[:, 0]), size)
        mask = mask_of(maps, threshold)
        share = f"{100 * float(mask.mean()):.1f} % of the picture, {len(steps)} steps read"
        [picture] = temporary_pictures(image[:1], cls) if image is not None else [None]
        words_shown = word_heat(prompt, found[0, 1:], picture, chosen_by="words" if edit is None else "edit")
        return io.NodeOutput(mask, heatmap(maps, image), report, ui={**result(share), **words_shown})


NODES = [EncodePromptEdit, PromptToPrompt, AttentionMask]

if hasattr(PromptServer, "instance"):
    PromptServer.instance.routes.post(ROUTE)(answer)
