from pathlib import Path
from types import SimpleNamespace

import comfy.latent_formats
import comfy.samplers
import comfy_extras.nodes_custom_sampler as core
import comfy_extras.nodes_model_advanced as advanced
import folder_paths
import numpy as np
import pytest
import torch
from palimpsest.nodes.diffusion.trajectory import ModelFingerprint, Trajectory
from palimpsest.nodes.saliency_fusion import preview
from palimpsest.nodes.saliency_fusion.blending import Mask
from palimpsest.nodes.saliency_fusion.nodes import SaliencyMap
from palimpsest.nodes.saliency_fusion.preview import COLOURS, with_mask
from PIL import Image
from support.fixtures.fusion import expert, fuse, fuse_subject, general, run, start_for
from support.fixtures.sampling import schedule
from support.fixtures.tiny_models import conditioning, latent, two_level

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def models():
    return two_level(0), two_level(1), two_level(2)


@pytest.fixture(scope="module")
def sampled(models):
    """A fusion of three that has been sampled, and its path."""
    guider = fuse(general(models[0]), expert(models[1], span=(0.0, 0.5)), expert(models[2], seed=6))
    sigmas = schedule(models[0], 4)
    made = run(guider, start_for(models[0], sigmas, 2, (8, 12)), sigmas)
    path = Trajectory(
        torch.stack(made.path), sigmas, guider.general.positive, ModelFingerprint.of(models[0]), "sampled",
        torch.full((4,), torch.nan),
    )  # fmt: skip
    return guider, made, path


def enlarged(mask):
    return mask.repeat_interleave(8, -1).repeat_interleave(8, -2)


@pytest.mark.parametrize("step", [0, 1])
def test_shows_what_sampling_decided(sampled, step):
    guider, made, path = sampled
    for number in (1, 2):
        mask, heat = SaliencyMap.execute(guider, step, number, trajectory=path).result
        assert torch.equal(mask, enlarged(made.decisions[step].weights[number]))
        assert mask.shape == (2, 64, 96)
        assert heat.shape == (2, 64, 3 * 96, 3) and 0 <= float(heat.min()) < float(heat.max()) <= 1
    assert guider.decision is None and guider.active == []


def test_windows_do_not_count(sampled):
    guider, made, path = sampled
    assert [decision.experts for decision in made.decisions] == [(0, 1), (0, 1), (1,), (1,)]
    assert float(SaliencyMap.execute(guider, 3, 1, trajectory=path)[0].mean()) > 0.02


def test_reads_a_picture_under_noise_and_a_latent_that_is_noisy(sampled, models):
    guider, made, path = sampled
    sigmas = path.sigmas
    picture = latent(models[0], 3, 1, 8, 12)
    noise = core.RandomNoise.execute(5)[0]
    under_noise = SaliencyMap.execute(guider, 1, 1, latent_image=picture, sigmas=sigmas, noise=noise)[0]
    noisy = models[0].model.process_latent_in(picture["samples"]) + sigmas[1] * noise.generate_noise(picture)
    noisy = {"samples": models[0].model.process_latent_out(noisy)}
    assert torch.equal(under_noise, SaliencyMap.execute(guider, 1, 1, latent_image=noisy, sigmas=sigmas)[0])
    assert not torch.equal(under_noise, SaliencyMap.execute(guider, 1, 1, latent_image=picture, sigmas=sigmas)[0])


def test_shows_a_subject_fusion_at_any_stage(models):
    null, text, augmented = (conditioning(models[0], seed) for seed in (1, 2, 3))
    guider = fuse_subject(models[:2], [null, text, augmented], (0.3, 0.6))
    picture = latent(models[0], 3, 1, 8, 8)
    mask, heat = SaliencyMap.execute(guider, 0, 1, latent_image=picture, sigmas=schedule(models[0], 4)).result
    assert mask.shape == (1, 64, 64) and heat.shape == (1, 64, 128, 3)
    assert 0 < float(mask.mean()) < 1


