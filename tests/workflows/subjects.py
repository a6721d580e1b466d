"""The shipped workflows that put given subjects into a new scene."""

from __future__ import annotations

from workflows.description import Group, NodeSpec, Note, Workflow
from workflows.files_and_colours import (
    BLUE,
    CHECKPOINT,
    CYAN,
    GOLD,
    GREEN,
    NEGATIVE,
    PICTURE,
    POSITIVE,
    RED,
    SUBJECTS,
)
from workflows.fusion_notes import BORDERS_NOTE, DELAY_NOTE, DELAYED_NOTE, SUBJECT_NOTE, TWO_SUBJECTS_NOTE
from workflows.shared_columns import Links, draw, fused_row

ONE = "a woman <|image|> reading a book in a garden, sunny afternoon"
TWO = "a woman <|image|> and a man <|image|> having breakfast in a garden, sunny afternoon"


def subject_in_a_scene() -> Workflow:
    return _in_a_scene("A subject in a scene", "subject", ONE, ("Your subject",), SUBJECT_NOTE)


def two_subjects() -> Workflow:
    pictures = ("The first subject", "The second subject")
    return _in_a_scene("Two subjects in one picture", "two_subjects", TWO, pictures, TWO_SUBJECTS_NOTE)


def _in_a_scene(name: str, file: str, text: str, pictures: tuple[str, ...], note: str) -> Workflow:
    subjects, subject_links = _subjects(text, pictures, 160)
    drawn, drawn_links = draw(1180)
    row, row_links, row_groups = fused_row(20, file, "scene", "subject")
    return Workflow(
        name,
        nodes=[
            NodeSpec(
                "model", "CheckpointLoaderSimple", (0, 0), {"ckpt_name": CHECKPOINT}, (300, 100), "Model for the scene"
            ),
            *subjects,
            NodeSpec("guider", "PAL_SubjectFusionGuider", (780, 0), size=(320, 260)),
            *drawn,
            *row,
        ],
        links=[
            *subject_links,
            ("model", "CLIP", "negative", "clip"),
            ("model", "MODEL", "guider", "model_scene"),
            ("encoder", "model", "guider", "model_subject"),
            ("subjects", "positive", "guider", "positive"),
            ("subjects", "positive_subject", "guider", "positive_subject"),
            ("negative", "CONDITIONING", "guider", "negative"),
            *drawn_links,
            *row_links,
        ],
        notes=[
            Note(note, (-440, 0), (380, 520), "Read me"),
            Note(BORDERS_NOTE, (-440, 570), (380, 340), "When it is not what you want"),
        ],
        groups=[
            Group("1  Load", (-20, -70), (340, 1130), BLUE),
            Group("2  Prompt with pictures", (360, -70), (360, 1130), GOLD),
            Group("3  Fuse", (760, -70), (360, 1130), RED),
            Group("4  Sample", (1160, -70), (340, 1130), GREEN),
            *row_groups,
        ],
    )


def delayed_subject() -> Workflow:
    subjects, subject_links = _subjects(ONE, ("Your subject",), 0)
    drawn, drawn_links = draw(1180, ("encoder", "model", "vae"), "SamplerCustomAdvanced")
    return Workflow(
        "Delayed subject, one model",
        nodes=[
            *subjects,
            NodeSpec(
                "first",
                "ConditioningSetTimestepRange",
                (780, 0),
                {"start": 0.0, "end": 0.22},
                (320, 90),
                "First the scene",
                POSITIVE,
            ),
            NodeSpec(
                "then",
                "ConditioningSetTimestepRange",
                (780, 190),
                {"start": 0.22, "end": 1.0},
                (320, 90),
                "Then the subject",
                POSITIVE,
            ),
            NodeSpec("combine", "ConditioningCombine", (780, 380), size=(320, 50)),
            NodeSpec("guider", "CFGGuider", (780, 530), {"cfg": 5.0}, size=(320, 100)),
            *drawn,
            NodeSpec(
                "save",
                "SaveImage",
                (1560, 0),
                {"filename_prefix": "delayed_subject"},
                size=(580, 640),
                title="The picture",
            ),
        ],
        links=[
            *subject_links,
            ("encoder", "clip", "negative", "clip"),
            ("subjects", "positive", "first", "conditioning"),
            ("subjects", "positive_subject", "then", "conditioning"),
            ("first", "CONDITIONING", "combine", "conditioning_1"),
            ("then", "CONDITIONING", "combine", "conditioning_2"),
            ("encoder", "model", "guider", "model"),
            ("combine", "CONDITIONING", "guider", "positive"),
            ("negative", "CONDITIONING", "guider", "negative"),
            *drawn_links,
            ("decode", "IMAGE", "save", "images"),
        ],
        notes=[
            Note(DELAYED_NOTE, (-440, 0), (380, 520), "Read me"),
            Note(DELAY_NOTE, (780, 730), (320, 210), "When the subject comes in"),
        ],
        groups=[
            Group("1  Load", (-20, -70), (340, 1130), BLUE),
            Group("2  Prompt with a picture", (360, -70), (360, 1130), GOLD),
            Group("3  First the scene, then the subject", (760, -70), (360, 1130), RED),
            Group("4  Sample", (1160, -70), (340, 1130), GREEN),
            Group("5  The picture", (1540, -70), (620, 740), CYAN),
        ],
    )


def _subjects(text: str, pictures: tuple[str, ...], y: int) -> tuple[list[NodeSpec], Links]:
    """From the subject encoder, at `y`, and its pictures to the conditioning."""
    loads = [f"picture_{i}" for i in range(1, len(pictures) + 1)]
    nodes = [
        NodeSpec("encoder", "PAL_LoadSubjectEncoder", (0, y), {"ckpt_name": SUBJECTS}, size=(300, 130)),
        *(
            NodeSpec(key, "LoadImage", (0, y + 190 + 370 * i), {"image": PICTURE}, (300, 310), title)
            for i, (key, title) in enumerate(zip(loads, pictures, strict=True))
        ),
        NodeSpec("subjects", "PAL_SubjectConditioning", (380, 0), {"text": text}, size=(320, 400)),
        NodeSpec("negative", "CLIPTextEncode", (380, 500), {"text": ""}, (320, 90), "Negative prompt", NEGATIVE),
    ]
    links = [
        ("encoder", "clip", "subjects", "clip"),
        ("encoder", "subject_encoder", "subjects", "subject_encoder"),
        *((key, "IMAGE", "subjects", "images" if i == 1 else f"image_{i}") for i, key in enumerate(loads, 1)),
    ]
    return nodes, links
