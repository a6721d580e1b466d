import comfy.samplers
import pytest
import torch
from palimpsest.nodes.inversion.recording import sample_trajectory
from palimpsest.nodes.saliency_fusion.expert import Prompted
from palimpsest.nodes.saliency_fusion.saliency import Sharpness
from palimpsest.nodes.saliency_fusion.stages import staged_function
from support.cases import cases
from support.fixtures.fusion import PUBLISHED, fuse_subject, plain, run, start_for
from support.fixtures.sampling import schedule
from support.fixtures.tiny_models import conditioning, sd15
from support.fixtures.twin_fusion import subject_fusion
from support.fixtures.twin_unet import sd15_twin
from support.fixtures.unet_probe import same

pytestmark = pytest.mark.model

CFG = 5.0


@pytest.fixture(scope="module")
def models():
    return sd15(0), sd15(1)


@pytest.fixture(scope="module")
def prompts(models):
    """null, plain text, text with the subject in it."""
    return [conditioning(models[0], seed) for seed in (1, 2, 3)]


def guider(models, prompts, borders, augmented=2):
    return fuse_subject(models, [*prompts[:2], prompts[augmented]], borders, CFG)


def rows_of(models, run_it):
    counts = [[], []]
    handles = [
        model.model.diffusion_model.register_forward_pre_hook(lambda module, args, rows=rows: rows.append(len(args[0])))
        for model, rows in zip(models, counts, strict=True)
    ]
    try:
        return run_it(), counts
    finally:
        for handle in handles:
            handle.remove()


def test_equals_the_published_stages_over_diffusers_scheduler_and_evaluates_what_each_needs(models, prompts):
    sigmas = schedule(models[0], 10)
    x = start_for(models[0], sigmas, size=(8, 8))
    made, rows = rows_of(models, lambda: run(guider(models, prompts, (0.3, 0.6)), x, sigmas))
    assert rows == [[2] * 6, [2] * 7]  # t = 901, 801, 701 | 601, 501, 401 | 301, 201, 101, 1
    scale = (1 + sigmas**2) ** 0.5
    twins = [sd15_twin(model) for model in models]
    theirs = subject_fusion(*twins, *(prompt[0][0] for prompt in prompts), x / scale[0], CFG, 10, (3, 6))
    worst = max(
        float((own - twin * s).norm() / (twin * s).norm())
        for own, twin, s in zip(made.path, theirs, scale, strict=True)
    )
    print(f"subject fusion: {worst:.1e}")
    assert worst <= 1e-5
    shares = [float(decision.weights[1].mean()) for decision in made.decisions if decision is not None]
    assert len(shares) == 3 and all(0.02 < share < 0.98 for share in shares)


def test_k_sharpens_each_model_s_own_saliency(models, prompts):
    sigmas = schedule(models[0], 2)
    x = start_for(models[0], sigmas, size=(8, 8))
    plain_maps, sharp_maps = (
        run(fuse_subject(models, prompts, (0.0, 1.0), CFG, [Sharpness(k, False) for k in ks]), x, sigmas)
        .decisions[0]
        .log_maps
        for ks in ((1.0, 1.0), (2.0, 5.0))
    )
    for plain_map, sharp_map, k in zip(plain_maps, sharp_maps, (2.0, 5.0), strict=True):
        assert torch.allclose(sharp_map, torch.log_softmax(k * plain_map.flatten(-2), -1).view_as(sharp_map), atol=1e-4)


@pytest.mark.parametrize("borders, alone", [((1.0, 1.0), "scene"), ((0.0, 0.0), "subject")])
def test_one_stage_over_the_whole_picture_is_that_model_alone(models, prompts, borders, alone):
    null, text, augmented = prompts
    sigmas = schedule(models[0], 2)
    x = start_for(models[0], sigmas, size=(8, 8))
    made, rows = rows_of(models, lambda: run(guider(models, prompts, borders), x, sigmas))
    side = (
        Prompted(models[0], text, null, CFG, PUBLISHED)
        if alone == "scene"
        else Prompted(models[1], augmented, text, CFG, PUBLISHED)
    )
    assert torch.equal(made.result, run(plain(side), x, sigmas).result)
    assert rows == ([[2, 2], []] if alone == "scene" else [[], [2, 2]])


