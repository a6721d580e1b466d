from pathlib import Path

import comfy.samplers
import folder_paths
import torch
from comfy_api.latest import io

from ...display.feedback import RESENDS_RESULT, result
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
    "Karlo's decoder-ckpt-step=01000000-of-01000000.ckpt (3.6 GB in float32), or diffusion_pytorch_model.safetensors from the diffusers "
    "folders decoder (3.5 GB) and text_proj (32 MB)"
)
UPSAMPLER_FILES = (
    "Karlo's improved-sr-ckpt-step=1.2M.ckpt (5.5 GB in float32), or diffusion_pytorch_model.safetensors from the diffusers folders "
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
        tooltip="Precision of the weights in memory. default is what ComfyUI chooses for diffusion models on this machine.",
    )


class LoadUnCLIPDecoder(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PAL_LoadUnCLIPDecoder",
            display_name="unCLIP Load Decoder",
            category=CATEGORY,
            description=f"Loads Karlo's decoder: a model that generates 64 x 64 pixels from an image embedding and a text. {PAPER}.",
            search_aliases=[*ALIASES, "load diffusion model", "pixel space"],
            inputs=[
                _file_input(
                    "model_name",
                    f"The decoder, in models/{FOLDER}: Karlo's own file, or the decoder file of the diffusers version.",
                ),
                _file_input(
                    "text_proj_name",
                    "For the diffusers version only: the file of its text_proj folder. Karlo's own file contains everything.",
                    optional=True,
                ),
                _dtype_input(),
            ],
            outputs=[
                io.Model.Output(
                    display_name="model",
                    tooltip="Works in pixel space, with ComfyUI's samplers, schedulers, guiders and masks, and with DDIM Invert.",
                ),
                io.Vae.Output(
                    display_name="vae",
                    tooltip="The VAE for this model, which works directly on pixels: nothing is lost by encoding or decoding.",
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
            description=f"Makes the conditioning for an unCLIP decoder from an image embedding, a text, or both. {PAPER}.",
            search_aliases=[*ALIASES, "image variation", "clip vision", "unclipconditioning"],
            inputs=[
                io.Clip.Input(
                    "clip",
                    tooltip="The text encoder that the decoder was trained with. For Karlo: CLIP ViT-L/14 with its text projection, "
                    "which SD1.x checkpoints lack.",
                ),
                io.String.Input(
                    "text",
                    multiline=True,
                    dynamic_prompts=True,
                    tooltip="The prompt, the same as for the prior. Leave it empty for variations of a picture.",
                ),
                io.ClipVisionOutput.Input(
                    "clip_vision_output",
                    optional=True,
                    tooltip="From unCLIP Sample Prior or CLIP Vision Encode. A batch of embeddings makes as many pictures. Without an "
                    "embedding, the text alone is used.",
                ),
                io.Model.Input(
                    "model",
                    optional=True,
                    tooltip="From unCLIP Load Decoder. When connected, a text or embedding of the wrong width is refused here, before "
                    "sampling starts. Needed for a clip with several text encoders, such as SDXL's.",
                ),
            ],
            outputs=[
                io.Conditioning.Output(display_name="positive", tooltip="The text together with the embedding."),
                io.Conditioning.Output(
                    display_name="negative",
                    tooltip='The empty text, with the embedding that the decoder learned for "no picture". This is the '
                    "negative that it was trained with.",
                ),
            ],
            **RESENDS_RESULT,
        )

    @classmethod
    def execute(cls, clip, text, clip_vision_output=None, model=None) -> io.NodeOutput:
        guidance = unclip_conditioning(clip, model, text, clip_vision_output)
        unread = [f"the last {guidance.unread} tokens of the text are not read"] if guidance.unread else []
        return io.NodeOutput(guidance.positive, guidance.negative, ui=result(*unread))


class UnCLIPSampler(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PAL_UnCLIPSampler",
            display_name="unCLIP Sampler",
            category=CATEGORY,
            description="The sampler that unCLIP decoders were published with. It adds noise at each step, as much as the network "
            f"predicts. {PAPER}.",
            search_aliases=[*ALIASES, "ksampler select", "ancestral", "ddpm", "learned variance"],
            inputs=[
                io.Combo.Input(
                    "spacing",
                    options=list(SPACINGS),
                    default=SPACINGS[0],
                    tooltip="published: only the number of steps is taken from the schedule; they are spaced evenly over the 1000 "
                    "training steps. sigmas: uses the training steps closest to the connected sigmas.",
                )
            ],
            outputs=[
                io.Sampler.Output(
                    display_name="sampler",
                    tooltip="For SamplerCustomAdvanced or SamplerCustom. Published settings: 25 or 50 steps, cfg 8.",
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
            description="Loads an unCLIP upsampler, a diffusion model that enlarges pictures: Karlo's from 64 to 256 pixels, or one "
            f"like DALL-E 2's from 256 to 1024. {PAPER}.",
            search_aliases=[*ALIASES, "super resolution", "upscale model"],
            inputs=[
                _file_input(
                    "model_name",
                    f"The upsampler, in models/{FOLDER}: Karlo's own file, super_res_first of the diffusers version, or a single network "
                    "for all steps.",
                ),
                _file_input(
                    "last_name",
                    "For the diffusers version only: the file of its super_res_last folder, which does the last step.",
                    optional=True,
                ),
                _dtype_input(),
            ],
            outputs=[UpsamplerIO.Output(display_name="upsampler", tooltip="For unCLIP Upsample.")],
            **RESENDS_RESULT,
        )

    @classmethod
    def validate_inputs(cls, model_name=None, last_name=None) -> bool | str:
        return _missing(UPSAMPLER_FILES, model_name=model_name, last_name=last_name)

    @classmethod
    def execute(cls, model_name, last_name=NONE, weight_dtype="default") -> io.NodeOutput:
        upsampler = load_upsampler(_path(model_name), _path(last_name), DTYPES[weight_dtype])
        steps = len(plan(upsampler, 0)[0])
        networks = "the last by its own network" if upsampler.last else "one network for all"
        return io.NodeOutput(upsampler, ui=result(f"{steps} steps as published, {networks}"))


class Upsample(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PAL_Upsample",
            display_name="unCLIP Upsample",
            category=CATEGORY,
            description=f"Enlarges a small picture with a diffusion upsampler, which draws new details. {PAPER}.",
            search_aliases=[*ALIASES, "super resolution", "upscale image"],
            inputs=[
                UpsamplerIO.Input("upsampler", tooltip="From unCLIP Load Upsampler."),
                io.Image.Input(
                    "image",
                    tooltip="The picture from the decoder or from another upsampler. A batch is enlarged together.",
                ),
                io.Int.Input(
                    "steps",
                    default=0,
                    min=0,
                    max=1000,
                    tooltip="0 uses the published number: 7 for Karlo's two networks, 15 for a single network. Otherwise 2 or more.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=True,
                    tooltip="The seed of the noise that new details are made from.",
                ),
                io.Int.Input(
                    "scale",
                    default=4,
                    min=2,
                    max=8,
                    advanced=True,
                    tooltip="How many times larger the result is. Use what the upsampler was trained for: 4 for the published ones.",
                ),
                io.Int.Input(
                    "tile",
                    default=512,
                    min=64,
                    max=4096,
                    step=64,
                    advanced=True,
                    tooltip="The largest width and height that the network sees at once. Larger results are made from overlapping tiles "
                    "at every step. Lower it if memory runs out.",
                ),
            ],
            outputs=[io.Image.Output(display_name="image", tooltip="The enlarged picture.")],
        )

    @classmethod
    def execute(cls, upsampler, image, steps, seed, scale, tile) -> io.NodeOutput:
        return io.NodeOutput(upsample(upsampler, image, scale, steps, seed, tile))


NODES = [LoadUnCLIPDecoder, UnCLIPConditioning, UnCLIPSampler, LoadUpsampler, Upsample]
