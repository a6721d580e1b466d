"""The list of what the pack ships: workflows and subgraph blueprints, each by the function that describes it."""

from __future__ import annotations

from workflows.description import Blueprint, Workflow
from workflows.embeddings import morph, text_diff, variations
from workflows.families import FLUX1, QWEN, SD35, Z
from workflows.fusion import checkpoint_and_lora, two_checkpoints, two_loras
from workflows.generated_picture import edit_a_generated_picture
from workflows.photo import invert_and_reconstruct, plug_and_play_on_a_photo, retrace_exactly
from workflows.subgraphs import mask_by_word_box, swap_a_word_box
from workflows.subjects import delayed_subject, subject_in_a_scene, two_subjects
from workflows.two_prompts import edit_with_two_prompts
from workflows.unclip import text_to_karlo, text_to_sd21_unclip
from workflows.word_edits import mask_by_word, refine_a_prompt, reweight_a_word, swap_a_word

WORKFLOWS: list[Workflow] = [
    invert_and_reconstruct(),
    retrace_exactly(),
    plug_and_play_on_a_photo(),
    edit_a_generated_picture(),
    swap_a_word(),
    refine_a_prompt(),
    reweight_a_word(),
    mask_by_word(),
    edit_with_two_prompts(),
    two_checkpoints(),
    checkpoint_and_lora(),
    two_loras(),
    subject_in_a_scene(),
    two_subjects(),
    delayed_subject(),
    text_to_sd21_unclip(),
    text_to_karlo(),
    variations(),
    morph(),
    text_diff(),
    plug_and_play_on_a_photo(SD35),
    swap_a_word(FLUX1),
    swap_a_word(QWEN),
    swap_a_word(Z),
    mask_by_word(FLUX1),
]
BLUEPRINTS: list[Blueprint] = [swap_a_word_box(), mask_by_word_box(), swap_a_word_box(FLUX1), mask_by_word_box(FLUX1)]