def test_without_a_subject_the_response_is_none_and_the_mask_is_where_the_scene_is_quiet(models, prompts):
    """Reference prompt and plain prompt alike: saliency 1 / HW everywhere, and any guidance gives the plain text."""
    sigmas = schedule(models[0], 2)
    x = start_for(models[0], sigmas, size=(8, 8))
    made = run(guider(models, prompts, (0.0, 1.0), augmented=1), x, sigmas[:2])
    maps = made.decisions[0].log_maps.exp()
    assert torch.allclose(maps[1], torch.full((1, 8, 8), 1 / 64))
    assert torch.equal(made.decisions[0].weights[1], (maps[0] < maps[1]).float())
    alone = run(guider(models, prompts, (0.0, 0.0), augmented=1), x, sigmas[:2]).result
    text = Prompted(models[1], prompts[1], prompts[1], 1.0, PUBLISHED)
    assert same(alone, run(plain(text), x, sigmas[:2]).result, 1e-6)


def test_one_model_in_both_places_shares_its_weights(models, prompts):
    sigmas = schedule(models[0], 3)
    x = start_for(models[0], sigmas, size=(8, 8))
    both = run(guider((models[0], models[0]), prompts, (0.3, 0.7)), x, sigmas).result
    assert same(both, run(guider((models[0], sd15(0)), prompts, (0.3, 0.7)), x, sigmas).result, 1e-6)


@pytest.mark.parametrize("sampler", cases(["dpmpp_2m", "lms", "heun"], "dpmpp_2m"))
def test_a_sampler_s_history_ends_with_a_stage(models, prompts, sampler):
    """Each stage is what sampling that part of the schedule alone gives."""
    sigmas = schedule(models[0], 6)
    x = start_for(models[0], sigmas, size=(8, 8))
    made = run(guider(models, prompts, (0.45, 0.45)), x, sigmas, sampler)  # t = 997, 831, 665 | 499, ..., 1
    null, text, augmented = prompts
    scene, subject = (
        Prompted(models[0], text, null, CFG, PUBLISHED),
        Prompted(models[1], augmented, text, CFG, PUBLISHED),
    )
    border = 3
    timesteps = models[0].get_model_object("model_sampling").timestep(sigmas[:-1])
    assert int(timesteps[border - 1]) > 549.45 >= int(timesteps[border])
    if sampler == "heun":  # its second evaluation at the border is the next stage's already
        assert len(made.path) == len(sigmas) and bool(torch.isfinite(made.result).all())
        return
    first = run(plain(scene), x, sigmas[: border + 1], sampler).result
    assert same(made.path[border], first, 1e-6)
    assert same(made.result, run(plain(subject), first, sigmas[border:], sampler).result, 1e-5)


def test_steps_are_counted_through_the_stages():
    seen = []

    def steps(model, x, sigmas, extra_args=None, callback=None, disable=None):
        for i in range(len(sigmas) - 1):
            callback({"i": i, "sigma": sigmas[i]})
        return x

    staged = staged_function(steps, lambda sigma: int(sigma < 5) + int(sigma < 2))
    staged(
        None,
        torch.zeros(1),
        torch.tensor([9.0, 6.0, 4.0, 3.0, 1.0, 0.0]),
        callback=lambda state: seen.append(state["i"]),
    )
    assert seen == [0, 1, 2, 3, 4] and staged.__name__ == "steps"


def test_a_recorded_run_keeps_every_latent(models, prompts):
    sigmas = schedule(models[0], 4)
    noise = type("Noise", (), {"seed": 0, "generate_noise": lambda self, latent: torch.ones_like(latent["samples"])})()
    made = guider(models, prompts, (0.3, 0.6))
    samples, trajectory = sample_trajectory(
        made, noise, comfy.samplers.sampler_object("dpmpp_2m"), sigmas, {"samples": torch.zeros(1, 4, 8, 8)}, True
    )
    assert trajectory.latents.shape == (5, 1, 4, 8, 8)
    assert same(models[0].model.process_latent_out(trajectory.latents[-1]), samples)


@pytest.mark.parametrize("sampler", cases(["euler_ancestral", "dpmpp_sde"], "euler_ancestral"))
def test_samplers_that_add_noise_are_refused(models, prompts, sampler):
    sigmas = schedule(models[0], 2)
    with pytest.raises(ValueError, match="sampler: expected a sampler that follows one deterministic path"):
        run(guider(models, prompts, (0.3, 0.6)), start_for(models[0], sigmas, size=(8, 8)), sigmas, sampler)


def test_borders_in_the_wrong_order_are_refused(models, prompts):
    with pytest.raises(ValueError, match="scene_end: expected at most fusion_end"):
        guider(models, prompts, (0.6, 0.3))
