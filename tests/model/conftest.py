"""What most files of this ring start from; one that needs another model has a fixture of the same name."""

import pytest
from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP
from support.fixtures import tiny_clip, tiny_models


@pytest.fixture(scope="module")
def model() -> ModelPatcher:
    """SD1.5's topology, all four levels, with random weights."""
    return tiny_models.sd15()


@pytest.fixture(scope="module")
def clip() -> CLIP:
    return tiny_clip.sd1()
