"""The shipped workflows that open pictures in an unCLIP decoder and move their embeddings."""

from __future__ import annotations

from workflows.description import Group, NodeSpec, Note, Workflow
from workflows.files_and_colours import BLUE, CLIP_L, CYAN, GOLD, GREEN, PICTURE, POSITIVE, RED
from workflows.shared_columns import Links
from workflows.unclip import FIXED, draw_published, load_clip, load_karlo, upsample
from workflows.unclip_notes import (
    AGAIN_NOTE,
    DIFF_NOTE,
    DIFF_TUNING_NOTE,
    MIX_NOTE,
    MORPH_NOTE,
    MORPH_TUNING_NOTE,
    VARIATIONS_NOTE,
    VARIATIONS_TUNING_NOTE,
)

ONE_BY_ONE, ALL_TOGETHER = 1, 4096  # Rebatch Images: to a list, and to a batch


def variations() -> Workflow:
    opened, opened_links = _open("", "Your picture", 0)
    larger, larger_links = upsample("large", (1560, 0), (580, 330))
    return Workflow(
        "Variations of a picture",
        nodes=[
            *_load(),
            *opened,
            NodeSpec("four", "RepeatLatentBatch", (1180, 0), {"amount": 4}, size=(300, 60), title="How many"),
            NodeSpec("ancestral", "SamplerEulerAncestral", (1180, 130), {"eta": 1.0, "s_noise": 1.0}, size=(300, 90)),
            _sampler("sample", (1180, 290), 4.0),
            NodeSpec("decode", "VAEDecode", (1180, 810), size=(300, 46)),
            *larger,
            NodeSpec(
                "save",
                "SaveImage",
                (1560, 410),
                {"filename_prefix": "variation"},
                size=(580, 640),
                title="Variations",
            ),
            NodeSpec("euler", "KSamplerSelect", (380, 1160), {"sampler_name": "euler"}, size=(320, 58)),
            _sampler("again", (780, 1160), 1.0),
            NodeSpec("decode_again", "VAEDecode", (380, 1290), size=(320, 46)),
            NodeSpec(
                "compare",
                "PAL_CompareImages",
                (1180, 1160),
                size=(300, 720),
                title="Reconstruction against the picture",
            ),
        ],
        links=[
            *opened_links,
            ("invert", "noised_latent", "four", "samples"),
            *_sampler_links("sample", "told", "ancestral", ("four", "LATENT")),
            ("sample", "output", "decode", "samples"),
            ("decoder", "vae", "decode", "vae"),
            *larger_links,
            ("decode", "IMAGE", "large", "image"),
            ("large", "image", "save", "images"),
            *_sampler_links("again", "told", "euler", ("invert", "noised_latent")),
            ("again", "output", "decode_again", "samples"),
            ("decoder", "vae", "decode_again", "vae"),
            ("decode_again", "IMAGE", "compare", "image_a"),
            ("resize", "IMAGE", "compare", "image_b"),
        ],
        notes=[
            Note(VARIATIONS_NOTE, (-440, 0), (380, 830), "Read me"),
            Note(VARIATIONS_TUNING_NOTE, (-440, 870), (380, 250), "When it is not what you want"),
            Note(AGAIN_NOTE, (-440, 1160), (380, 330), "The same picture again"),
        ],
        groups=[
            *_groups(1130),
            Group("4  Vary", (1160, -70), (340, 1130), RED),
            Group("5  Enlarge", (1540, -70), (620, 1130), CYAN),
            Group("The same picture again: where the variations start", (360, 1080), (1140, 820), GREEN),
        ],
    )