def test_an_expert_that_its_mask_keeps_out_has_nothing(sampled, models):
    _, _, path = sampled
    nowhere = Mask(torch.zeros(1, 8, 12), "restrict")
    guider = fuse(general(models[0]), expert(models[1], mask=nowhere), expert(models[2], seed=6))
    assert float(SaliencyMap.execute(guider, 0, 1, trajectory=path)[0].max()) == 0.0
    assert float(SaliencyMap.execute(guider, 0, 2, trajectory=path)[0].max()) == 1.0
    with pytest.raises(ValueError, match="guider: expected at least one expert whose mask lets it draw"):
        SaliencyMap.execute(fuse(general(models[0]), expert(models[1], mask=nowhere)), 0, 1, trajectory=path)


def test_only_the_step_that_is_looked_at_has_to_be_one_of_the_expert_s_F10(models):
    """A general model with zero terminal SNR starts far above the highest level of its expert, which joins later."""
    from_far = advanced.ModelSamplingDiscrete().patch(models[0], "v_prediction", True)[0]
    sigmas = schedule(from_far, 10)
    noise, picture = core.RandomNoise.execute(5)[0], latent(models[0], 3, 1, 8, 12)
    guider = fuse(general(from_far), expert(models[1], span=(0.4, 1.0)), expert(models[2], span=(0.5, 1.0), seed=6))
    for step in (2, 7, 9):
        for number in (1, 2):
            mask = SaliencyMap.execute(guider, step, number, latent_image=picture, sigmas=sigmas, noise=noise)[0]
            assert mask.shape == (1, 64, 96)
    with pytest.raises(ValueError, match="model_expert: expected a model for sigma"):
        SaliencyMap.execute(guider, 0, 1, latent_image=picture, sigmas=sigmas, noise=noise)


def test_the_map_shows_saliency_also_where_a_mask_decides(sampled, models):
    _, _, path = sampled
    left = torch.zeros(1, 8, 12)
    left[..., :6] = 1.0
    guider = fuse(general(models[0], 1.0), expert(models[1], 1.0, mask=Mask(left, "decide")))
    mask, heat = SaliencyMap.execute(guider, 0, 1, trajectory=path).result
    assert torch.equal(mask, enlarged(left).expand(2, -1, -1)) and float(heat.std()) > 0.01


@pytest.mark.parametrize(("ratio", "side"), [(1, 4), (4, 16), (16, 16)])
def test_pixels_are_counted_by_the_latent_format_F11(models, ratio, side):
    """Of a latent that is as large as the picture, or of another factor than 8, also if ComfyUI's empty latent comes of another one."""

    class Format(comfy.latent_formats.SD15):
        spacial_downscale_ratio = ratio

    def reads(model):
        patched = model.clone()
        patched.add_object_patch("latent_format", Format())
        return patched

    guider = fuse(general(reads(models[0])), expert(reads(models[1])))
    empty = {"samples": torch.zeros(1, 4, side, side), "downscale_ratio_spacial": 8}
    noise = core.RandomNoise.execute(5)[0]
    sigmas = schedule(models[0], 4)
    mask, heat = SaliencyMap.execute(guider, 1, 1, latent_image=empty, sigmas=sigmas, noise=noise).result
    assert mask.shape == (1, 8 * side, 8 * side) and heat.shape == (1, 8 * side, 16 * side, 3)
    step = torch.nn.functional.max_pool2d(mask[None], ratio) - (-torch.nn.functional.max_pool2d(-mask[None], ratio))
    assert float(step.abs().max()) == 0.0 and 0 < float(mask.mean()) < 1


def shown_at_every_step(*args, **kwargs) -> tuple[list[str], list[np.ndarray]]:
    frames = SaliencyMap.execute(*args, **kwargs, every_step=True).ui["palimpsest_frames"]
    folder = Path(folder_paths.get_temp_directory())
    return [frame["label"] for frame in frames], [np.asarray(Image.open(folder / frame["picture"])) for frame in frames]


def test_every_step_shows_what_sampling_decided(sampled):
    guider, made, path = sampled
    labels, pictures = shown_at_every_step(guider, 1, 1, trajectory=path)
    assert len(labels) == len(pictures) == 4
    for step, (label, picture, decision) in enumerate(zip(labels, pictures, made.decisions, strict=True)):
        shares = [f"expert {n + 1} {100 * float(part.mean()):.0f} %" for n, part in decision.parts.items()]
        assert label == f"step {step} of 4, sigma {float(path.sigmas[step]):.3g}: {', '.join(shares)}"
        assert picture.shape == (171, 256, 3)
        middles = picture[10::21, 10::21][:8, :12]
        for number, part in decision.parts.items():
            theirs = middles[part[0].numpy() == 1]
            tint = 0.45 * np.array(COLOURS[number])
            assert len(theirs) and (theirs >= tint - 2).all() and (theirs <= tint + 0.55 * 255 + 2).all()
    assert SaliencyMap.execute(guider, 1, 1, trajectory=path).ui["palimpsest_frames"] == []


