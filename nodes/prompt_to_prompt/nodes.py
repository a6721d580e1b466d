from __future__ import annotations

from functools import partial

from comfy_api.latest import io

from ..feedback import show_on_node
from ..types import PromptEditIO
from .prompt_edit import MODES, prompt_edit
from .tokens import tokenize

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
            description="Two prompts and what connects them: which words follow which, which count more or less, and which may "
            f"change pixels. {PAPER}.",
            search_aliases=[*ALIASES, "reweight", "attention refine", "attention replace", "local blend"],
            inputs=[
                io.Clip.Input("clip", tooltip="The checkpoint's CLIP, one of SD1.x, SD2.x or SDXL."),
                io.String.Input(
                    "source_text",
                    multiline=True,
                    dynamic_prompts=True,
                    tooltip="What the picture shows now: the prompt it was inverted or generated with.",
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
                    tooltip="replace: word for word, both prompts have as many words. refine: words may be added or left out; new "
                    "words get attention of their own. auto: replace when the number of words is equal, else refine.",
                ),
                io.String.Input(
                    "reweight",
                    default="",
                    tooltip="Words of target_text with a factor for their attention: 'fluffy: 2, red: -1'. 1 changes nothing, 0 takes "
                    "the word away, negative values push it away. Strong factors distort: stay within -2 and 4 or so.",
                ),
                io.String.Input(
                    "blend_words",
                    default="",
                    tooltip="Words whose place may change, from either prompt: 'cat, dog'. Everything elsewhere stays the source's "
                    "pixels. Empty: the whole picture may change.",
                ),
            ],
            outputs=[
                io.Conditioning.Output(
                    display_name="source", tooltip="The source prompt, for DDIM Invert and Prompt-to-Prompt."
                ),
                io.Conditioning.Output(
                    display_name="target", tooltip="The target prompt: the sampler's positive, just as it is."
                ),
                PromptEditIO.Output(display_name="edit", tooltip="For Prompt-to-Prompt, and for Attention Mask."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, clip, source_text, target_text, mode, reweight, blend_words) -> io.NodeOutput:
        edit = prompt_edit(partial(tokenize, clip), source_text, target_text, mode, reweight, blend_words)
        source, target = (clip.encode_from_tokens_scheduled(clip.tokenize(text)) for text in (source_text, target_text))
        show_on_node(cls, f"{edit.mode}, {len(edit.source.words)} and {len(edit.target.words)} words")
        return io.NodeOutput(source, target, edit)


NODES = [EncodePromptEdit]
