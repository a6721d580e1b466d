import comfy.model_management
from comfy_api.latest import io

from ...display.feedback import RESENDS_RESULT, result
from ...files.saved_files import fingerprint, invalid_choice, next_file, resolve, saved_files, size_line
from ...text.image_embedding import ImageEmbedding, image_embeds, require_batch, require_match
from ...text.text_states import TextStates, text_states
from . import sphere
from .embedding_io import SUFFIX, load_embedding, save_embedding
from .numbers import MAX_FRAMES, mixing_weights, thetas
from .sockets import IPAdapterEmbedsIO

CATEGORY = "palimpsest/unclip"
PAPER = "DALL-E 2 (2204.06125)"
ALIASES = ["unclip", "clip vision", "image embedding", "dall-e 2"]
MAX_MIXED = 16


def _embedding_input(name: str, tooltip: str) -> io.Input:
    return io.MultiType.Input(
        name,
        [io.ClipVisionOutput, IPAdapterEmbedsIO],
        tooltip=f"{tooltip} From CLIP Vision Encode, unCLIP Sample Prior, unCLIP Load Embedding or an IPAdapter encoder.",
    )


def _clip_input() -> io.Input:
    return io.Clip.Input(
        "clip",
        tooltip="The text encoder of the CLIP model that made the embedding: ViT-L/14 for width 768, ViT-H/14 for 1024, ViT-bigG/14 "
        "(SDXL) for 1280. Its file must contain text_projection.",
    )


def _theta_inputs(default: str, tooltip: str) -> list[io.Input]:
    return [
        io.String.Input("thetas", default=default, tooltip=f"{tooltip} Each number gives one result."),
        io.Int.Input(
            "frames",
            default=0,
            min=0,
            max=MAX_FRAMES,
            tooltip="0 uses the numbers in thetas as they are. A higher number makes that many results, evenly spaced along thetas. "
            "With thetas 0, 1, 0 they go to the end and back.",
        ),
    ]


def _outputs(tooltip: str) -> list[io.Output]:
    return [
        io.ClipVisionOutput.Output(
            "embedding",
            tooltip=f"{tooltip} Karlo's decoder makes one picture from each; SD2.1 unCLIP, Stable Cascade and SDXL mix all of them into "
            "one picture.",
        ),
        io.ClipVisionOutput.Output(
            "single",
            is_output_list=True,
            tooltip="The same embeddings as a list: the connected nodes run once for each. Use it for morphs with SD2.1 unCLIP, Stable "
            "Cascade or SDXL.",
        ),
        IPAdapterEmbedsIO.Output("embeds", tooltip="The same embeddings in the form that the IPAdapter nodes use."),
    ]


def _given(embeds, ui: dict | None = None) -> io.NodeOutput:
    return io.NodeOutput(ImageEmbedding(embeds), [ImageEmbedding(row) for row in embeds.split(1)], embeds, ui=ui)


class EmbeddingSlerp(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PAL_EmbeddingSlerp",
            display_name="unCLIP Embedding Slerp",
            category=CATEGORY,
            description="Interpolates between the image embeddings of two pictures (spherical interpolation), in as many steps as you "
            f"like. {PAPER}, section 3.2.",
            search_aliases=[*ALIASES, "interpolate", "morph", "spherical interpolation"],
            inputs=[
                _embedding_input("embedding_a", "The embedding at theta 0."),
                _embedding_input("embedding_b", "The embedding at theta 1, from the same CLIP model."),
                *_theta_inputs("0, 0.25, 0.5, 0.75, 1", "How far from a (0) to b (1), for example 0, 0.5, 1."),
            ],
            outputs=_outputs(
                "One embedding for each theta. For batches: first all thetas of the first pair, then those of the second, and so on."
            ),
        )

    @classmethod
    def execute(cls, embedding_a, embedding_b, thetas, frames) -> io.NodeOutput:
        a, b = image_embeds(embedding_a, "embedding_a"), image_embeds(embedding_b, "embedding_b")
        require_match({"embedding_a": a, "embedding_b": b})
        return _given(sphere.slerp(a[:, None], b[:, None], _steps(thetas, frames)).flatten(0, 1))


