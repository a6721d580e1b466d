"""The shipped workflows that edit a photo by the words of its prompt."""

from __future__ import annotations

from dataclasses import replace

from workflows.description import Group, NodeSpec, Note, Workflow
from workflows.families import SD15, Family
from workflows.files_and_colours import BLUE, CYAN, GOLD, GREEN, NEGATIVE, POSITIVE, RED
from workflows.photo_notes import (
    BY_WORDS_NOTE,
    MASK_TUNING_NOTE,
    REFINE_NOTE,
    REWEIGHT_NOTE,
    blend_note,
    mask_note,
    swap_keep_note,
    swap_note,
)
from workflows.shared_columns import guided, invert_picture, load_picture, sample_back

SOURCE = "a drawing of a girl in a pink dress on a green hill under a blue sky"


def swap_a_word(family: Family = SD15) -> Workflow:
    load, load_links = load_picture(family)
    invert, invert_links = invert_picture(380, family=family)
    guidance, guidance_links, positive = guided("words", "target", 1260, 820, family)
    words = {
        "source_text": SOURCE,
        "target_text": SOURCE.replace("pink", "yellow"),
        "mode": "auto",
        "blend_words": "dress",
    }
    sampler = {
        "add_noise": "disable",
        "noise_seed": 0,
        "control_after_generate": "fixed",
        "steps": family.steps,
        "cfg": family.cfg,
        "sampler_name": "euler",
        "scheduler": family.scheduler,
    }
    return Workflow(
        f"Swap a word in a photo{family.suffix}",
        nodes=[
            *load,
            *(replace(node, title="Empty prompt") if node.key == "empty" else node for node in invert),
            NodeSpec("words", "PAL_EncodePromptEdit", (780, 0), words, size=(400, 600)),
            NodeSpec(
                "edit",
                "PAL_PromptToPrompt",
                (780, 740),
                {"cross_end": family.cross_end, "self_end": family.self_end},
                size=(400, 210),
            ),
            NodeSpec("sample", "KSamplerAdvanced", (1260, 0), sampler, size=(320, 360)),
            *guidance,
            NodeSpec("decode", "VAEDecode", (1260, 680), size=(320, 46)),
            NodeSpec("compare", "PAL_CompareImages", (-420, 1240), size=(980, 900), title="Before and after"),
            NodeSpec("save", "SaveImage", (600, 1240), {"filename_prefix": "words"}, size=(980, 900), title="After"),
        ],
        links=[
            *load_links,
            *invert_links,
            (*family.clip, "words", "clip"),
            (*family.model, "edit", "model"),
            ("invert", "trajectory", "edit", "trajectory"),
            ("words", "edit", "edit", "edit"),
            ("edit", "model", "sample", "model"),
            *guidance_links,
            (*positive, "sample", "positive"),
            ("empty", "CONDITIONING", "sample", "negative"),
            ("invert", "noised_latent", "sample", "latent_image"),
            ("sample", "LATENT", "decode", "samples"),
            (*family.vae, "decode", "vae"),
            ("decode", "IMAGE", "save", "images"),
            ("resize", "IMAGE", "compare", "image_a"),
            ("decode", "IMAGE", "compare", "image_b"),
        ],
        notes=[
            Note(swap_note(family), (-440, family.top), (380, 420 - family.top), "Read me"),
            Note(swap_keep_note(family), (-440, 460), (380, 280), "What to keep"),
            Note(blend_note(family), (-440, 780), (380, 300), "When the edit is not what you want"),
        ],
        groups=[
            *family.groups,
            Group("1  Load", (-20, -70), (340, 1200), BLUE),
            Group("2  Invert the picture", (360, -70), (360, 1200), GREEN),
            Group("3  Describe the edit", (760, -70), (440, 1200), GOLD),
            Group("4  Sample it again", (1240, -70), (360, 1200), RED),
            Group("5  What changed", (-440, 1170), (2040, 990), CYAN),
        ],
    )


def refine_a_prompt() -> Workflow:
    words = {"target_text": SOURCE.replace("a green hill", "a green hill full of red flowers"), "mode": "refine"}
    return _by_words("Add words to a photo", words, REFINE_NOTE)


def reweight_a_word() -> Workflow:
    words = {"target_text": SOURCE, "mode": "replace", "reweight": "pink: 3"}
    return _by_words("Reweight a word in a photo", words, REWEIGHT_NOTE)


