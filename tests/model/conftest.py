"""What most files of this ring start from; one that needs another model has a fixture of the same name."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher
    from comfy.sd import CLIP


@pytest.fixture(scope="module")
def model(request: pytest.FixtureRequest) -> ModelPatcher:
    """SD1.5's kind of UNet with two levels; a file where block numbers matter says `UNET = tiny_models.sd15`."""
    from support.fixtures import tiny_models  # pytest loads this file before ComfyUI can be imported

    return getattr(request.module, "UNET", tiny_models.two_level)()


@pytest.fixture(scope="module")
def clip() -> CLIP:
    from support.fixtures import tiny_clip

    return tiny_clip.sd1()
