"""Transformers whose attention core calls without its options: nobody can read it, and the nodes say so."""

from __future__ import annotations

import comfy.supported_models
import pytest
import torch
from comfy.model_patcher import ModelPatcher
from palimpsest.nodes.attention.families import TEXT_FIRST, Family, family_of
from palimpsest.nodes.attention.joint_attention import on_attention
from palimpsest.nodes.attention.structure import structure_of
from palimpsest.nodes.prompt_to_prompt.attention_mask import found_words
from palimpsest.nodes.prompt_to_prompt.word_sites import word_sites_of
from support.fixtures.evaluated import Evaluated
from support.fixtures.tiny_transformers import CPU, TEXT, Kind

pytestmark = [pytest.mark.model, pytest.mark.newest]

ERNIE = {
    "image_model": "ernie", "hidden_size": 64, "num_attention_heads": 4, "num_layers": 2, "ffn_hidden_size": 96, "in_channels": 128,
    "out_channels": 128, "patch_size": 1, "text_in_dim": TEXT, "rope_axes_dim": (4, 6, 6),
}  # fmt: skip
PIXART = {
    "image_model": "pixart_alpha", "input_size": 64, "patch_size": 2, "in_channels": 4, "hidden_size": 64, "depth": 2, "num_heads": 4,
    "caption_channels": TEXT, "micro_condition": False,
}  # fmt: skip
KINDS = {
    "ErnieImage": ("ErnieImage", ERNIE, 128, 1, 16),
    "PixArt": ("PixArtAlpha", PIXART, 4, 2, 64),
}


@pytest.mark.parametrize("name", KINDS)
@torch.inference_mode()
def test_a_trial_call_counts_no_attention_and_every_node_refuses_by_name(name):
    config, unet, channels, patch, side = KINDS[name]
    kind = Kind(getattr(comfy.supported_models, config), unet, 2, channels=channels)
    evaluated = Evaluated(kind, kind.conditioning(2))
    x = kind.latent(1, height=side, width=side)
    assert bool(torch.isfinite(evaluated.predict(x)[0]).all())
    options = evaluated.options()
    on_attention(options, Family(name, TEXT_FIRST, patch=patch), lambda call: None)
    with pytest.raises(ValueError, match=rf"^model: expected a transformer whose attention can be read, got {name}"):
        evaluated.predict(x, options)
    require_refused(evaluated.model, name)


def test_hidream_o1_half_of_whose_attention_cannot_be_read_is_refused_by_name():
    """Of its published size, without numbers in it."""
    config = comfy.supported_models.HiDreamO1({"image_model": "hidream_o1"})
    network = config.get_model({}, device=torch.device("meta"))
    require_refused(ModelPatcher(network, load_device=CPU, offload_device=CPU), "HiDreamO1")


def require_refused(model: ModelPatcher, name: str) -> None:
    assert family_of(model) is None
    says = rf"^model: expected an image model with a UNet .* or a transformer .*, got {name}"
    for ask in (
        lambda: structure_of(model),
        lambda: word_sites_of(model, (4, 16, 16)),
        lambda: found_words(model, None, None, [[0]], None, range(1), "all"),
    ):
        with pytest.raises(ValueError, match=says):
            ask()
