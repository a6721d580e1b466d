"""The shipped workflows that make a picture of a text by way of an image embedding, and what those with pictures share."""

from __future__ import annotations

from workflows.description import Group, NodeSpec, Note, Workflow
from workflows.files_and_colours import (
    BLUE,
    CLIP_L,
    CYAN,
    DECODER,
    GOLD,
    GREEN,
    LAST_UPSAMPLER,
    NEGATIVE,
    POSITIVE,
    PRIOR,
    RED,
    SECOND_UPSAMPLER,
    TEXT_PROJ,
    UNCLIP,
    UPSAMPLER,
)
from workflows.shared_columns import Links
from workflows.unclip_notes import (
    KARLO_NOTE,
    PRIOR_TUNING_NOTE,
    SAVED_EMBEDDING_NOTE,
    SCORE_NOTE,
    SECOND_UPSAMPLER_NOTE,
    UNCLIP_NOTE,
)

SCENE = "a photo of a red fox sitting on a mossy rock in a misty forest"
FIXED = {"control_after_generate": "fixed"}


def text_to_sd21_unclip() -> Workflow:
    embed, embed_links = _sample_prior()
    return Workflow(
        "Text to picture by a prior, SD2.1 unCLIP",
        nodes=[
            NodeSpec("model", "unCLIPCheckpointLoader", (0, 0), {"ckpt_name": UNCLIP}, size=(300, 130)),
            _load_prior(190),
            load_clip(380),
            *embed,
            NodeSpec("keep", "PAL_SaveEmbedding", (380, 780), {"filename_prefix": "embeddings/prior"}, size=(320, 90)),
            NodeSpec("positive", "CLIPTextEncode", (780, 0), size=(320, 90), title="Prompt", color=POSITIVE),
            NodeSpec(
                "negative",
                "CLIPTextEncode",
                (780, 150),
                {"text": ""},
                size=(320, 100),
                title="Negative prompt",
                color=NEGATIVE,
            ),
            NodeSpec(
                "told",
                "unCLIPConditioning",
                (780, 320),
                {"strength": 1.0, "noise_augmentation": 0.0},
                size=(320, 110),
            ),
            NodeSpec("latent", "EmptyLatentImage", (780, 500), {"width": 768, "height": 768}, size=(320, 110)),
            NodeSpec(
                "sample",
                "KSampler",
                (1180, 0),
                {"seed": 1, **FIXED, "steps": 30, "cfg": 10.0, "sampler_name": "euler", "scheduler": "normal"},
                size=(300, 480),
            ),
            NodeSpec("decode", "VAEDecode", (1180, 550), size=(300, 46)),
            NodeSpec("see", "CLIPVisionEncode", (1180, 670), {"crop": "center"}, size=(300, 80)),
            NodeSpec("score", "PAL_EmbeddingScore", (1180, 820), size=(300, 150), title="Does it fit the text?"),
            NodeSpec(
                "save",
                "SaveImage",
                (1560, 0),
                {"filename_prefix": "unclip"},
                size=(580, 640),
                title="The picture",
            ),
            NodeSpec(
                "load",
                "PAL_LoadEmbedding",
                (0, 1130),
                {"embedding_file": "embeddings/prior_00001_.embedding.safetensors [output]"},
                size=(700, 90),
                title="unCLIP Load Embedding (muted)",
                muted=True,
            ),
        ],
        links=[
            *embed_links,
            ("embed", "clip_vision_output", "keep", "embedding"),
            ("model", "CLIP", "positive", "clip"),
            ("text", "STRING", "positive", "text"),
            ("model", "CLIP", "negative", "clip"),
            ("positive", "CONDITIONING", "told", "conditioning"),
            ("embed", "clip_vision_output", "told", "clip_vision_output"),
            ("model", "MODEL", "sample", "model"),
            ("told", "CONDITIONING", "sample", "positive"),
            ("negative", "CONDITIONING", "sample", "negative"),
            ("latent", "LATENT", "sample", "latent_image"),
            ("sample", "LATENT", "decode", "samples"),
            ("model", "VAE", "decode", "vae"),
            ("decode", "IMAGE", "save", "images"),
            ("model", "CLIP_VISION", "see", "clip_vision"),
            ("decode", "IMAGE", "see", "image"),
            ("see", "CLIP_VISION_OUTPUT", "score", "embedding"),
            ("clip", "CLIP", "score", "clip"),
            ("text", "STRING", "score", "text"),
        ],
        notes=[
            Note(UNCLIP_NOTE, (-440, 0), (380, 660), "Read me"),
            Note(PRIOR_TUNING_NOTE, (-440, 710), (380, 310), "When it is not what you want"),
            Note(SCORE_NOTE, (1560, 730), (580, 240), "The two scores"),
            Note(SAVED_EMBEDDING_NOTE, (-440, 1080), (380, 150), "A saved embedding instead"),
        ],
        groups=[
            Group("1  Load", (-20, -70), (340, 1070), BLUE),
            Group("2  From text to an embedding", (360, -70), (360, 1070), GOLD),
            Group("3  Conditioning", (760, -70), (360, 1070), RED),
            Group("4  Sample, and look at it", (1160, -70), (340, 1070), GREEN),
            Group("5  The picture", (1540, -70), (620, 1070), CYAN),
            Group("Instead of 2: a saved embedding", (-20, 1040), (740, 200), GREEN),
        ],
    )


