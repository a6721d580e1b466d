import comfy.sampler_helpers
import comfy.samplers
import pytest
import torch
from palimpsest.nodes.plug_and_play.negative_schedule import weights
from palimpsest.nodes.plug_and_play.nodes import NegativeSchedule, PlugAndPlay
from support.fixtures.sampling import random_trajectory, sample, schedule
from support.fixtures.tiny_models import conditioning, sdxl
from support.fixtures.unet_probe import same

pytestmark = pytest.mark.model

CFG = 7.5
STEPS = 4


def run(model, negative, sampler="euler", steps=STEPS):
    start = random_trajectory(model, [], steps).start
    return sample(model, start, conditioning(model, 2), negative, CFG, schedule(model, steps), sampler)[-1]


def scheduled(model, alpha, kind, steps=STEPS):
    sides = conditioning(model, 3), conditioning(model, 1)
    return NegativeSchedule.execute(*sides, schedule(model, steps), alpha, kind)[0]


@pytest.mark.parametrize(("alpha", "seed"), [(1.0, 1), (0.0, 3)])
def test_constant_one_and_zero_are_plain_guidance(model, alpha, seed):
    assert torch.equal(run(model, scheduled(model, alpha, "constant")), run(model, conditioning(model, seed)))


@pytest.mark.parametrize(
    ("alpha", "kind", "sampler"), [(0.75, "linear", "euler"), (0.6, "exp", "dpm_2"), (0.3, "constant", "heun")]
)
def test_negative_prediction_is_the_weighted_sum_of_both(model, alpha, kind, sampler):
    """At every level met, between the schedule's own too, with the weight of the step that level lies in."""
    sigmas = schedule(model, STEPS)
    expected = weights(STEPS, alpha, kind)
    met = []

    def compare(args):
        level = float(args["sigma"][0])
        step = max(i for i in range(STEPS) if level <= float(sigmas[i]) * 1.00001)
        met.append(step)
        empty, negative = comfy.samplers.calc_cond_batch(
            args["model"],
            [
                comfy.samplers.encode_model_conds(
                    args["model"].extra_conds,
                    comfy.sampler_helpers.convert_cond(conditioning(model, seed)),
                    args["input"],
                    args["input"].device,
                    "negative",
                )
                for seed in (1, 3)
            ],
            args["input"],
            args["sigma"],
            args["model_options"],
        )
        a = expected[step]
        assert same(args["uncond_denoised"], a * empty + (1.0 - a) * negative)
        return args["denoised"]

    probed = model.clone()
    probed.set_model_sampler_post_cfg_function(compare)
    run(probed, scheduled(model, alpha, kind), sampler)
    assert sorted(set(met)) == list(range(STEPS))


def test_works_with_plug_and_play_on_sdxl():
    model = sdxl()
    trajectory = random_trajectory(model, conditioning(model, 1), 3)
    patched = PlugAndPlay.execute(model, trajectory, 1.0, 1.0, "auto")[0]
    result = run(patched, scheduled(model, 0.75, "linear", steps=3), steps=3)
    assert bool(torch.isfinite(result).all())
    assert not same(result, run(patched, conditioning(model, 1), steps=3), 1e-3)
