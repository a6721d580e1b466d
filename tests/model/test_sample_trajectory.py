"""Sample Trajectory with every sampler of core: what is recorded, and what is refused."""

import comfy.patcher_extension
import comfy.samplers
import comfy_extras.nodes_custom_sampler as core
import pytest
import torch
from palimpsest.nodes.diffusion.samplers import NOISE_OF_ITS_OWN, REASONS, RECORDABLE, WITH_ETA, sampler_name
from palimpsest.nodes.inversion.nodes import SampleTrajectory
from support.cases import cases
from support.fixtures import tiny_models
from support.fixtures.inversions import relative, schedule

pytestmark = pytest.mark.model

STEPS = 4
KINDS = {
    "eps": (tiny_models.two_level, "ddim_uniform"),
    "v": (tiny_models.two_level_v, "ddim_uniform"),
    "flow": (tiny_models.flow_dit, "simple"),
}
SAMPLERS = comfy.samplers.SAMPLER_NAMES
RECORDED = [name for name in SAMPLERS if name in RECORDABLE or name == "ddim"]
REFUSED = [name for name in SAMPLERS if name not in RECORDED]
WITHOUT_NOISE = [name for name in SAMPLERS if name in WITH_ETA]
Asked = list[tuple[float, torch.Tensor]]


class Setting:
    """A tiny model of one kind, its prompts and schedule, and all that the model is asked in a run."""

    def __init__(self, kind: str):
        build, scheduler = KINDS[kind]
        self.asked: Asked = []
        self.model = build()
        self.model.add_wrapper(comfy.patcher_extension.WrappersMP.PREDICT_NOISE, self.note)
        self.sigmas = schedule(self.model, STEPS, scheduler)
        positive, negative = tiny_models.conditioning(self.model, 1), tiny_models.conditioning(self.model, 3)
        self.guider = core.CFGGuider.execute(self.model, positive, negative, 4.0)[0]
        self.channels = self.model.get_model_object("latent_format").latent_channels
        self.empty = {"samples": torch.zeros(2, self.channels, 8, 8)}

    def note(self, executor, x, sigma, *args, **kwargs):
        self.asked.append((float(sigma[0]), x.clone()))
        return executor(x, sigma, *args, **kwargs)

    def record(self, sampler, latent=None, seed: int = 5):
        self.asked.clear()
        return SampleTrajectory.execute(
            core.RandomNoise.execute(seed)[0], self.guider, sampler, self.sigmas, latent or self.empty
        ).args

    def stock(self, sampler, latent=None, seed: int = 5) -> torch.Tensor:
        return core.SamplerCustomAdvanced.execute(
            core.RandomNoise.execute(seed)[0], self.guider, sampler, self.sigmas.clone(), latent or self.empty
        )[0]["samples"]


@pytest.fixture(scope="module", params=cases(KINDS, "flow"))
def setting(request) -> Setting:
    return Setting(request.param)


def assert_recorded(setting: Setting, sampler, latent=None) -> None:
    before = setting.sigmas.clone()
    out, trajectory = setting.record(sampler, latent)
    assert torch.equal(setting.sigmas, before) and torch.equal(trajectory.sigmas, before)
    for i, sigma in enumerate(before[:-1].tolist()):
        # The nearest, because some move a flow model's first level a little; the last of these, because heun and its like
        # look ahead at the next level before they get there.
        nearest = min(abs(level - sigma) for level, _ in setting.asked)
        at_level = [x for level, x in setting.asked if abs(level - sigma) == nearest]
        assert nearest <= 1e-3 * sigma
        assert torch.equal(trajectory.latents[i], at_level[-1])
    assert torch.equal(out["samples"], setting.stock(sampler, latent))
    assert relative(trajectory.latents[-1], setting.model.model.process_latent_in(out["samples"])) < 1e-6


