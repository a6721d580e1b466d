"""The shipped workflows that open a photo in a model: one draws it again, one keeps its layout and changes the rest."""

from __future__ import annotations

from workflows.description import Group, NodeSpec, Note, Workflow
from workflows.families import SD15, Family
from workflows.files_and_colours import BLUE, CYAN, GOLD, GREEN, NEGATIVE, POSITIVE, RED
from workflows.photo_notes import (
    CAPTURE_NOTE,
    EXACT_NOTE,
    FIGURES_NOTE,
    RECONSTRUCT_NOTE,
    plug_and_play_note,
    tuning_note,
)
from workflows.shared_columns import invert_picture, load_picture, sample_back


def invert_and_reconstruct() -> Workflow:
    load, load_links = load_picture()
    invert, invert_links = invert_picture(380)
    back, back_links = sample_back(780, 130, 300)
    return Workflow(
        "Invert and reconstruct",
        nodes=[
            *load,
            *invert,
            NodeSpec("guider", "BasicGuider", (780, 0), size=(300, 46)),
            *back,
            NodeSpec("keep", "PAL_SaveTrajectory", (-420, 1050), size=(360, 90)),
            NodeSpec("strip", "PAL_PreviewTrajectory", (0, 1050), {"frames": 8}, size=(1080, 340)),
            NodeSpec(
                "save",
                "SaveImage",
                (1160, 0),
                {"filename_prefix": "reconstruction"},
                size=(400, 820),
                title="Reconstruction",
            ),
            NodeSpec(
                "compare", "PAL_CompareImages", (1620, 0), size=(400, 820), title="Reconstruction against the picture"
            ),
            NodeSpec("decode_vae", "VAEDecode", (1160, 940), size=(400, 46), title="The VAE alone"),
            NodeSpec(
                "compare_vae",
                "PAL_CompareImages",
                (1620, 940),
                size=(400, 820),
                title="The VAE alone against the picture",
            ),
        ],
        links=[
            *load_links,
            *invert_links,
            ("model", "MODEL", "guider", "model"),
            ("empty", "CONDITIONING", "guider", "conditioning"),
            *back_links,
            ("decode", "IMAGE", "save", "images"),
            ("decode", "IMAGE", "compare", "image_a"),
            ("resize", "IMAGE", "compare", "image_b"),
            ("invert", "trajectory", "keep", "trajectory"),
            ("invert", "trajectory", "strip", "trajectory"),
            ("model", "VAE", "strip", "vae"),
            ("encode", "LATENT", "decode_vae", "samples"),
            ("model", "VAE", "decode_vae", "vae"),
            ("decode_vae", "IMAGE", "compare_vae", "image_a"),
            ("resize", "IMAGE", "compare_vae", "image_b"),
        ],
        notes=[
            Note(RECONSTRUCT_NOTE, (-420, 0), (360, 560), "Read me"),
            Note(FIGURES_NOTE, (1160, 1080), (400, 510), "The figures"),
        ],
        groups=[
            Group("1  Load", (-20, -70), (340, 980), BLUE),
            Group("2  Invert", (360, -70), (360, 980), GREEN),
            Group("3  Reconstruct", (760, -70), (340, 980), GOLD),
            Group("The path: saved, and shown from noise to picture", (-440, 980), (1540, 430), GREEN),
            Group("4  Compare", (1140, -70), (900, 1850), CYAN),
        ],
    )


def retrace_exactly() -> Workflow:
    load, load_links = load_picture()
    invert, invert_links = invert_picture(380, "ddim")
    back, back_links = sample_back(780, 260, 300)
    return Workflow(
        "Retrace a photo exactly",
        nodes=[
            *load,
            *invert,
            NodeSpec("exact", "PAL_ExactRetracing", (780, 0), size=(300, 46)),
            NodeSpec("guider", "BasicGuider", (780, 130), size=(300, 46)),
            *back,
            NodeSpec(
                "save", "SaveImage", (1160, 0), {"filename_prefix": "retraced"}, size=(400, 440), title="Retraced"
            ),
            NodeSpec(
                "compare", "PAL_CompareImages", (1160, 530), size=(400, 820), title="Retraced against the VAE alone"
            ),
            NodeSpec("decode_vae", "VAEDecode", (780, 970), size=(300, 46), title="The VAE alone"),
        ],
        links=[
            *load_links,
            *invert_links,
            ("model", "MODEL", "exact", "model"),
            ("invert", "trajectory", "exact", "trajectory"),
            ("exact", "model", "guider", "model"),
            ("empty", "CONDITIONING", "guider", "conditioning"),
            *back_links,
            ("decode", "IMAGE", "save", "images"),
            ("decode", "IMAGE", "compare", "image_a"),
            ("encode", "LATENT", "decode_vae", "samples"),
            ("model", "VAE", "decode_vae", "vae"),
            ("decode_vae", "IMAGE", "compare", "image_b"),
        ],
        notes=[Note(EXACT_NOTE, (-420, 0), (360, 470), "Read me")],
        groups=[
            Group("1  Load", (-20, -70), (340, 980), BLUE),
            Group("2  Invert", (360, -70), (360, 980), GREEN),
            Group("3  Retrace", (760, -70), (340, 1110), GOLD),
            Group("4  Compare", (1140, -70), (440, 1440), CYAN),
        ],
    )