def test_every_step_says_who_draws_alone(models):
    null, text, augmented = (conditioning(models[0], seed) for seed in (1, 2, 3))
    inputs = {"latent_image": latent(models[0], 3, 1, 8, 8), "sigmas": schedule(models[0], 8)}
    guider = fuse_subject(models[:2], [null, text, augmented], (0.3, 0.6))
    labels, _ = shown_at_every_step(guider, 0, 1, **inputs)
    stages = [guider.stage_of(float(sigma)) for sigma in inputs["sigmas"][:-1]]
    assert stages == sorted(stages) and {*stages} == {0, 1, 2}
    said = [label.partition(": ")[2].rstrip("0123456789 %") for label in labels]
    assert said == [("the general model alone", "expert", "expert 1 alone")[stage] for stage in stages]
    labels, _ = shown_at_every_step(fuse_subject(models[:2], [null, text, augmented], (0.0, 0.0)), 0, 1, **inputs)
    assert [label.partition(": ")[2] for label in labels] == ["expert 1 alone"] * 8


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"step": 4}, "step: expected 0 to 3, the steps of `trajectory`, got 4"),
        ({"expert": 3}, "expert: expected 1 to 2, the guider's experts, got 3"),
        ({"trajectory": None}, "trajectory: expected one, or latent_image and sigmas, got neither"),
        ({"sigmas": torch.tensor([1.0, 0.0])}, "trajectory: expected nothing else to look at, got sigmas too"),
        ({"guider": None}, "guider: expected a Saliency Fusion Guider or Subject Fusion Guider, got CFGGuider"),
    ],
)
def test_what_it_cannot_show_is_refused(sampled, models, changed, message):
    guider, _, path = sampled
    inputs = {"guider": guider, "step": 0, "expert": 1, "trajectory": path, **changed}
    inputs["guider"] = inputs["guider"] or comfy.samplers.CFGGuider(models[0])
    with pytest.raises(ValueError, match=message):
        SaliencyMap.execute(**inputs)


def test_the_preview_tints_each_expert_s_part(sampled, monkeypatch):
    import comfy.cli_args
    import comfy.utils

    guider, made, _ = sampled
    shown = []
    monkeypatch.setattr(comfy.cli_args.args, "preview_method", comfy.cli_args.LatentPreviewMethod.Latent2RGB)
    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", lambda value, total, preview, node_id: shown.append(preview))
    plain_calls = []
    clock = iter([10.0, 10.1, 10.13, 10.2, 10.5, 10.53])
    monkeypatch.setattr(preview, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    show = with_mask(lambda *state: plain_calls.append(state), guider.model_patcher, lambda: guider.decision)
    x0 = torch.zeros(2, 4, 8, 12)
    show(0, x0, x0, 4)  # nothing was decided
    assert shown == [] and len(plain_calls) == 1
    monkeypatch.setattr(guider, "decision", made.decisions[0])
    show(1, x0, x0, 4)  # takes 0.03 s
    show(2, x0, x0, 4)  # comes 0.07 s later, too soon for another
    assert len(shown) == 1
    show(3, x0, x0, 4)  # and 0.37 s
    assert len(shown) == 2 and len(plain_calls) == 4
    picture = shown[0][1]
    assert isinstance(picture, Image.Image) and picture.size == (12, 8)
    background = picture.getpixel(tuple(reversed((made.decisions[0].weights[0][0] == 1).nonzero()[0].tolist())))
    for number, colour in enumerate(COLOURS[:2], 1):
        y, x = (made.decisions[0].weights[number][0] == 1).nonzero()[0].tolist()
        expected = [0.55 * b + 0.45 * c for b, c in zip(background, colour, strict=True)]
        assert picture.getpixel((x, y)) == pytest.approx(expected, abs=2)