@pytest.mark.parametrize("name", RECORDED)
@torch.inference_mode()
def test_a_recorded_latent_is_what_the_model_is_asked_at_its_level_E2(setting: Setting, name: str):
    """Fault E2: deis, ipndm and ipndm_v hand the first latent to every callback, and a path of equal latents was kept."""
    assert_recorded(setting, comfy.samplers.sampler_object(name))


@pytest.mark.parametrize("name", WITHOUT_NOISE)
@torch.inference_mode()
def test_samplers_with_eta_0_follow_a_path(setting: Setting, name: str):
    assert_recorded(setting, comfy.samplers.ksampler(name, {"eta": 0.0}))


@pytest.mark.parametrize("name", ["euler", "ddim", "dpmpp_2m"])
@torch.inference_mode()
def test_inside_a_mask_too_the_path_is_what_the_model_is_asked(setting: Setting, name: str):
    """ddim puts other noise outside a mask than the one it starts from."""
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., :4] = 1
    picture = tiny_models.latent(setting.model, 2, batch=2, height=8, width=8)
    assert_recorded(setting, comfy.samplers.sampler_object(name), {**picture, "noise_mask": mask})


@pytest.mark.parametrize("name", REFUSED)
@torch.inference_mode()
def test_samplers_without_one_path_are_refused_in_true_words_E2(name: str):
    setting = Setting("eps")
    sampler = comfy.samplers.sampler_object(name)
    with pytest.raises(ValueError, match=f"sampler: expected a sampler that follows one.*got {name}, {REASONS[name]}"):
        setting.record(sampler)
    assert not setting.asked
    if REASONS[name] is NOISE_OF_ITS_OWN:
        start = core.RandomNoise.execute(5)[0].generate_noise(setting.empty)
        one, other = (
            setting.guider.sample(
                start, setting.empty["samples"], sampler, setting.sigmas, disable_pbar=True, seed=seed
            )
            for seed in (1, 2)
        )
        assert relative(one, other) > 1e-2
    else:
        setting.stock(sampler)
        levels = {level for level, _ in setting.asked}
        assert any(min(abs(level - sigma) for sigma in setting.sigmas.tolist()) > 1e-2 for level in levels)


@torch.inference_mode()
def test_added_noise_and_samplers_of_other_packs_are_refused():
    setting = Setting("eps")
    with pytest.raises(ValueError, match="got euler with s_churn > 0, which adds noise"):
        setting.record(comfy.samplers.ksampler("euler", {"s_churn": 1.0}))

    def sample_of_another_pack(model, x, sigmas, **options):
        return x

    sampler = comfy.samplers.KSAMPLER(sample_of_another_pack)
    assert sampler_name(sampler) == "of_another_pack"
    with pytest.raises(ValueError, match="got of_another_pack, which is not known to be one"):
        setting.record(sampler)


@torch.inference_mode()
def test_what_no_trajectory_can_hold_is_refused_before_the_model_runs_E12():
    """Fault E12: a guider without a positive prompt, and latents that are no picture's, failed after all the sampling."""
    setting = Setting("eps")

    class OnePromptGuider(comfy.samplers.CFGGuider):
        def set_main(self, conditioning):
            self.inner_set_conds({"main": conditioning})

    euler, noise = comfy.samplers.sampler_object("euler"), core.RandomNoise.execute(5)[0]
    guider = OnePromptGuider(setting.model)
    guider.set_main(tiny_models.conditioning(setting.model, 1))
    with pytest.raises(
        ValueError, match=r"guider: expected one with a positive conditioning.*got OnePromptGuider with main"
    ):
        SampleTrajectory.execute(noise, guider, euler, setting.sigmas, setting.empty)
    for shape in ((1, 4, 5, 8, 8), (1, 4, 8), (1, 16, 8, 8)):
        with pytest.raises(ValueError, match="latent_image: expected a latent of this model"):
            setting.record(euler, {"samples": torch.ones(shape)})
    assert not setting.asked