def plug_and_play_on_a_photo(family: Family = SD15) -> Workflow:
    """Capture Features only for UNets: of a transformer it would keep gigabytes."""
    load, load_links = load_picture(family)
    invert, invert_links = invert_picture(380, family=family)
    back, back_links = sample_back(1560, 190, 300, family)
    windows = {"feature_end": family.feature_end, "attention_end": family.attention_end}
    capture = NodeSpec(
        "capture", "PAL_CaptureFeatures", (1180, 0), windows, size=(300, 470), title="Capture Features (optional)"
    )
    capture_links = [
        (*family.model, "capture", "model"),
        ("invert", "trajectory", "capture", "trajectory"),
        ("capture", "features", "plug", "features"),
    ]
    captures = family is SD15
    return Workflow(
        f"Plug-and-Play on a photo{family.suffix}",
        nodes=[
            *load,
            *invert,
            NodeSpec(
                "positive",
                "CLIPTextEncode",
                (780, 0),
                {"text": "an oil painting of a girl in a pink dress, standing on a green hill under a blue sky"},
                size=(320, 130),
                title="What it becomes",
                color=POSITIVE,
            ),
            NodeSpec(
                "negative",
                "CLIPTextEncode",
                (780, 220),
                {"text": "a child's drawing, flat colours"},
                size=(320, 100),
                title="What it looks like now",
                color=NEGATIVE,
            ),
            NodeSpec(
                "fade", "PAL_NegativeSchedule", (780, 410), {"empty_weight": 1.0, "schedule": "linear"}, size=(320, 150)
            ),
            *([capture] if captures else []),
            NodeSpec("plug", "PAL_PlugAndPlay", (1180, 570 if captures else 0), windows, size=(300, 190)),
            NodeSpec("guider", "CFGGuider", (1560, 0), {"cfg": family.cfg}, size=(300, 100)),
            *back,
            NodeSpec("before", "PreviewImage", (780, 1050), size=(520, 440), title="Before"),
            NodeSpec(
                "save", "SaveImage", (1340, 1050), {"filename_prefix": "plug_and_play"}, size=(520, 440), title="After"
            ),
        ],
        links=[
            *load_links,
            *invert_links,
            (*family.clip, "positive", "clip"),
            (*family.clip, "negative", "clip"),
            ("negative", "CONDITIONING", "fade", "negative"),
            ("empty", "CONDITIONING", "fade", "empty"),
            ("schedule", "SIGMAS", "fade", "sigmas"),
            (*family.model, "plug", "model"),
            ("invert", "trajectory", "plug", "trajectory"),
            *(capture_links if captures else []),
            ("plug", "model", "guider", "model"),
            ("positive", "CONDITIONING", "guider", "positive"),
            ("fade", "negative", "guider", "negative"),
            *back_links,
            ("resize", "IMAGE", "before", "images"),
            ("decode", "IMAGE", "save", "images"),
        ],
        notes=[
            Note(plug_and_play_note(family), (-440, 0), (380, 780 if family.files else 640), "Read me"),
            *([Note(CAPTURE_NOTE, (-440, 1050), (380, 320), "Capture Features is optional")] if captures else []),
            Note(tuning_note(family), (0, 1050), (700, 320), "When the edit is not what you want"),
        ],
        groups=[
            Group("1  Load", (-20, -70), (340, 980), BLUE),
            Group("2  Invert", (360, -70), (360, 980), GREEN),
            Group("3  Write the prompts", (760, -70), (360, 980), GOLD),
            Group("4  Keep the layout", (1160, -70), (340, 980), RED),
            Group("5  Edit", (1540, -70), (340, 980), BLUE),
            Group("6  Compare", (760, 980), (1120, 530), CYAN),
        ],
    )
