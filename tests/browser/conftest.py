import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import Browser
from skimage import data
from support.host.frontend import HOW_TO_GET_ONE, find_browser, launch


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    if find_browser() is None:
        if os.environ.get("CI"):
            pytest.fail(HOW_TO_GET_ONE)
        pytest.skip(HOW_TO_GET_ONE)
    with launch() as launched:
        yield launched


@pytest.fixture(scope="session")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A photograph of 64x64 pixels, quick to edit with the random checkpoint."""
    file = tmp_path_factory.mktemp("photo") / "photo.png"
    Image.fromarray(data.astronaut()).resize((64, 64)).save(file)
    return file


@pytest.fixture(scope="session")
def screenshots() -> Path:
    """Where the browser ring leaves its pictures."""
    folder = Path(__file__).resolve().parents[2] / ".comfyui" / "screenshots"
    folder.mkdir(parents=True, exist_ok=True)
    return folder
