from pathlib import Path

import folder_paths
from comfy_api.latest import io
from comfy_execution.graph_utils import ExecutionBlocker

from ..display.feedback import RESENDS_RESULT, result
from .checkpoint import load
from .conditioning import subject_conditioning
from .encoder import SubjectEncoder
from .markers import MARKERS
from .reference_pictures import MAX_SUBJECTS, references

CATEGORY = "palimpsest/subject"
ALIASES = ["fastcomposer", "face-diffuser", "subject", "reference image", "personalization", "identity"]
PAPERS = "FastComposer (2305.10431), Face-diffuser (2311.10329)"


@io.comfytype(io_type="PAL_SUBJECT_ENCODER")
class SubjectEncoderIO(io.ComfyTypeIO):
    Type = SubjectEncoder


class LoadSubjectEncoder(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PAL_LoadSubjectEncoder",
            display_name="Load Subject Checkpoint",
            category=CATEGORY,
            description="Loads a FastComposer or Face-diffuser checkpoint: its model, CLIP and VAE, and the subject encoder that reads "
            f"reference pictures. {PAPERS}.",
            search_aliases=[*ALIASES, "load checkpoint", "sdm", "tdm", "diffusers"],
            inputs=[
                io.Combo.Input(
                    "ckpt_name",
                    options=folder_paths.get_filename_list("checkpoints"),
                    tooltip="FastComposer's pytorch_model.bin, or Face-diffuser's SDM or TDM, placed in models/checkpoints under a name "
                    "of your choice. Ordinary checkpoints have no subject encoder.",
                )
            ],
            outputs=[
                io.Model.Output(
                    display_name="model",
                    tooltip="The model (UNet) of the file: an SD1.5 that was trained with reference pictures.",
                ),
                io.Clip.Output(
                    display_name="clip", tooltip="The text encoder of the file (SD1.5's), for Subject Conditioning."
                ),
                io.Vae.Output(display_name="vae", tooltip="The VAE of the file (SD1.5's)."),
                SubjectEncoderIO.Output(
                    display_name="subject_encoder",
                    tooltip="For Subject Conditioning. A checkpoint without subject encoder (Face-diffuser's TDM) gives the other "
                    "outputs only.",
                ),
            ],
            **RESENDS_RESULT,
        )

    @classmethod
    def execute(cls, ckpt_name) -> io.NodeOutput:
        path = folder_paths.get_full_path_or_raise("checkpoints", ckpt_name)
        model, clip, vae, encoder = load(Path(path), folder_paths.get_folder_paths("embeddings"))
        said = []
        if encoder is None:
            said.append("no subject encoder: a text-only model")
            encoder = ExecutionBlocker(
                f"subject_encoder: expected from a checkpoint with one, got {ckpt_name}, a text-only model such as Face-diffuser's TDM: "
                "use its model for the scene, and take subject_encoder from FastComposer's file or Face-diffuser's SDM."
            )
        return io.NodeOutput(model, clip, vae, encoder, ui=result(*said))


def _picture_sockets() -> list[io.Input]:
    """One required image socket, three more, and a mask for each."""
    sockets: list[io.Input] = []
    for i in range(2, MAX_SUBJECTS + 1):
        sockets.append(
            io.Image.Input(
                f"image_{i}",
                optional=True,
                tooltip=f"More reference pictures, which may have another size. They come after those of {'images' if i == 2 else f'image_{i - 1}'}.",
            )
        )
    for i in range(1, MAX_SUBJECTS + 1):
        name, image = ("mask", "images") if i == 1 else (f"mask_{i}", f"image_{i}")
        sockets.append(
            io.Mask.Input(
                name,
                optional=True,
                tooltip=f"A mask that is white on the subject of {image}, of the same size. The rest of the picture becomes noise and is "
                "cropped away, as in training.",
            )
        )
    return sockets


class SubjectConditioning(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PAL_SubjectConditioning",
            display_name="Subject Conditioning",
            category=CATEGORY,
            description="Puts one to four subjects from reference pictures into a prompt: each marked noun gets one picture. For the "
            f"model of the same checkpoint. {PAPERS}.",
            search_aliases=[*ALIASES, "multiple subjects", "face", "postfuse", "clip text encode"],
            inputs=[
                io.Clip.Input(
                    "clip",
                    tooltip="`clip` of Load Subject Checkpoint or of any SD1.x checkpoint, without CLIP Set Last Layer.",
                ),
                SubjectEncoderIO.Input("subject_encoder", tooltip="From Load Subject Checkpoint."),
                io.Image.Input(
                    "images",
                    tooltip="A picture of the first subject, cropped to it. In a batch, each picture is one reference.",
                ),
                io.String.Input(
                    "text",
                    multiline=True,
                    dynamic_prompts=True,
                    default=f"a man {MARKERS[0]} reading a book in a garden",
                    tooltip=f"The prompt, with {MARKERS[0]} or {MARKERS[1]} right after the noun of each subject: one marker for each "
                    "picture, in the same order.",
                ),
                *_picture_sockets(),
            ],
            outputs=[
                io.Conditioning.Output(
                    display_name="positive_subject",
                    tooltip="The prompt with the subjects in it: the positive prompt for the checkpoint's own model.",
                ),
                io.Conditioning.Output(
                    display_name="positive",
                    tooltip="The prompt without markers and subjects, as CLIP Text Encode would encode it.",
                ),
            ],
            **RESENDS_RESULT,
        )

    @classmethod
    def execute(
        cls, clip, subject_encoder, images, text, image_2=None, image_3=None, image_4=None,
        mask=None, mask_2=None, mask_3=None, mask_4=None,
    ) -> io.NodeOutput:  # fmt: skip
        found = references(
            [
                ("images", images, "mask", mask),
                ("image_2", image_2, "mask_2", mask_2),
                ("image_3", image_3, "mask_3", mask_3),
                ("image_4", image_4, "mask_4", mask_4),
            ]
        )
        positive_subject, positive, prompt = subject_conditioning(clip, subject_encoder, text, found)
        nouns = ", ".join(f"{i}: {noun}" for i, noun in enumerate(prompt.nouns, 1))
        return io.NodeOutput(positive_subject, positive, ui=result(nouns))


NODES = [LoadSubjectEncoder, SubjectConditioning]
