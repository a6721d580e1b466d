from pathlib import Path

import comfy.samplers
import folder_paths
import torch
from comfy_api.latest import io

from ...display.feedback import show_on_node
from .ancestral import SPACINGS, sample_unclip
from .conditioning import unclip_conditioning
from .loading import Upsampler, load_decoder, load_upsampler, pixel_vae
from .upsampling import plan, upsample

CATEGORY = "palimpsest/unclip"
ALIASES = ["unclip", "dall-e 2", "dalle2", "karlo"]
PAPER = "DALL-E 2 (2204.06125)"
FOLDER = "diffusion_models"
NONE = "none"
DTYPES = {"default": None, "fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
DECODER_FILES = (
    "Karlo's decoder-ckpt-step=01000000-of-01000000.ckpt (3.6 GB in float32), or diffusion_pytorch_model.safetensors out of diffusers' "
    "folders decoder (3.5 GB) and text_proj (32 MB)"
)
UPSAMPLER_FILES = (
    "Karlo's improved-sr-ckpt-step=1.2M.ckpt (5.5 GB in float32), or diffusion_pytorch_model.safetensors out of diffusers' folders "
    "super_res_first and super_res_last (2.8 GB each)"
)


@io.comfytype(io_type="PAL_UPSAMPLER")
class UpsamplerIO(io.ComfyTypeIO):
    Type = Upsampler


def _file_input(name: str, tooltip: str, optional: bool = False) -> io.Input:
    files = folder_paths.get_filename_list(FOLDER)
    if optional:
        return io.Combo.Input(name, options=[NONE, *files], default=NONE, optional=True, tooltip=tooltip)
    return io.Combo.Input(name, options=files, tooltip=tooltip)


def _missing(published: str, **chosen: str | None) -> bool | str:
    """True where every chosen file is there. None is what comes out of another node, known only when it has run."""
    files = [NONE, *folder_paths.get_filename_list(FOLDER)]
    for socket, name in chosen.items():
        if name is not None and (name not in files or (name == NONE and socket == "model_name")):
            return f"{socket}: expected a file in models/{FOLDER}, got {name!r}, which is not there. Put {published}, there."
    return True


def _path(name: str) -> Path | None:
    return None if name == NONE else Path(folder_paths.get_full_path_or_raise(FOLDER, name))


def _dtype_input() -> io.Input:
    return io.Combo.Input(
        "weight_dtype",
        options=list(DTYPES),
        default="default",
        optional=True,
        advanced=True,
        tooltip="Precision of the weights in memory. default is what ComfyUI takes for diffusion models on this machine.",
    )


class LoadUnCLIPDecoder(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PAL_LoadUnCLIPDecoder",
            display_name="unCLIP Load Decoder",
            category=CATEGORY,
            description=f"Loads Karlo's decoder: a model that paints 64 x 64 pixels from an image embedding and a text. {PAPER}.",
            search_aliases=[*ALIASES, "load diffusion model", "pixel space"],
            inputs=[
                _file_input("model_name", f"The decoder, in models/{FOLDER}: Karlo's own file, or diffusers' decoder."),
                _file_input(
                    "text_proj_name",
                    "For diffusers' layout only: the file of its text_proj folder. Karlo's own file holds everything.",
                    optional=True,
                ),
                _dtype_input(),
            ],
            outputs=[
                io.Model.Output(
                    display_name="model",
                    tooltip="Works in pixel space with core's samplers, schedulers, guiders and masks, and with DDIM Invert.",
                ),
                io.Vae.Output(
                    display_name="vae", tooltip="Turns pictures into this model's latents and back: pixels, untouched."
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, model_name=None, text_proj_name=None) -> bool | str:
        return _missing(DECODER_FILES, model_name=model_name, text_proj_name=text_proj_name)

    @classmethod
    def execute(cls, model_name, text_proj_name=NONE, weight_dtype="default") -> io.NodeOutput:
        model = load_decoder(_path(model_name), _path(text_proj_name), DTYPES[weight_dtype])
        return io.NodeOutput(model, pixel_vae())


class UnCLIPConditioning(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PAL_UnCLIPConditioning",
            display_name="unCLIP Decoder Conditioning",
            category=CATEGORY,
            description=f"The conditioning of an unCLIP decoder: an image embedding, a text, or both. {PAPER}.",
            search_aliases=[*ALIASES, "image variation", "clip vision", "unclipconditioning"],
            inputs=[
                io.Clip.Input(
                    "clip", tooltip="The text encoder the decoder was trained with. Karlo: CLIP ViT-L/14, complete."
                ),
                io.String.Input(
                    "text",
                    multiline=True,
                    dynamic_prompts=True,
                    tooltip="The prompt; the same as for the prior. Empty for variations of a picture.",
                ),
                io.ClipVisionOutput.Input(
                    "clip_vision_output",
                    optional=True,
                    tooltip="From unCLIP Sample Prior or CLIP Vision Encode. A batch goes to as many pictures. Unconnected: text alone.",
                ),
                io.Model.Input(
                    "model",
                    optional=True,
                    tooltip="From unCLIP Load Decoder. With it, text and embedding of another width are refused here and not by the sampler. "
                    "A clip with several text encoders, such as SDXL's, needs it.",
                ),
            ],
            outputs=[
                io.Conditioning.Output(display_name="positive", tooltip="The text with the embedding."),
                io.Conditioning.Output(
                    display_name="negative",
                    tooltip="The empty text with the decoder's learned stand-in for an embedding: what it was trained to be guided away from.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, clip, text, clip_vision_output=None, model=None) -> io.NodeOutput:
        guidance = unclip_conditioning(clip, model, text, clip_vision_output)
        if guidance.unread:
            show_on_node(cls, f"{guidance.unread} tokens at the text's end are not read")
        return io.NodeOutput(guidance.positive, guidance.negative)


class UnCLIPSampler(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PAL_UnCLIPSampler",
            display_name="unCLIP Sampler",
            category=CATEGORY,
            description="The sampler that unCLIP decoders were published with: ancestral, with the variance that the network predicts. "
            f"{PAPER}.",
            search_aliases=[*ALIASES, "ksampler select", "ancestral", "ddpm", "learned variance"],
            inputs=[
                io.Combo.Input(
                    "spacing",
                    options=list(SPACINGS),
                    default=SPACINGS[0],
                    tooltip="published: of a whole schedule only the number of steps is used; they are spaced evenly over the 1000 training "
                    "steps. sigmas: the training steps nearest to the connected sigmas.",
                )
            ],
            outputs=[
                io.Sampler.Output(
                    display_name="sampler",
                    tooltip="For SamplerCustomAdvanced or SamplerCustom. Published: 25 or 50 steps, cfg 8.",
                )
            ],
        )

    @classmethod
    def execute(cls, spacing) -> io.NodeOutput:
        return io.NodeOutput(comfy.samplers.KSAMPLER(sample_unclip, {"spacing": spacing}))


class LoadUpsampler(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PAL_LoadUpsampler",
            display_name="unCLIP Load Upsampler",
            category=CATEGORY,
            description=f"Loads one of unCLIP's diffusion upsamplers: Karlo's 64 to 256, or one like DALL-E 2's 256 to 1024. {PAPER}.",
            search_aliases=[*ALIASES, "super resolution", "upscale model"],
            inputs=[
                _file_input(
                    "model_name",
                    f"The upsampler, in models/{FOLDER}: Karlo's own file, diffusers' super_res_first, or one network for all steps.",
                ),
                _file_input(
                    "last_name",
                    "For diffusers' layout only: the file of its super_res_last folder, which does the last step.",
                    optional=True,
                ),
                _dtype_input(),
            ],
            outputs=[UpsamplerIO.Output(display_name="upsampler", tooltip="For unCLIP Upsample.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, model_name=None, last_name=None) -> bool | str:
        return _missing(UPSAMPLER_FILES, model_name=model_name, last_name=last_name)

    @classmethod
    def execute(cls, model_name, last_name=NONE, weight_dtype="default") -> io.NodeOutput:
        upsampler = load_upsampler(_path(model_name), _path(last_name), DTYPES[weight_dtype])
        steps = len(plan(upsampler, 0)[0])
        show_on_node(
            cls,
            f"{steps} steps as published, "
            + ("the last by its own network" if upsampler.last else "one network for all"),
        )
        return io.NodeOutput(upsampler)


class Upsample(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PAL_Upsample",
            display_name="unCLIP Upsample",
            category=CATEGORY,
            description=f"Paints a small picture anew at a larger size, by a diffusion upsampler. {PAPER}.",
            search_aliases=[*ALIASES, "super resolution", "upscale image"],
            inputs=[
                UpsamplerIO.Input("upsampler", tooltip="From unCLIP Load Upsampler."),
                io.Image.Input(
                    "image",
                    tooltip="What the decoder or the upsampler before this one has painted. A batch goes through together.",
                ),
                io.Int.Input(
                    "steps",
                    default=0,
                    min=0,
                    max=1000,
                    tooltip="0: as published, which is 7 for Karlo's two networks and 15 for a single one. Otherwise 2 or more.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=True,
                    tooltip="Of the noise that details are made from.",
                ),
                io.Int.Input(
                    "scale",
                    default=4,
                    min=2,
                    max=8,
                    advanced=True,
                    tooltip="How many times larger. What the upsampler was trained for: 4 for the published ones.",
                ),
                io.Int.Input(
                    "tile",
                    default=512,
                    min=64,
                    max=4096,
                    step=64,
                    advanced=True,
                    tooltip="The most pixels to a side that the network sees at once. Larger results are put together from overlapping "
                    "tiles at every step. Lower it when memory runs out.",
                ),
            ],
            outputs=[io.Image.Output(display_name="image", tooltip="The larger picture.")],
        )

    @classmethod
    def execute(cls, upsampler, image, steps, seed, scale, tile) -> io.NodeOutput:
        return io.NodeOutput(upsample(upsampler, image, scale, steps, seed, tile))


NODES = [LoadUnCLIPDecoder, UnCLIPConditioning, UnCLIPSampler, LoadUpsampler, Upsample]
