"""What several shipped workflows begin with."""

from __future__ import annotations

from browser.author import NodeSpec
from browser.shipped_style import CHECKPOINT, PICTURE

Links = list[tuple[str, str, str, str]]


def load_picture() -> tuple[list[NodeSpec], Links]:
    """From a checkpoint and any photograph to the latent of its middle, 512 x 512."""
    nodes = [
        NodeSpec("model", "CheckpointLoaderSimple", (0, 0), {"ckpt_name": CHECKPOINT}, size=(300, 100)),
        NodeSpec("picture", "LoadImage", (0, 190), {"image": PICTURE}, size=(300, 310), title="Your picture"),
        NodeSpec(
            "resize",
            "ImageScale",
            (0, 590),
            {"upscale_method": "lanczos", "width": 512, "height": 512, "crop": "center"},
            size=(300, 130),
        ),
        NodeSpec("encode", "VAEEncode", (0, 810), size=(300, 46)),
    ]
    links = [
        ("picture", "IMAGE", "resize", "image"),
        ("resize", "IMAGE", "encode", "pixels"),
        ("model", "VAE", "encode", "vae"),
    ]
    return nodes, links


def invert_picture(x: int) -> tuple[list[NodeSpec], Links]:
    """A column at `x`: the latent of load_picture carried up 50 steps with an empty prompt."""
    nodes = [
        NodeSpec("empty", "CLIPTextEncode", (x, 0), {"text": ""}, size=(320, 100), title="Source prompt (empty)"),
        NodeSpec(
            "schedule",
            "BasicScheduler",
            (x, 190),
            {"scheduler": "ddim_uniform", "steps": 50, "denoise": 1.0},
            size=(320, 110),
        ),
        NodeSpec("invert", "PAL_DDIMInvert", (x, 400), {"method": "fixed_point", "iterations": 5}, size=(320, 490)),
    ]
    links = [
        ("model", "CLIP", "empty", "clip"),
        ("model", "MODEL", "schedule", "model"),
        ("model", "MODEL", "invert", "model"),
        ("empty", "CONDITIONING", "invert", "positive"),
        ("encode", "LATENT", "invert", "latent_image"),
        ("schedule", "SIGMAS", "invert", "sigmas"),
    ]
    return nodes, links


def sample_back(x: int, y: int, width: int) -> tuple[list[NodeSpec], Links]:
    """A column from `y` on: from the noise of invert_picture, with whatever guider, down to the picture."""
    nodes = [
        NodeSpec("euler", "KSamplerSelect", (x, y), {"sampler_name": "euler"}, size=(width, 58)),
        NodeSpec("sample", "SamplerCustomAdvanced", (x, y + 150), size=(width, 350)),
        NodeSpec("decode", "VAEDecode", (x, y + 590), size=(width, 46)),
    ]
    links = [
        ("invert", "noise", "sample", "noise"),
        ("guider", "GUIDER", "sample", "guider"),
        ("euler", "SAMPLER", "sample", "sampler"),
        ("schedule", "SIGMAS", "sample", "sigmas"),
        ("encode", "LATENT", "sample", "latent_image"),
        ("sample", "output", "decode", "samples"),
        ("model", "VAE", "decode", "vae"),
    ]
    return nodes, links
