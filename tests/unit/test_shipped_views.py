"""What a shipped workflow shows when it is opened, read from its file."""

import json
from pathlib import Path

import pytest
from workflows.files_and_colours import FOLDERS
from workflows.saving import BARS, TITLE

pytestmark = pytest.mark.unit

SHIPPED = sorted((Path(__file__).resolve().parents[2] / "example_workflows").glob("*.json"))
READABLE = 8 / 14  # below this scale the classic canvas draws no text: letters of 14 pixels would have fewer than 8
WINDOW = (1920, 1080)


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)
def test_a_workflow_opens_at_its_note_and_its_loader_and_can_be_read(file: Path):
    saved = json.loads(file.read_text(encoding="utf-8"))
    scale, offset = saved["extra"]["ds"]["scale"], saved["extra"]["ds"]["offset"]
    assert READABLE < scale <= 1
    assert saved["extra"]["palimpsest_template"] is True
    notes = [node for node in saved["nodes"] if node.get("title") == "Read me"]
    loaders = [node for node in saved["nodes"] if node["type"] in FOLDERS]
    for node in (notes[0], loaders[0]):
        begin = [(place + shift) * scale for place, shift in zip(node["pos"], offset, strict=True)]
        end = [start + length * scale for start, length in zip(begin, node["size"], strict=True)]
        begin[1] -= TITLE * scale
        assert all(bar <= at for bar, at in zip(BARS, begin, strict=True))
        assert all(at <= border for at, border in zip(end, WINDOW, strict=True))