def morph() -> Workflow:
    first, first_links = _open("", "The first picture", 0)
    second, second_links = _open("_2", "The second picture", 880)
    larger, larger_links = upsample("large", (1960, 0), (580, 330))
    mixed, mixed_links = draw_published("mixed", "told_mix", ("mix", "embedding"), (1180, 1370), 2)
    mixed_larger, mixed_larger_links = upsample("mixed_large", (2220, 1150), (320, 330))
    way = {"thetas": "0, 1"}
    return Workflow(
        "Morph between two pictures",
        nodes=[
            *_load(),
            *first,
            *second,
            NodeSpec("frames", "PrimitiveInt", (1180, 0), {"value": 9}, size=(320, 82), title="Frames"),
            NodeSpec("between", "PAL_EmbeddingSlerp", (1180, 150), way, size=(320, 150)),
            NodeSpec("noises", "PAL_LatentSlerp", (1180, 370), way, size=(320, 150)),
            NodeSpec("told_between", "PAL_UnCLIPConditioning", (1180, 590), {"text": ""}, size=(320, 150)),
            NodeSpec("euler", "KSamplerSelect", (1180, 810), {"sampler_name": "euler"}, size=(320, 58)),
            _sampler("sample", (1580, 0), 1.0),
            NodeSpec("decode", "VAEDecode", (1580, 520), size=(300, 46)),
            NodeSpec("single", "RebatchImages", (1580, 640), {"batch_size": ONE_BY_ONE}, (300, 60), "Frame by frame"),
            *larger,
            NodeSpec("film", "RebatchImages", (1960, 400), {"batch_size": ALL_TOGETHER}, (580, 60), "All frames"),
            NodeSpec(
                "save",
                "SaveAnimatedWEBP",
                (1960, 530),
                {"filename_prefix": "morph", "fps": 6.0},
                size=(280, 450),
                title="The morph",
            ),
            NodeSpec("frames_shown", "PAL_PreviewMorph", (2260, 530), size=(280, 560), title="Its frames"),
            NodeSpec("mix", "PAL_EmbeddingMix", (1180, 1150), {"weights": "1, 1", "norm": "keep"}, size=(320, 150)),
            *mixed,
            *mixed_larger,
            NodeSpec(
                "mixed_save",
                "SaveImage",
                (2220, 1550),
                {"filename_prefix": "mix"},
                size=(320, 250),
                title="Both at once",
            ),
        ],
        links=[
            *first_links,
            *second_links,
            ("see", "CLIP_VISION_OUTPUT", "between", "embedding_a"),
            ("see_2", "CLIP_VISION_OUTPUT", "between", "embedding_b"),
            ("frames", "INT", "between", "frames"),
            ("invert", "noised_latent", "noises", "latent_a"),
            ("invert_2", "noised_latent", "noises", "latent_b"),
            ("frames", "INT", "noises", "frames"),
            ("clip", "CLIP", "told_between", "clip"),
            ("decoder", "model", "told_between", "model"),
            ("between", "embedding", "told_between", "clip_vision_output"),
            *_sampler_links("sample", "told_between", "euler", ("noises", "latent")),
            ("sample", "output", "decode", "samples"),
            ("decoder", "vae", "decode", "vae"),
            ("decode", "IMAGE", "single", "images"),
            *larger_links,
            ("single", "IMAGE", "large", "image"),
            ("large", "image", "film", "images"),
            ("film", "IMAGE", "save", "images"),
            ("film", "IMAGE", "frames_shown", "images"),
            ("see", "CLIP_VISION_OUTPUT", "mix", "embeddings.embedding0"),
            ("see_2", "CLIP_VISION_OUTPUT", "mix", "embeddings.embedding1"),
            *mixed_links,
            *mixed_larger_links,
            ("mixed", "IMAGE", "mixed_large", "image"),
            ("mixed_large", "image", "mixed_save", "images"),
        ],
        notes=[
            Note(MORPH_NOTE, (-440, 0), (380, 860), "Read me"),
            Note(MORPH_TUNING_NOTE, (-440, 900), (380, 250), "When it is not what you want"),
            Note(MIX_NOTE, (-440, 1200), (380, 250), "Both at once"),
        ],
        groups=[
            *_groups(1890),
            Group("4  Go from one to the other", (1160, -70), (360, 1070), GOLD),
            Group("5  Sample", (1560, -70), (340, 1070), RED),
            Group("6  Enlarge: the morph", (1940, -70), (620, 1070), CYAN),
            Group("Both at once: one picture of the two", (1160, 1060), (1400, 760), GREEN),
        ],
    )


def text_diff() -> Workflow:
    opened, opened_links = _open("", "Your picture", 0)
    larger, larger_links = upsample("large", (1580, 650), (300, 400))
    words = {
        "text": "a photo of a girl in winter, snow",
        "base_text": "a photo of a girl",
        "thetas": "0, 0.125, 0.25, 0.375, 0.5",
    }
    return Workflow(
        "Move a picture by words",
        nodes=[
            *_load(),
            *opened,
            NodeSpec("diff", "PAL_EmbeddingTextDiff", (1180, 0), words, size=(320, 400), color=POSITIVE),
            NodeSpec("told_moved", "PAL_UnCLIPConditioning", (1180, 470), {"text": ""}, size=(320, 150)),
            NodeSpec("euler", "KSamplerSelect", (1180, 690), {"sampler_name": "euler"}, size=(320, 58)),
            _sampler("sample", (1580, 0), 1.0),
            NodeSpec("decode", "VAEDecode", (1580, 520), size=(300, 46)),
            *larger,
            NodeSpec(
                "save",
                "SaveImage",
                (1960, 0),
                {"filename_prefix": "text_diff"},
                size=(580, 640),
                title="From the picture to the words",
            ),
        ],
        links=[
            *opened_links,
            ("see", "CLIP_VISION_OUTPUT", "diff", "embedding"),
            ("clip", "CLIP", "diff", "clip"),
            ("clip", "CLIP", "told_moved", "clip"),
            ("decoder", "model", "told_moved", "model"),
            ("diff", "single", "told_moved", "clip_vision_output"),
            *_sampler_links("sample", "told_moved", "euler", ("invert", "noised_latent")),
            ("sample", "output", "decode", "samples"),
            ("decoder", "vae", "decode", "vae"),
            *larger_links,
            ("decode", "IMAGE", "large", "image"),
            ("large", "image", "save", "images"),
        ],
        notes=[
            Note(DIFF_NOTE, (-440, 0), (380, 830), "Read me"),
            Note(DIFF_TUNING_NOTE, (-440, 870), (380, 190), "When it is not what you want"),
        ],
        groups=[
            *_groups(1130),
            Group("4  Describe the change", (1160, -70), (360, 1130), GOLD),
            Group("5  Sample, then enlarge", (1560, -70), (340, 1130), RED),
            Group("6  The pictures", (1940, -70), (620, 1130), CYAN),
        ],
    )