def text_to_karlo() -> Workflow:
    embed, embed_links = _sample_prior()
    larger, larger_links = upsample("large", (1180, 580), (300, 420))
    second = {"model_name": SECOND_UPSAMPLER}
    return Workflow(
        "Text to picture with Karlo",
        nodes=[
            _load_prior(0),
            load_clip(210),
            *load_karlo(420),
            *embed,
            NodeSpec("told", "PAL_UnCLIPConditioning", (780, 0), size=(320, 150)),
            NodeSpec("guider", "CFGGuider", (780, 220), {"cfg": 8.0}, size=(320, 100)),
            NodeSpec("published", "PAL_UnCLIPSampler", (780, 390), {"spacing": "published"}, size=(320, 60)),
            _schedule("schedule", (780, 520), "normal", 25),
            NodeSpec("noise", "RandomNoise", (780, 700), {"noise_seed": 1, **FIXED}, size=(320, 82)),
            _empty("latent", (780, 850)),
            NodeSpec("sample", "SamplerCustomAdvanced", (1180, 0), size=(300, 400)),
            NodeSpec("decode", "VAEDecode", (1180, 470), size=(300, 46)),
            *larger,
            NodeSpec("small", "PreviewImage", (1560, 720), size=(580, 320), title="64 x 64"),
            NodeSpec("save", "SaveImage", (1560, 0), {"filename_prefix": "karlo"}, size=(580, 640), title="256 x 256"),
            NodeSpec(
                "upsampler_2", "PAL_LoadUpsampler", (0, 1200), second, (300, 130), "unCLIP Load Upsampler 2", muted=True
            ),
            NodeSpec(
                "large_2",
                "PAL_Upsample",
                (380, 1200),
                {"seed": 1, **FIXED},
                (320, 230),
                "unCLIP Upsample 2",
                muted=True,
            ),
            NodeSpec(
                "save_2",
                "SaveImage",
                (780, 1200),
                {"filename_prefix": "karlo_large"},
                size=(320, 400),
                title="1024 x 1024",
                muted=True,
            ),
        ],
        links=[
            *embed_links,
            ("clip", "CLIP", "told", "clip"),
            ("decoder", "model", "told", "model"),
            ("text", "STRING", "told", "text"),
            ("embed", "clip_vision_output", "told", "clip_vision_output"),
            ("decoder", "model", "guider", "model"),
            ("told", "positive", "guider", "positive"),
            ("told", "negative", "guider", "negative"),
            ("decoder", "model", "schedule", "model"),
            ("noise", "NOISE", "sample", "noise"),
            ("guider", "GUIDER", "sample", "guider"),
            ("published", "sampler", "sample", "sampler"),
            ("schedule", "SIGMAS", "sample", "sigmas"),
            ("latent", "LATENT", "sample", "latent_image"),
            ("sample", "output", "decode", "samples"),
            ("decoder", "vae", "decode", "vae"),
            ("decode", "IMAGE", "small", "images"),
            *larger_links,
            ("decode", "IMAGE", "large", "image"),
            ("large", "image", "save", "images"),
            ("upsampler_2", "upsampler", "large_2", "upsampler"),
            ("large", "image", "large_2", "image"),
            ("large_2", "image", "save_2", "images"),
        ],
        notes=[
            Note(KARLO_NOTE, (-440, 0), (380, 720), "Read me"),
            Note(PRIOR_TUNING_NOTE, (-440, 770), (380, 310), "When it is not what you want"),
            Note(SECOND_UPSAMPLER_NOTE, (-440, 1200), (380, 230), "The second upsampler is muted"),
        ],
        groups=[
            Group("1  Load", (-20, -70), (340, 1130), BLUE),
            Group("2  From text to an embedding", (360, -70), (360, 1130), GOLD),
            Group("3  Conditioning for the decoder", (760, -70), (360, 1130), RED),
            Group("4  Sample, then enlarge", (1160, -70), (340, 1130), GREEN),
            Group("5  The picture", (1540, -70), (620, 1130), CYAN),
            Group("Another four times larger, with weights of your own", (-20, 1110), (1140, 510), GREEN),
        ],
    )


