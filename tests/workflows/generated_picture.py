"""The shipped workflow that edits a picture the model has just drawn."""

from __future__ import annotations

from workflows.description import Group, NodeSpec, Note, Workflow
from workflows.files_and_colours import BLUE, CHECKPOINT, CYAN, GREEN, NEGATIVE, POSITIVE, RED
from workflows.photo_notes import GENERATED_NOTE, SAVED_PATH_NOTE


def edit_a_generated_picture() -> Workflow:
    return Workflow(
        "Edit a generated picture",
        nodes=[
            NodeSpec("model", "CheckpointLoaderSimple", (0, 0), {"ckpt_name": CHECKPOINT}, size=(300, 100)),
            NodeSpec("latent", "EmptyLatentImage", (0, 190), {"width": 512, "height": 512}, size=(300, 110)),
            NodeSpec(
                "schedule",
                "BasicScheduler",
                (0, 390),
                {"scheduler": "ddim_uniform", "steps": 50, "denoise": 1.0},
                size=(300, 110),
            ),
            NodeSpec("euler", "KSamplerSelect", (0, 590), {"sampler_name": "euler"}, size=(300, 58)),
            NodeSpec(
                "noise", "RandomNoise", (0, 730), {"noise_seed": 1, "control_after_generate": "fixed"}, size=(300, 82)
            ),
            NodeSpec(
                "positive",
                "CLIPTextEncode",
                (380, 0),
                {"text": "a photo of a horse standing in a meadow"},
                size=(320, 130),
                title="First prompt",
                color=POSITIVE,
            ),
            NodeSpec(
                "negative",
                "CLIPTextEncode",
                (380, 220),
                {"text": ""},
                size=(320, 90),
                title="Negative prompt",
                color=NEGATIVE,
            ),
            NodeSpec("guider", "CFGGuider", (380, 400), {"cfg": 7.5}, size=(320, 100)),
            NodeSpec("record", "PAL_SampleTrajectory", (380, 590), size=(320, 360)),
            NodeSpec("decode", "VAEDecode", (380, 1040), size=(320, 46)),
            NodeSpec(
                "edit",
                "CLIPTextEncode",
                (780, 0),
                {"text": "a bronze statue of a horse standing in a museum"},
                size=(320, 130),
                title="New prompt",
                color=POSITIVE,
            ),
            NodeSpec(
                "plug", "PAL_PlugAndPlay", (780, 220), {"feature_end": 0.8, "attention_end": 0.5}, size=(320, 190)
            ),
            NodeSpec("edit_guider", "CFGGuider", (780, 500), {"cfg": 7.5}, size=(320, 100)),
            NodeSpec("start", "PAL_TrajectoryStart", (1160, 0), size=(300, 66)),
            NodeSpec("sample", "SamplerCustomAdvanced", (1160, 190), size=(300, 350)),
            NodeSpec("edit_decode", "VAEDecode", (1160, 630), size=(300, 46)),
            NodeSpec(
                "load",
                "PAL_LoadTrajectory",
                (0, 1230),
                {"trajectory_file": "trajectories/palimpsest_00001_.trajectory.safetensors [output]"},
                size=(700, 90),
                title="Load Trajectory (muted)",
                muted=True,
            ),
            NodeSpec("before", "PreviewImage", (780, 820), size=(320, 500), title="Before"),
            NodeSpec(
                "save",
                "SaveImage",
                (1140, 820),
                {"filename_prefix": "edited"},
                size=(320, 500),
                title="After",
            ),
        ],
        links=[
            ("model", "MODEL", "schedule", "model"),
            ("model", "CLIP", "positive", "clip"),
            ("model", "CLIP", "negative", "clip"),
            ("model", "CLIP", "edit", "clip"),
            ("model", "MODEL", "guider", "model"),
            ("positive", "CONDITIONING", "guider", "positive"),
            ("negative", "CONDITIONING", "guider", "negative"),
            ("noise", "NOISE", "record", "noise"),
            ("guider", "GUIDER", "record", "guider"),
            ("euler", "SAMPLER", "record", "sampler"),
            ("schedule", "SIGMAS", "record", "sigmas"),
            ("latent", "LATENT", "record", "latent_image"),
            ("record", "latent", "decode", "samples"),
            ("model", "VAE", "decode", "vae"),
            ("decode", "IMAGE", "before", "images"),
            ("model", "MODEL", "plug", "model"),
            ("record", "trajectory", "plug", "trajectory"),
            ("plug", "model", "edit_guider", "model"),
            ("edit", "CONDITIONING", "edit_guider", "positive"),
            ("negative", "CONDITIONING", "edit_guider", "negative"),
            ("model", "MODEL", "start", "model"),
            ("record", "trajectory", "start", "trajectory"),
            ("start", "noise", "sample", "noise"),
            ("edit_guider", "GUIDER", "sample", "guider"),
            ("euler", "SAMPLER", "sample", "sampler"),
            ("start", "sigmas", "sample", "sigmas"),
            ("start", "noised_latent", "sample", "latent_image"),
            ("sample", "output", "edit_decode", "samples"),
            ("model", "VAE", "edit_decode", "vae"),
            ("edit_decode", "IMAGE", "save", "images"),
        ],
        notes=[
            Note(GENERATED_NOTE, (-440, 0), (380, 560), "Read me"),
            Note(SAVED_PATH_NOTE, (-440, 1190), (380, 150), "A saved path instead"),
        ],
        groups=[
            Group("1  Load", (-20, -70), (340, 1190), BLUE),
            Group("2  Generate, and record the path", (360, -70), (360, 1190), GREEN),
            Group("3  Keep the layout, change the words", (760, -70), (720, 790), RED),
            Group("4  Compare", (760, 750), (720, 590), CYAN),
            Group("Instead of 2: a saved path", (-20, 1160), (740, 180), GREEN),
        ],
    )