def _load() -> list[NodeSpec]:
    """The first column: the files, and the schedule that inversion and sampling share."""
    return [
        *load_karlo(0),
        load_clip(420),
        NodeSpec("vision", "CLIPVisionLoader", (0, 630), {"clip_name": CLIP_L}, size=(300, 60)),
        NodeSpec(
            "schedule",
            "BasicScheduler",
            (0, 770),
            {"scheduler": "karras", "steps": 50, "denoise": 1.0},
            size=(300, 110),
            title="Schedule for both",
        ),
    ]


def _open(end: str, title: str, y: int) -> tuple[list[NodeSpec], Links]:
    """Second and third column from `y` on: a picture's embedding, and the noise that the decoder makes it of.

    `end` is put to the keys of the nodes.
    """
    resize = {"upscale_method": "lanczos", "width": 64, "height": 64, "crop": "center"}
    nodes = [
        NodeSpec(f"picture{end}", "LoadImage", (380, y), {"image": PICTURE}, (320, 310), title),
        NodeSpec(f"resize{end}", "ImageScale", (380, y + 380), resize, size=(320, 130)),
        NodeSpec(f"encode{end}", "VAEEncode", (380, y + 580), size=(320, 46)),
        NodeSpec(f"see{end}", "CLIPVisionEncode", (380, y + 700), {"crop": "center"}, size=(320, 80)),
        NodeSpec(f"told{end}", "PAL_UnCLIPConditioning", (780, y), {"text": ""}, size=(320, 150)),
        NodeSpec(
            f"invert{end}",
            "PAL_DDIMInvert",
            (780, y + 220),
            {"method": "fixed_point", "iterations": 8},
            size=(320, 490),
        ),
    ]
    links = [
        (f"picture{end}", "IMAGE", f"resize{end}", "image"),
        (f"resize{end}", "IMAGE", f"encode{end}", "pixels"),
        ("decoder", "vae", f"encode{end}", "vae"),
        ("vision", "CLIP_VISION", f"see{end}", "clip_vision"),
        (f"picture{end}", "IMAGE", f"see{end}", "image"),
        ("clip", "CLIP", f"told{end}", "clip"),
        ("decoder", "model", f"told{end}", "model"),
        (f"see{end}", "CLIP_VISION_OUTPUT", f"told{end}", "clip_vision_output"),
        *([] if end else [("decoder", "model", "schedule", "model")]),
        ("decoder", "model", f"invert{end}", "model"),
        (f"told{end}", "positive", f"invert{end}", "positive"),
        (f"encode{end}", "LATENT", f"invert{end}", "latent_image"),
        ("schedule", "SIGMAS", f"invert{end}", "sigmas"),
    ]
    return nodes, links


def _sampler(key: str, pos: tuple[int, int], cfg: float) -> NodeSpec:
    """From a latent that is noise already. The seed is of noise added on the way."""
    widgets = {"add_noise": False, "noise_seed": 1, **FIXED, "cfg": cfg}
    return NodeSpec(key, "SamplerCustom", pos, widgets, size=(320 if pos[0] == 780 else 300, 450))


def _sampler_links(key: str, told: str, sampler: str, latent: tuple[str, str]) -> Links:
    return [
        ("decoder", "model", key, "model"),
        (told, "positive", key, "positive"),
        (told, "negative", key, "negative"),
        (sampler, "SAMPLER", key, "sampler"),
        ("schedule", "SIGMAS", key, "sigmas"),
        (*latent, key, "latent_image"),
    ]


def _groups(height: int) -> list[Group]:
    return [
        Group("1  Load", (-20, -70), (340, height), BLUE),
        Group("2  Encode the picture", (360, -70), (360, height), CYAN),
        Group("3  Invert with the decoder", (760, -70), (360, height), GREEN),
    ]
