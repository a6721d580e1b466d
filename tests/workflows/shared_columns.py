"""What several shipped workflows begin with."""

from __future__ import annotations

from workflows.description import Group, NodeSpec
from workflows.families import SD15, Family, Links
from workflows.files_and_colours import CYAN, PICTURE


def load_picture(family: Family = SD15) -> tuple[list[NodeSpec], Links]:
    """From the files of a model and any photograph to the latent of its middle, a square."""
    y = 0 if family.groups else 190  # below the loader, if it is in this column
    nodes = [
        *family.nodes,
        NodeSpec("picture", "LoadImage", (0, y), {"image": PICTURE}, size=(300, 500 - y), title="Your picture"),
        NodeSpec(
            "resize",
            "ImageScale",
            (0, 590),
            {"upscale_method": "lanczos", "width": family.size, "height": family.size, "crop": "center"},
            size=(300, 130),
        ),
        NodeSpec("encode", "VAEEncode", (0, 810), size=(300, 46)),
    ]
    links = [
        *family.links,
        ("picture", "IMAGE", "resize", "image"),
        ("resize", "IMAGE", "encode", "pixels"),
        (*family.vae, "encode", "vae"),
    ]
    return nodes, links


def invert_picture(x: int, method: str = "fixed_point", family: Family = SD15) -> tuple[list[NodeSpec], Links]:
    """A column at `x`: the latent of load_picture carried up with an empty prompt."""
    nodes = [
        NodeSpec("empty", "CLIPTextEncode", (x, 0), {"text": ""}, size=(320, 100), title="Source prompt (empty)"),
        NodeSpec(
            "schedule",
            "BasicScheduler",
            (x, 190),
            {"scheduler": family.scheduler, "steps": family.steps, "denoise": 1.0},
            size=(320, 110),
        ),
        NodeSpec(
            "invert", "PAL_DDIMInvert", (x, 400), {"method": method, "iterations": family.iterations}, size=(320, 490)
        ),
    ]
    links = [
        (*family.clip, "empty", "clip"),
        (*family.model, "schedule", "model"),
        (*family.model, "invert", "model"),
        ("empty", "CONDITIONING", "invert", "positive"),
        ("encode", "LATENT", "invert", "latent_image"),
        ("schedule", "SIGMAS", "invert", "sigmas"),
    ]
    return nodes, links


def sample_back(x: int, y: int, width: int, family: Family = SD15) -> tuple[list[NodeSpec], Links]:
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
        (*family.vae, "decode", "vae"),
    ]
    return nodes, links


def guided(key: str, output: str, x: int, y: int, family: Family) -> tuple[list[NodeSpec], Links, tuple[str, str]]:
    """FluxGuidance after a prompt for models that take it, and where the prompt then comes from."""
    if family.guidance is None:
        return [], [], (key, output)
    node = NodeSpec("guidance", "FluxGuidance", (x, y), {"guidance": family.guidance}, size=(320, 60))
    return [node], [(key, output, "guidance", "conditioning")], ("guidance", "CONDITIONING")


def draw(
    x: int, loaded: tuple[str, str, str] = ("model", "MODEL", "VAE"), sampler: str = "PAL_SampleTrajectory"
) -> tuple[list[NodeSpec], Links]:
    """A column at `x`: from noise, with the guider `guider`, 50 steps to the picture `decode`.

    `loaded`: the loader's key, and its outputs for schedule and decoder.
    """
    loader, model, vae = loaded
    nodes = [
        NodeSpec("latent", "EmptyLatentImage", (x, 0), {"width": 512, "height": 512}, size=(300, 110)),
        NodeSpec(
            "schedule",
            "BasicScheduler",
            (x, 170),
            {"scheduler": "ddim_uniform", "steps": 50, "denoise": 1.0},
            size=(300, 110),
        ),
        NodeSpec("euler", "KSamplerSelect", (x, 340), {"sampler_name": "euler"}, size=(300, 58)),
        NodeSpec(
            "noise", "RandomNoise", (x, 460), {"noise_seed": 1, "control_after_generate": "fixed"}, size=(300, 82)
        ),
        NodeSpec("sample", sampler, (x, 610), size=(300, 310)),
        NodeSpec("decode", "VAEDecode", (x, 985), size=(300, 46)),
    ]
    links = [
        (loader, model, "schedule", "model"),
        ("noise", "NOISE", "sample", "noise"),
        ("guider", 0, "sample", "guider"),
        ("euler", "SAMPLER", "sample", "sampler"),
        ("schedule", "SIGMAS", "sample", "sigmas"),
        ("latent", "LATENT", "sample", "latent_image"),
        ("sample", 0, "decode", "samples"),
        (loader, vae, "decode", "vae"),
    ]
    return nodes, links


def fused_row(step: int, file: str, other: str, whose: str) -> tuple[list[NodeSpec], Links, list[Group]]:
    """Below the columns: what `guider` decided at one step of the path of `sample`, and the picture it came to."""
    nodes = [
        NodeSpec("map", "PAL_SaliencyMap", (-420, 1160), {"step": step}, size=(320, 440)),
        NodeSpec("show_mask", "MaskPreview", (-60, 1160), size=(420, 440), title=f"Places of the {whose}"),
        NodeSpec("heat", "PreviewImage", (400, 1160), size=(420, 440), title=f"Saliency: {other}, {whose}"),
        NodeSpec("save", "SaveImage", (900, 1160), {"filename_prefix": file}, size=(580, 440), title="The picture"),
    ]
    links = [
        ("guider", "guider", "map", "guider"),
        ("sample", "trajectory", "map", "trajectory"),
        ("map", "mask", "show_mask", "mask"),
        ("map", "heatmap", "heat", "images"),
        ("decode", "IMAGE", "save", "images"),
    ]
    groups = [
        Group(f"Where the {whose} draws", (-440, 1090), (1280, 530), CYAN),
        Group("5  The picture", (880, 1090), (620, 530), CYAN),
    ]
    return nodes, links, groups
