import pytest
import torch
from palimpsest.nodes.saliency_fusion.saliency import Sharpness
from support.cases import cases
from support.fixtures.fusion import expert, fuse, general, run, start_for
from support.fixtures.sampling import schedule
from support.fixtures.tiny_models import sd15
from support.fixtures.twin_fusion import Role, magic_fusion
from support.fixtures.twin_unet import sd15_twin

pytestmark = [pytest.mark.model, pytest.mark.newest]

CFG = 10.0
STEPS = 10


@pytest.fixture(scope="module")
def models():
    return sd15(0), sd15(1)


@pytest.fixture(scope="module")
def twins(models):
    return [sd15_twin(model) for model in models]


def role(twin, side, batch):
    return Role(
        twin,
        torch.cat([rows[0][0].repeat(batch, 1, 1) for rows in (side.negative, side.positive)]),
        side.sharpness.value,
    )


WINDOWS = {
    "always": ((0.0, 1.0), lambda t: True),
    "mode 1, 850": ((1 - 850 / 999, 1.0), lambda t: t <= 850),
    "mode 2, 600": ((0.0, 1 - 600 / 999), lambda t: t > 600),
}


@pytest.mark.parametrize(
    "batch, general_uncond, mode, k",
    cases(
        [
            (1, False, "always", (1, 1)),
            (2, True, "always", (1, 1)),
            (1, False, "mode 1, 850", (1, 1)),
            (2, True, "mode 2, 600", (2, 1)),
        ],
        (1, False, "mode 1, 850", (1, 1)),
        (2, True, "mode 2, 600", (2, 1)),
    ),
)
def test_equals_the_published_loop_over_diffusers_scheduler(models, twins, batch, general_uncond, mode, k):
    span, fused = WINDOWS[mode]
    sharpness = [Sharpness(value, relative=False) for value in k]
    one = general(models[0], CFG, sharpness=sharpness[0])
    other = expert(models[1], CFG, sharpness=sharpness[1], span=span)
    sigmas = schedule(models[0], STEPS)
    start = start_for(models[0], sigmas, batch)
    ours = run(fuse(one, other, general_uncond=general_uncond), start, sigmas)

    scale = (1 + sigmas**2) ** 0.5
    theirs, masks = magic_fusion(
        role(twins[0], one, batch), role(twins[1], other, batch), start / scale[0], CFG, STEPS, general_uncond, fused
    )
    decisions = [decision for decision in ours.decisions if decision is not None]
    assert len(decisions) == len(masks) > 0
    for decision, mask in zip(decisions, masks, strict=True):
        assert torch.equal(decision.weights[1], mask[:, 0].float())
        assert 0.02 < float(mask.float().mean()) < 0.98
    worst = max(
        float((own - twin * s).norm() / (twin * s).norm())
        for own, twin, s in zip(ours.path, theirs, scale, strict=True)
    )
    print(f"{mode}, batch {batch}, general_uncond {general_uncond}: {worst:.1e}")
    assert worst <= 1e-5