def _by_words(name: str, words: dict[str, object], note: str) -> Workflow:
    load, load_links = load_picture()
    back, back_links = sample_back(1220, 560, 320)
    return Workflow(
        name,
        nodes=[
            *load,
            NodeSpec(
                "shows",
                "PrimitiveStringMultiline",
                (380, 0),
                {"value": SOURCE},
                size=(360, 130),
                title="What it shows",
            ),
            NodeSpec("words", "PAL_EncodePromptEdit", (380, 220), words, size=(360, 500)),
            NodeSpec("source", "CLIPTextEncode", (380, 910), size=(360, 90), title="What it shows, encoded"),
            NodeSpec(
                "empty",
                "CLIPTextEncode",
                (380, 1090),
                {"text": ""},
                size=(360, 100),
                title="Empty prompt",
                color=NEGATIVE,
            ),
            NodeSpec(
                "schedule",
                "BasicScheduler",
                (380, 1440),
                {"scheduler": "ddim_uniform", "steps": 50, "denoise": 1.0},
                size=(360, 110),
            ),
            NodeSpec("invert", "PAL_DDIMInvert", (820, 0), {"method": "fixed_point", "iterations": 5}, size=(320, 490)),
            NodeSpec("null_text", "PAL_NullTextOptimize", (820, 590), {"cfg": 7.5, "method": "fast"}, size=(320, 480)),
            NodeSpec("edit", "PAL_PromptToPrompt", (1220, 0), {"cross_end": 0.8, "self_end": 0.4}, size=(320, 210)),
            NodeSpec("guider", "CFGGuider", (1220, 370), {"cfg": 7.5}, size=(320, 100)),
            *back,
            NodeSpec("before", "PreviewImage", (-420, 1700), size=(520, 440), title="Before"),
            NodeSpec("save", "SaveImage", (140, 1700), {"filename_prefix": "words"}, size=(520, 440), title="After"),
            NodeSpec("keep", "PAL_SaveConditioning", (820, 1700), size=(340, 90)),
            NodeSpec(
                "load",
                "PAL_LoadConditioning",
                (1200, 1700),
                {"conditioning_file": "conditionings/palimpsest_00001_.conditioning.safetensors [output]"},
                size=(340, 90),
                title="Load Conditioning (muted)",
                muted=True,
            ),
            NodeSpec("report", "PreviewImage", (820, 1880), size=(720, 440), title="Null-text report"),
        ],
        links=[
            *load_links,
            ("shows", "STRING", "words", "source_text"),
            ("shows", "STRING", "source", "text"),
            ("model", "CLIP", "words", "clip"),
            ("model", "CLIP", "source", "clip"),
            ("model", "CLIP", "empty", "clip"),
            ("model", "MODEL", "schedule", "model"),
            ("model", "MODEL", "invert", "model"),
            ("source", "CONDITIONING", "invert", "positive"),
            ("encode", "LATENT", "invert", "latent_image"),
            ("schedule", "SIGMAS", "invert", "sigmas"),
            ("model", "MODEL", "null_text", "model"),
            ("source", "CONDITIONING", "null_text", "positive"),
            ("empty", "CONDITIONING", "null_text", "negative"),
            ("invert", "trajectory", "null_text", "trajectory"),
            ("model", "MODEL", "edit", "model"),
            ("invert", "trajectory", "edit", "trajectory"),
            ("words", "edit", "edit", "edit"),
            ("edit", "model", "guider", "model"),
            ("words", "target", "guider", "positive"),
            ("null_text", "negative", "guider", "negative"),
            *back_links,
            ("resize", "IMAGE", "before", "images"),
            ("decode", "IMAGE", "save", "images"),
            ("null_text", "negative", "keep", "conditioning"),
            ("null_text", "report", "report", "images"),
        ],
        notes=[
            Note(note, (-440, 0), (380, 330), "Read me"),
            Note(BY_WORDS_NOTE, (-440, 370), (380, 420), "What to keep"),
            Note(blend_note(SD15), (-440, 830), (380, 300), "When the edit is not what you want"),
        ],
        groups=[
            Group("1  Load", (-20, -70), (340, 1670), BLUE),
            Group("2  Describe the edit", (360, -70), (400, 1670), GOLD),
            Group("3  Invert the picture", (800, -70), (360, 1670), GREEN),
            Group("4  Edit", (1200, -70), (360, 1670), RED),
            Group("5  Compare", (-440, 1630), (1120, 530), CYAN),
            Group("The negative, saved, and how exactly the picture is reconstructed", (800, 1630), (760, 710), GREEN),
        ],
    )