def load_clip(y: int) -> NodeSpec:
    return NodeSpec("clip", "CLIPLoader", (0, y), {"clip_name": CLIP_L, "type": "stable_diffusion"}, size=(300, 130))


def load_karlo(y: int) -> list[NodeSpec]:
    return [
        NodeSpec(
            "decoder",
            "PAL_LoadUnCLIPDecoder",
            (0, y),
            {"model_name": DECODER, "text_proj_name": TEXT_PROJ},
            size=(300, 130),
        ),
        NodeSpec(
            "upsampler",
            "PAL_LoadUpsampler",
            (0, y + 210),
            {"model_name": UPSAMPLER, "last_name": LAST_UPSAMPLER},
            size=(300, 130),
        ),
    ]


def upsample(key: str, pos: tuple[int, int], size: tuple[int, int]) -> tuple[list[NodeSpec], Links]:
    """By the upsampler of load_karlo. What image it is given is up to the workflow."""
    node = NodeSpec(key, "PAL_Upsample", pos, {"seed": 1, **FIXED}, size=size)
    return [node], [("upsampler", "upsampler", key, "upsampler")]


def draw_published(
    key: str, told: str, embedding: tuple[str, str], pos: tuple[int, int], count: int
) -> tuple[list[NodeSpec], Links]:
    """`count` pictures `key` of an embedding alone, from noise, as Karlo was published. pos: of `told`; the rest is beside it."""
    x, y = pos
    sample = {"add_noise": True, "noise_seed": 1, **FIXED, "cfg": 8.0}
    nodes = [
        NodeSpec(told, "PAL_UnCLIPConditioning", (x, y), {"text": ""}, size=(320, 150)),
        _empty(f"{key}_latent", (x, y + 220), count),
        NodeSpec("published", "PAL_UnCLIPSampler", (x + 360, y - 220), {"spacing": "published"}, size=(300, 60)),
        _schedule(f"{key}_schedule", (x + 360, y - 90), "normal", 25),
        NodeSpec(f"{key}_sample", "SamplerCustom", (x + 700, y - 220), sample, size=(300, 450)),
        NodeSpec(key, "VAEDecode", (x + 360, y + 90), size=(300, 46)),
    ]
    links = [
        ("clip", "CLIP", told, "clip"),
        ("decoder", "model", told, "model"),
        (*embedding, told, "clip_vision_output"),
        ("decoder", "model", f"{key}_schedule", "model"),
        ("decoder", "model", f"{key}_sample", "model"),
        (told, "positive", f"{key}_sample", "positive"),
        (told, "negative", f"{key}_sample", "negative"),
        ("published", "sampler", f"{key}_sample", "sampler"),
        (f"{key}_schedule", "SIGMAS", f"{key}_sample", "sigmas"),
        (f"{key}_latent", "LATENT", f"{key}_sample", "latent_image"),
        (f"{key}_sample", "output", key, "samples"),
        ("decoder", "vae", key, "vae"),
    ]
    return nodes, links


def _load_prior(y: int) -> NodeSpec:
    return NodeSpec("prior", "PAL_LoadPrior", (0, y), {"prior_name": PRIOR}, size=(300, 130))


def _sample_prior() -> tuple[list[NodeSpec], Links]:
    """The second column: one text for all that read it, and the prior's answer to it."""
    nodes = [
        NodeSpec("text", "PrimitiveStringMultiline", (380, 0), {"value": SCENE}, (320, 130), "What it shows", POSITIVE),
        NodeSpec("embed", "PAL_SamplePrior", (380, 200), {"negative_text": "", "seed": 1, **FIXED}, size=(320, 500)),
    ]
    links = [
        ("prior", "prior", "embed", "prior"),
        ("clip", "CLIP", "embed", "clip"),
        ("text", "STRING", "embed", "text"),
    ]
    return nodes, links


def _schedule(key: str, pos: tuple[int, int], scheduler: str, steps: int) -> NodeSpec:
    return NodeSpec(
        key, "BasicScheduler", pos, {"scheduler": scheduler, "steps": steps, "denoise": 1.0}, size=(300, 110)
    )


def _empty(key: str, pos: tuple[int, int], count: int = 1) -> NodeSpec:
    """Of the decoder's size. Its latents are pictures; ComfyUI's samplers give an empty latent the channels and size of the model."""
    return NodeSpec(
        key,
        "EmptyLatentImage",
        pos,
        {"width": 64, "height": 64, "batch_size": count},
        size=(320, 110),
        title="Empty picture",
    )