class LatentSlerp(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PAL_LatentSlerp",
            display_name="Latent Slerp",
            category=CATEGORY,
            description="Interpolates between two noises (spherical interpolation), for morphs between two inverted pictures. Use it "
            f"together with unCLIP Embedding Slerp. {PAPER}, section 3.2.",
            search_aliases=["interpolate", "morph", "spherical interpolation", "noise"],
            inputs=[
                io.Latent.Input("latent_a", tooltip="The latent at theta 0: noised_latent of DDIM Invert or Trajectory Start."),
                io.Latent.Input("latent_b", tooltip="The latent at theta 1, of the same size."),
                *_theta_inputs("0, 0.25, 0.5, 0.75, 1", "How far from a (0) to b (1), for example 0, 0.5, 1."),
            ],
            outputs=[
                io.Latent.Output("latent", tooltip="One latent for each theta, for KSampler (Advanced) with add_noise disabled."),
                io.Latent.Output("single", is_output_list=True, tooltip="The same latents as a list, to go with `single` of unCLIP Embedding Slerp."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, latent_a, latent_b, thetas, frames) -> io.NodeOutput:
        a, b = latent_a["samples"], latent_b["samples"]
        if a.shape[1:] != b.shape[1:]:
            raise ValueError(
                f"latent_b: expected the size of latent_a, {list(a.shape[1:])}, got {list(b.shape[1:])}. Invert pictures of one size."
            )
        require_batch({"latent_a": len(a), "latent_b": len(b)})
        for socket, x in (("latent_a", a), ("latent_b", b)):
            if not bool(x.flatten(1).any(-1).all()):
                raise ValueError(
                    f"{socket}: expected noise, got an empty latent. Connect noised_latent of DDIM Invert."
                )
        path = sphere.slerp(a.flatten(1)[:, None], b.flatten(1)[:, None], _steps(thetas, frames))
        latents = path.flatten(0, 1).unflatten(1, a.shape[1:])
        return io.NodeOutput({"samples": latents}, [{"samples": row} for row in latents.split(1)])


class EmbeddingMix(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PAL_EmbeddingMix",
            display_name="unCLIP Embedding Mix",
            category=CATEGORY,
            description=f"Mixes the image embeddings of 2 to {MAX_MIXED} pictures by weight. A negative weight removes what a picture "
            "shows.",
            search_aliases=[*ALIASES, "blend", "average", "combine", "weighted sum"],
            inputs=[
                io.Autogrow.Input(
                    "embeddings",
                    io.Autogrow.TemplatePrefix(
                        _embedding_input(
                            "embedding", "The embedding of a picture to mix, all from the same CLIP model."
                        ),
                        prefix="embedding",
                        min=2,
                        max=MAX_MIXED,
                    ),
                    tooltip="The embeddings to mix. Each connection adds a socket for the next one.",
                ),
                io.String.Input(
                    "weights",
                    default="",
                    tooltip="One weight for each embedding, in the order of the sockets: 1, 0.5. If empty, all weights are equal.",
                ),
                io.Combo.Input(
                    "norm",
                    options=["keep", "sum"],
                    default="keep",
                    tooltip="keep: gives the mix the average length of the connected embeddings, which decoders expect; only the ratios "
                    "of the weights count. sum: the plain weighted sum, as in Kandinsky's interpolate.",
                ),
            ],
            outputs=_outputs("The mixed embedding, one for each row of the batch."),
        )

    @classmethod
    def execute(cls, embeddings, weights, norm) -> io.NodeOutput:
        embeds = {socket: image_embeds(value, socket) for socket, value in embeddings.items()}
        batch = require_match(embeds)
        rows = [e.expand(batch, -1) for e in embeds.values()]
        try:
            return _given(sphere.mix(rows, mixing_weights(weights, len(rows)), norm == "keep"))
        except sphere.NothingLeft:
            raise ValueError(
                f"weights: expected weights that do not cancel out, got {weights!r}, whose mix is almost zero. Change one of them."
            ) from None


class EmbeddingTextDiff(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PAL_EmbeddingTextDiff",
            display_name="unCLIP Embedding Text Diff",
            category=CATEGORY,
            description=f"Changes a picture's image embedding by words: away from base_text, towards text. {PAPER}, section 3.3.",
            search_aliases=[*ALIASES, "text difference", "edit by text", "language-guided manipulation"],
            inputs=[
                _embedding_input("embedding", "The embedding of the picture to change."),
                _clip_input(),
                io.String.Input(
                    "text",
                    multiline=True,
                    dynamic_prompts=True,
                    default="a photo of a dog in winter",
                    tooltip="What the picture should show.",
                ),
                io.String.Input(
                    "base_text",
                    multiline=True,
                    dynamic_prompts=True,
                    default="a photo",
                    tooltip="What the picture shows now. If empty, the embedding moves towards text itself.",
                ),
                *_theta_inputs(
                    "0, 0.125, 0.25, 0.375, 0.5",
                    "How far to move: 0 is the picture itself. The paper uses up to 0.25 to 0.5.",
                ),
            ],
            outputs=_outputs(
                "One embedding for each theta. For batches: first all thetas of the first picture, then those of the second, and so on."
            ),
            **RESENDS_RESULT,
        )

    @classmethod
    def execute(cls, embedding, clip, text, base_text, thetas, frames) -> io.NodeOutput:
        image = image_embeds(embedding, "embedding")
        steps = _steps(thetas, frames)
        read = _read(clip, [text, base_text], image)
        target, base = read.pooled.to(image.device)
        try:
            moved = sphere.text_diff(image[:, None], target, base if base_text.strip() else None, steps)
        except sphere.NothingLeft:
            raise ValueError(
                f"text: expected other words than base_text, got {text!r} for both. Say in text what should be different."
            ) from None
        return _given(moved.flatten(0, 1), result(*[_unread(read)] if any(read.unread) else []))


class EmbeddingScore(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PAL_EmbeddingScore",
            display_name="unCLIP Embedding Score",
            category=CATEGORY,
            description="Measures how well pictures match a text, by CLIP: the cosine between image embedding and text embedding.",
            search_aliases=[*ALIASES, "clip score", "cosine similarity", "rank"],
            inputs=[_embedding_input("embedding", "The embeddings of the pictures to score."), _clip_input(), io.String.Input(
                "text", multiline=True, dynamic_prompts=True, tooltip="The text to compare the pictures with.",
            )],
            outputs=[
                io.Float.Output(
                    "score",
                    is_output_list=True,
                    tooltip="From -1 to 1 for each picture; higher is a better match. Compare only scores of the same CLIP model.",
                )
            ],
            is_output_node=True,
        )  # fmt: skip

    @classmethod
    def execute(cls, embedding, clip, text) -> io.NodeOutput:
        image = image_embeds(embedding, "embedding")
        read = _read(clip, [text], image)
        scores = sphere.cosine(image, read.pooled.to(image.device)).tolist()
        shown = "  ".join(
            f"{i}: {score:.4f}" if len(scores) > 1 else f"{score:.4f}" for i, score in enumerate(scores, 1)
        )
        if any(read.unread):
            shown += f"  ({_unread(read)})"
        return io.NodeOutput(scores, ui=result(shown))


class SaveEmbedding(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PAL_SaveEmbedding",
            display_name="unCLIP Save Embedding",
            category=CATEGORY,
            description="Saves image embeddings to the output folder as one safetensors file of a few KB.",
            search_aliases=[*ALIASES, "export embedding"],
            inputs=[
                _embedding_input("embedding", "The embeddings to save, the whole batch."),
                io.String.Input(
                    "filename_prefix",
                    default="embeddings/palimpsest",
                    tooltip="Folder and file name inside the output folder. A counter is added to the name.",
                ),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, embedding, filename_prefix) -> io.NodeOutput:
        embeds = image_embeds(embedding, "embedding")
        path, named = next_file(filename_prefix, SUFFIX)
        save_embedding(embeds, path)
        return io.NodeOutput(ui={"embeddings": [named], **result(size_line(path))})


class LoadEmbedding(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PAL_LoadEmbedding",
            display_name="unCLIP Load Embedding",
            category=CATEGORY,
            description="Loads image embeddings that unCLIP Save Embedding wrote, from the output or the input folder.",
            search_aliases=[*ALIASES, "import embedding"],
            inputs=[
                io.Combo.Input(
                    "embedding_file",
                    options=saved_files(SUFFIX),
                    tooltip="A file in the output or input folder. Press R to refresh the list after saving a new one.",
                )
            ],
            outputs=_outputs("The saved embeddings, the whole batch."),
        )

    @classmethod
    def validate_inputs(cls, embedding_file) -> bool | str:
        return invalid_choice("embedding_file", embedding_file, SUFFIX) or True

    @classmethod
    def fingerprint_inputs(cls, embedding_file) -> str:
        return fingerprint(resolve("embedding_file", embedding_file, SUFFIX))

    @classmethod
    def execute(cls, embedding_file) -> io.NodeOutput:
        embeds = load_embedding(resolve("embedding_file", embedding_file, SUFFIX))
        return _given(embeds.to(comfy.model_management.intermediate_device()))


def _steps(text: str, frames: int):
    """[1, T], to go with embeddings [batch, 1, width]."""
    return thetas(text, frames)[None]


def _read(clip, texts: list[str], image) -> TextStates:
    return text_states(clip, texts, image.shape[1], "the embedding's CLIP vision model")


def _unread(read: TextStates) -> str:
    return f"{' and '.join(map(str, read.unread))} tokens beyond the 75 that CLIP reads"


NODES = [EmbeddingSlerp, LatentSlerp, EmbeddingMix, EmbeddingTextDiff, EmbeddingScore, SaveEmbedding, LoadEmbedding]
