"""The shipped edits by words: few wires, and no text that would have a picture inverted again."""

import pytest
from workflows.description import Workflow
from workflows.word_edits import refine_a_prompt, reweight_a_word, swap_a_word

pytestmark = pytest.mark.unit


def behind(workflow: Workflow, key: str) -> set[str]:
    """The nodes that the inputs of one come from."""
    found: set[str] = set()
    ahead = {key}
    while ahead:
        ahead = {source for source, _, target, _ in workflow.links if target in ahead} - found
        found |= ahead
    return found


def test_swapping_a_word_takes_few_wires_and_shows_before_after_and_why():
    workflow = swap_a_word()
    assert len(workflow.nodes) <= 14 and len(workflow.links) <= 22
    links = {(target, slot): source for source, _, target, slot in workflow.links}
    assert (links["compare", "image_a"], links["compare", "image_b"]) == ("resize", "decode")
    assert links["save", "images"] == "decode"
    nodes = {node.key: node.type for node in workflow.nodes}
    # It draws what happens to each word; Compare Images draws where the picture changed.
    assert (nodes["words"], nodes["compare"]) == ("PAL_EncodePromptEdit", "PAL_CompareImages")


@pytest.mark.parametrize("workflow", [swap_a_word(), refine_a_prompt(), reweight_a_word()], ids=lambda each: each.name)
def test_other_words_invert_nothing_again(workflow: Workflow):
    assert "words" in behind(workflow, "edit")
    assert "words" not in behind(workflow, "invert")
