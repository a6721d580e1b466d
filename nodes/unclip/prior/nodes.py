from pathlib import Path

import comfy.utils
import folder_paths
import torch
from comfy_api.latest import io

from ...display.feedback import RESENDS_RESULT, result
from ...text.image_embedding import ImageEmbedding
from ...text.text_states import text_states
from .checkpoint import STATS, load
from .prior import Options, Prior, best, draw_noise, sample

CATEGORY = "palimpsest/unclip"
FOLDER = "diffusion_models"
ALIASES = ["unclip", "dall-e 2", "karlo", "kandinsky", "diffusion prior", "text to image embedding"]
PAPER = "DALL-E 2 (2204.06125)"
NONE = "none"
DTYPES = {"default": None, "fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
KARLO_PRIOR = "prior-ckpt-step=01000000-of-01000000.ckpt"


@io.comfytype(io_type="PAL_PRIOR")
class PriorIO(io.ComfyTypeIO):
    Type = Prior


def _stats_files() -> list[str]:
    """Karlo's own has an ending that ComfyUI does not count among models'."""
    endings = {*folder_paths.supported_pt_extensions, ".th"}
    found = (folder_paths.recursive_search(folder)[0] for folder in folder_paths.get_folder_paths(FOLDER))
    return sorted({name for files in found for name in folder_paths.filter_files_extensions(files, endings)})


class LoadPrior(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PAL_LoadPrior",
            display_name="unCLIP Load Prior",
            category=CATEGORY,
            description="Loads a diffusion prior, the network that makes an image embedding from a text: Karlo's, or that of Kandinsky "
            f"2. {PAPER}.",
            search_aliases=[*ALIASES, "load checkpoint", "prior transformer", "diffusers"],
            inputs=[
                io.Combo.Input(
                    "prior_name",
                    options=folder_paths.get_filename_list(FOLDER),
                    tooltip="Karlo's prior-ckpt, or diffusion_pytorch_model.safetensors from the prior folder of Karlo or Kandinsky 2 "
                    "for diffusers. Put it in models/diffusion_models under a name of your choice.",
                ),
                io.Combo.Input(
                    "stats_name",
                    options=[NONE, *_stats_files()],
                    default=NONE,
                    optional=True,
                    tooltip=f"For Karlo's own file only: {STATS}, in the same folder. Files of the diffusers version contain these "
                    "numbers.",
                ),
                io.Combo.Input(
                    "weight_dtype",
                    options=list(DTYPES),
                    default="default",
                    optional=True,
                    advanced=True,
                    tooltip="Precision of the weights in memory. default is what ComfyUI chooses for diffusion models on this machine.",
                ),
            ],
            outputs=[PriorIO.Output(display_name="prior", tooltip="Connect to unCLIP Sample Prior.")],
            **RESENDS_RESULT,
        )

    @classmethod
    def validate_inputs(cls, prior_name=None, stats_name=None) -> bool | str:
        """None is what comes out of another node, known only when it has run."""
        if prior_name is not None and prior_name not in folder_paths.get_filename_list(FOLDER):
            return (
                f"prior_name: expected a file in models/{FOLDER}, got {prior_name!r}, which is not there. Put Karlo's {KARLO_PRIOR} (4.1 "
                f"GB) and {STATS} (7 KB) there, or the prior's diffusion_pytorch_model.safetensors of Kandinsky 2 (4.1 GB)."
            )
        if stats_name not in [None, NONE, *_stats_files()]:
            return (
                f"stats_name: expected {NONE} or a file in models/{FOLDER}, got {stats_name!r}, which is not there. Put Karlo's {STATS} "
                "(7 KB) there."
            )
        return True

    @classmethod
    def execute(cls, prior_name, stats_name=NONE, weight_dtype="default") -> io.NodeOutput:
        path = folder_paths.get_full_path_or_raise(FOLDER, prior_name)
        stats = None if stats_name == NONE else Path(folder_paths.get_full_path_or_raise(FOLDER, stats_name))
        prior = load(Path(path), stats, DTYPES[weight_dtype])
        model = prior.model
        size = f"{len(model.blocks)} layers of width {model.width}, embeddings of width {prior.width}"
        return io.NodeOutput(prior, ui=result(size))


class SamplePrior(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PAL_SamplePrior",
            display_name="unCLIP Sample Prior",
            category=CATEGORY,
            description="Makes an image embedding from a text, as if CLIP Vision had encoded a matching picture. For unCLIP decoders "
            f"and other nodes that take the output of CLIP Vision Encode. {PAPER}.",
            search_aliases=[*ALIASES, "clip vision output", "image embedding", "best of n"],
            inputs=[
                PriorIO.Input("prior", tooltip="From unCLIP Load Prior."),
                io.Clip.Input(
                    "clip",
                    tooltip="The text encoder that the prior was trained with: CLIP ViT-L/14 for Karlo and Kandinsky 2.1, ViT-bigG/14 "
                    "for Kandinsky 2.2. It must contain its text projection, which SD1.x checkpoints lack.",
                ),
                io.String.Input(
                    "text",
                    multiline=True,
                    dynamic_prompts=True,
                    tooltip="The prompt. The first 75 tokens are read, as published.",
                ),
                io.String.Input(
                    "negative_text",
                    multiline=True,
                    dynamic_prompts=True,
                    default="",
                    tooltip="What guidance moves away from. The priors were trained with an empty text here.",
                ),
                io.Int.Input(
                    "steps",
                    default=25,
                    min=2,
                    max=1000,
                    tooltip="Sampling steps of the prior. Published: 25.",
                ),
                io.Float.Input(
                    "cfg",
                    default=4.0,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    tooltip="Guidance. Published: 4. At 1 the negative text is not used and each step costs half.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=True,
                    tooltip="The same seed gives the same embedding. Raising candidates keeps the earlier ones and adds new ones.",
                ),
                io.Int.Input(
                    "candidates",
                    default=2,
                    min=1,
                    max=64,
                    tooltip="How many embeddings are sampled; the one closest to the text is kept. DALL-E 2 uses 2, Karlo 1.",
                ),
                io.Int.Input(
                    "batch_size",
                    default=1,
                    min=1,
                    max=64,
                    optional=True,
                    tooltip="How many embeddings to make, each the best of its own candidates. Keep 1 for SD2.1 unCLIP, Stable Cascade "
                    "and SDXL, which mix a batch into one picture.",
                ),
                io.Float.Input(
                    "eta",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    optional=True,
                    advanced=True,
                    tooltip="How much noise is added at each step. 1 is ancestral sampling, as published; 0 is deterministic (DDIM).",
                ),
                io.Float.Input(
                    "clamp",
                    default=10.0,
                    min=0.5,
                    max=100.0,
                    step=0.5,
                    optional=True,
                    advanced=True,
                    tooltip="Limit for each predicted number, in standard deviations from the mean. 10 in Karlo's own code and "
                    "Kandinsky, 5 in Karlo for diffusers.",
                ),
            ],
            outputs=[
                io.ClipVisionOutput.Output(
                    display_name="clip_vision_output",
                    tooltip="The image embedding, not normalised, in the form that CLIP Vision Encode gives.",
                ),
                io.Float.Output(
                    display_name="score",
                    tooltip="The cosine between the kept embedding and the text's embedding. For a batch, the mean.",
                ),
            ],
            **RESENDS_RESULT,
        )

    @classmethod
    def execute(
        cls, prior, clip, text, negative_text, steps, cfg, seed, candidates, batch_size=1, eta=1.0, clamp=10.0
    ) -> io.NodeOutput:
        texts = [text] if cfg == 1.0 else [text, negative_text]
        read = text_states(clip, texts, prior.width, "the prior")
        noise = draw_noise(seed, candidates * batch_size, prior.width)
        progress = comfy.utils.ProgressBar(steps)
        sampled = sample(prior, read, noise, Options(steps, cfg, clamp, eta), lambda: progress.update(1))
        embeddings, scores = best(sampled, read.pooled[0], batch_size)
        says = f"cosine to the text: {', '.join(f'{float(score):.3f}' for score in scores)}"
        if any(read.unread):
            says += f"; {max(read.unread)} tokens beyond the 75th were not read"
        return io.NodeOutput(ImageEmbedding(embeddings), float(scores.mean()), ui=result(says))


NODES = [LoadPrior, SamplePrior]