def mask_by_word(family: Family = SD15) -> Workflow:
    load, load_links = load_picture(family)
    guidance, guidance_links, positive = guided("positive", "CONDITIONING", 1200, 1080, family)
    return Workflow(
        f"Mask by a word, then inpaint{family.suffix}",
        nodes=[
            *load,
            NodeSpec("source", "CLIPTextEncode", (380, 0), {"text": SOURCE}, size=(320, 130), title="What it shows"),
            NodeSpec(
                "schedule",
                "BasicScheduler",
                (380, 220),
                {"scheduler": family.scheduler, "steps": 20, "denoise": 1.0},
                size=(320, 110),
            ),
            NodeSpec(
                "invert",
                "PAL_DDIMInvert",
                (380, 420),
                {"method": "fixed_point", "iterations": family.iterations},
                size=(320, 490),
            ),
            NodeSpec("mask", "PAL_AttentionMask", (780, 0), {"text": SOURCE, "words": "dress"}, size=(340, 620)),
            NodeSpec("grow", "GrowMask", (780, 900), {"expand": 8, "tapered_corners": True}, size=(340, 90)),
            NodeSpec("inpaint", "SetLatentNoiseMask", (780, 1080), size=(340, 50)),
            NodeSpec(
                "positive",
                "CLIPTextEncode",
                (1200, 0),
                {"text": SOURCE.replace("a pink dress", "a red dress with white dots")},
                size=(320, 130),
                title="What it becomes",
                color=POSITIVE,
            ),
            NodeSpec(
                "negative",
                "CLIPTextEncode",
                (1200, 220),
                {"text": ""},
                size=(320, 90),
                title="Negative prompt",
                color=NEGATIVE,
            ),
            NodeSpec(
                "sample",
                "KSampler",
                (1200, 400),
                {
                    "seed": 1,
                    "control_after_generate": "fixed",
                    "steps": 30,
                    "cfg": family.cfg,
                    "sampler_name": "euler",
                    "scheduler": family.inpaint_scheduler,
                    "denoise": 0.9,
                },
                size=(320, 480),
            ),
            *guidance,
            NodeSpec("decode", "VAEDecode", (1200, 970), size=(320, 46)),
            NodeSpec("heat", "PreviewImage", (-420, 1280), size=(460, 440), title="Where the words are"),
            NodeSpec("show_mask", "MaskPreview", (80, 1280), size=(460, 440), title="The mask"),
            NodeSpec("before", "PreviewImage", (580, 1280), size=(460, 440), title="Before"),
            NodeSpec("save", "SaveImage", (1080, 1280), {"filename_prefix": "inpaint"}, size=(460, 440), title="After"),
        ],
        links=[
            *load_links,
            (*family.clip, "source", "clip"),
            (*family.model, "schedule", "model"),
            (*family.model, "invert", "model"),
            ("source", "CONDITIONING", "invert", "positive"),
            ("encode", "LATENT", "invert", "latent_image"),
            ("schedule", "SIGMAS", "invert", "sigmas"),
            (*family.model, "mask", "model"),
            (*family.clip, "mask", "clip"),
            ("invert", "trajectory", "mask", "trajectory"),
            ("resize", "IMAGE", "mask", "image"),
            ("mask", "mask", "grow", "mask"),
            ("encode", "LATENT", "inpaint", "samples"),
            ("grow", "MASK", "inpaint", "mask"),
            (*family.clip, "positive", "clip"),
            (*family.clip, "negative", "clip"),
            (*family.model, "sample", "model"),
            *guidance_links,
            (*positive, "sample", "positive"),
            ("negative", "CONDITIONING", "sample", "negative"),
            ("inpaint", "LATENT", "sample", "latent_image"),
            ("sample", "LATENT", "decode", "samples"),
            (*family.vae, "decode", "vae"),
            ("mask", "heatmap", "heat", "images"),
            ("grow", "MASK", "show_mask", "mask"),
            ("resize", "IMAGE", "before", "images"),
            ("decode", "IMAGE", "save", "images"),
        ],
        notes=[
            Note(mask_note(family), (-440, family.top), (380, 430 - family.top), "Read me"),
            Note(MASK_TUNING_NOTE, (-440, 470), (380, 330), "When the mask is not what you want"),
        ],
        groups=[
            *family.groups,
            Group("1  Load", (-20, -70), (340, 1240), BLUE),
            Group("2  Invert", (360, -70), (360, 1240), GREEN),
            Group("3  Find the words", (760, -70), (380, 1240), GOLD),
            Group("4  Inpaint", (1180, -70), (360, 1240), RED),
            Group("5  Compare", (-440, 1210), (2000, 530), CYAN),
        ],
    )
