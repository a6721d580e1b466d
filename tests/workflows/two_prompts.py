"""The shipped workflow that edits a photo with two prompts, without inverting it."""

from __future__ import annotations

from workflows.description import Group, NodeSpec, Note, Workflow
from workflows.files_and_colours import BLUE, CYAN, FLOW_CHECKPOINT, GOLD, GREEN, NEGATIVE, PICTURE, POSITIVE

NOTE = f"""## Edit a photo with two prompts

One prompt says what your picture shows, the other what it should become. Only what differs between them changes. The picture is \
not inverted first. Each step costs four model calls, two for each prompt.

### Files
- `{FLOW_CHECKPOINT}` in **models/checkpoints**. Any flow model works. SD1.5 and SDXL run too, but the method was not made for them.

### Change
- **Your picture**
- **What it shows** and **What it becomes**: the same sentence with some words replaced works best

### Settings that matter
- *strength*: higher values change more. Start with 0.65; raise it if the edit does not show.
- *cfg* 13.5 and *cfg_source* 3.5 are published for SD3. For Flux set both to 1 and put FluxGuidance after each prompt.
- **mask**: connect one to keep the rest of the picture unchanged."""


def edit_with_two_prompts() -> Workflow:
    return Workflow(
        "Edit a photo with two prompts",
        nodes=[
            NodeSpec("model", "CheckpointLoaderSimple", (0, 0), {"ckpt_name": FLOW_CHECKPOINT}, size=(320, 100)),
            NodeSpec("picture", "LoadImage", (0, 190), {"image": PICTURE}, size=(320, 310), title="Your picture"),
            NodeSpec(
                "resize",
                "ImageScale",
                (0, 590),
                {"upscale_method": "lanczos", "width": 1024, "height": 1024, "crop": "center"},
                size=(320, 130),
            ),
            NodeSpec("encode", "VAEEncode", (0, 810), size=(320, 46)),
            NodeSpec(
                "source",
                "CLIPTextEncode",
                (400, 0),
                {"text": "a photo of a girl in a pink dress standing on a green hill"},
                size=(340, 130),
                title="What it shows",
            ),
            NodeSpec(
                "positive",
                "CLIPTextEncode",
                (400, 220),
                {"text": "a photo of a girl in a blue dress standing on a snowy hill"},
                size=(340, 130),
                title="What it becomes",
                color=POSITIVE,
            ),
            NodeSpec(
                "negative",
                "CLIPTextEncode",
                (400, 440),
                {"text": ""},
                size=(340, 100),
                title="Negative",
                color=NEGATIVE,
            ),
            NodeSpec(
                "guider",
                "PAL_FlowEditGuider",
                (820, 0),
                {"cfg": 13.5, "cfg_source": 3.5, "method": "flow_edit", "method.strength": 0.65, "method.averages": 1},
                size=(320, 330),
            ),
            NodeSpec(
                "schedule",
                "BasicScheduler",
                (820, 420),
                {"scheduler": "simple", "steps": 40, "denoise": 1.0},
                size=(320, 110),
            ),
            NodeSpec("euler", "KSamplerSelect", (820, 620), {"sampler_name": "euler"}, size=(320, 58)),
            NodeSpec(
                "noise", "RandomNoise", (820, 770), {"noise_seed": 1, "control_after_generate": "fixed"}, size=(320, 82)
            ),
            NodeSpec("sample", "SamplerCustomAdvanced", (1220, 0), size=(320, 350)),
            NodeSpec("decode", "VAEDecode", (1220, 440), size=(320, 46)),
            NodeSpec(
                "save", "SaveImage", (1620, 0), {"filename_prefix": "two_prompts"}, size=(420, 440), title="After"
            ),
            NodeSpec("compare", "PAL_CompareImages", (1620, 530), size=(420, 840), title="Before and after"),
        ],
        links=[
            ("picture", "IMAGE", "resize", "image"),
            ("resize", "IMAGE", "encode", "pixels"),
            ("model", "VAE", "encode", "vae"),
            ("model", "CLIP", "source", "clip"),
            ("model", "CLIP", "positive", "clip"),
            ("model", "CLIP", "negative", "clip"),
            ("model", "MODEL", "guider", "model"),
            ("positive", "CONDITIONING", "guider", "positive"),
            ("negative", "CONDITIONING", "guider", "negative"),
            ("source", "CONDITIONING", "guider", "source"),
            ("model", "MODEL", "schedule", "model"),
            ("noise", "NOISE", "sample", "noise"),
            ("guider", "guider", "sample", "guider"),
            ("euler", "SAMPLER", "sample", "sampler"),
            ("schedule", "SIGMAS", "sample", "sigmas"),
            ("encode", "LATENT", "sample", "latent_image"),
            ("sample", "output", "decode", "samples"),
            ("model", "VAE", "decode", "vae"),
            ("decode", "IMAGE", "save", "images"),
            ("decode", "IMAGE", "compare", "image_a"),
            ("resize", "IMAGE", "compare", "image_b"),
        ],
        notes=[Note(NOTE, (-420, 0), (380, 640), "Read me")],
        groups=[
            Group("1  Load", (-20, -70), (360, 980), BLUE),
            Group("2  Two prompts", (380, -70), (380, 980), GREEN),
            Group("3  Edit", (800, -70), (760, 980), GOLD),
            Group("4  The picture", (1600, -70), (460, 1460), CYAN),
        ],
    )
