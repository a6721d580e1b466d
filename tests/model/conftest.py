"""What most files of this ring start from; one that needs another model has a fixture of the same name."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher
    from comfy.sd import CLIP


@pytest.fixture(scope="module")
def model() -> ModelPatcher:
    """SD1.5's topology, all four levels, with random weights."""
    from support.fixtures import tiny_models  # pytest loads this file before ComfyUI can be imported

    return tiny_models.sd15()


@pytest.fixture(scope="module")
def clip() -> CLIP:
    from support.fixtures import tiny_clip

    return tiny_clip.sd1()
