"""Fusion of two models of every transformer family."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from palimpsest.nodes.saliency_fusion.blending import Mask
from palimpsest.nodes.saliency_fusion.expert import Expert, Prompted
from palimpsest.nodes.saliency_fusion.saliency import Sharpness
from support.fixtures.fusion import fuse, plain, run
from support.fixtures.inversions import schedule
from support.fixtures.tiny_transformers import KINDS, families

pytestmark = pytest.mark.model


@families("flux", "qwen_image", "wan")
@torch.inference_mode()
def test_every_pixel_is_one_model_s_own_prediction(name):
    """And with a mask that is white everywhere the picture is the expert's, bit for bit, after several steps."""
    kind = KINDS[name]
    one, second = kind.model(0), kind.model(1)
    sides = [
        made(model, kind.conditioning(seed), kind.conditioning(seed + 1, 33), 4.0, sharpness=Sharpness(1.0), **where)
        for made, model, seed, where in ((Prompted, one, 2, {}), (Expert, second, 4, {"socket": "model_expert"}))
    ]
    sigmas = schedule(one, 3, "simple")
    x = kind.latent(7, batch=2, height=8, width=8)
    step = sigmas[[0, -1]]  # one step to sigma 0: the result is the prediction
    made = run(fuse(*sides), x, step)
    chosen = made.decisions[0].weights[1].unsqueeze(1).bool()
    assert 0 < float(chosen.float().mean()) < 1
    alone = [run(plain(side), x, step).result for side in sides]
    assert torch.equal(made.result, torch.where(chosen, alone[1], alone[0]))
    white = run(fuse(sides[0], replace(sides[1], mask=Mask(torch.ones(1, 8, 8), "decide"))), x, sigmas)
    assert torch.equal(white.result, run(plain(sides[1]), x, sigmas).result)
