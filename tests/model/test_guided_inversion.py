"""Inversion with a negative prompt and guidance: what it evaluates, how it is retraced, and what follows such a path."""

import comfy.model_management
import comfy_extras.nodes_custom_sampler as core
import comfy_extras.nodes_model_advanced as core_advanced
import pytest
import torch
from comfy.model_patcher import ModelPatcher
from comfy_extras.nodes_apg import APG
from palimpsest.nodes.diffusion.conditioning import Conditioning
from palimpsest.nodes.diffusion.trajectory import Trajectory
from palimpsest.nodes.inversion.ddim import METHODS, convergence_report, invert
from palimpsest.nodes.inversion.nodes import DDIMInvert, LoadTrajectory, SampleTrajectory
from palimpsest.nodes.inversion.noise import trajectory_noise
from palimpsest.nodes.inversion.trajectory_io import save_trajectory
from palimpsest.nodes.null_text.optimize import optimize
from palimpsest.nodes.null_text.solvers import Effort
from palimpsest.nodes.prompt_to_prompt.nodes import EncodePromptEdit, PromptToPrompt
from palimpsest.nodes.retracing.nodes import ExactRetracing
from support.cases import cases
from support.fixtures import other_packs, tiny_clip
from support.fixtures.inversions import KINDS, relative
from support.fixtures.sampling import schedule
from support.fixtures.tiny_models import conditioning, latent, two_level
from support.fixtures.tiny_transformers import KINDS as TRANSFORMERS

pytestmark = pytest.mark.model

CFG = 7.5
STEPS = 4


def v_model() -> ModelPatcher:
    """One on which fixed_point converges: a random noise prediction is chaotic at low noise."""
    return core_advanced.ModelSamplingDiscrete().patch(two_level(), "v_prediction", False)[0]


def prompts(model: ModelPatcher) -> tuple[Conditioning, Conditioning]:
    return conditioning(model, 1), conditioning(model, 3)


def inverted(
    model: ModelPatcher,
    method: str = "ddim",
    cfg: float = CFG,
    scheduler: str = "ddim_uniform",
    batch: int = 1,
    iterations: int = 12,
    negative: Conditioning | None = None,
) -> Trajectory:
    positive, own = prompts(model)
    picture = latent(model, 5, batch=batch, height=8, width=8)["samples"]
    sigmas = schedule(model, STEPS, scheduler)
    return invert(model, positive, picture, sigmas, method, iterations, own if negative is None else negative, cfg)


def back(
    model: ModelPatcher, trajectory: Trajectory, cfg: float = CFG, negative: Conditioning | None = None
) -> torch.Tensor:
    """The path that core's CFG Guider and euler take from the trajectory's start."""
    guider = core.CFGGuider.execute(model, trajectory.positive, negative or prompts(model)[1], cfg)[0]
    picture = model.model.process_latent_out(trajectory.latents[-1])
    noise, euler = trajectory_noise(model, trajectory), core.KSamplerSelect.execute("euler")[0]
    return SampleTrajectory.execute(noise, guider, euler, trajectory.sigmas, {"samples": picture})[1].latents


def exact(model: ModelPatcher, trajectory: Trajectory) -> ModelPatcher:
    return ExactRetracing.execute(model, trajectory)[0]


def counting(model: ModelPatcher, rows: list[int], stop: int = 0) -> ModelPatcher:
    """A clone that counts the rows of each call, and whose run is interrupted in call number `stop`."""

    def count(apply, args):
        rows.append(len(args["input"]))
        if len(rows) == stop:
            comfy.model_management.interrupt_current_processing()
        return apply(args["input"], args["timestep"], **args["c"])

    counted = model.clone()
    counted.set_model_unet_function_wrapper(count)
    return counted


@pytest.mark.parametrize("method", METHODS)
@torch.inference_mode()
def test_guidance_1_reads_no_negative(method: str):
    model, rows = two_level(), []
    plain = inverted(model, method, 1.0, iterations=3, negative=[])
    with_negative = inverted(counting(model, rows), method, 1.0, iterations=3)
    assert torch.equal(with_negative.latents, plain.latents) and with_negative.cfg == 1.0
    assert set(rows) == {1}


@pytest.mark.parametrize("kind", cases(KINDS, "eps", "v", "flow"))
@torch.inference_mode()
def test_exact_retracing_reconstructs_at_the_same_guidance(kind: str):
    """Measured: 8e-7 (noise), 1.5e-6 (velocity) and 1.3e-6 (SDXL) at guidance 7.5."""
    build, scheduler = KINDS[kind]
    model = build()
    trajectory = inverted(model, scheduler=scheduler)
    assert relative(back(exact(model, trajectory), trajectory), trajectory.latents) < 1e-5
    assert relative(back(model, trajectory)[-1], trajectory.latents[-1]) > 1e-1
    assert relative(back(exact(model, trajectory), trajectory, cfg=1.0)[-1], trajectory.latents[-1]) > 1e-1


@torch.inference_mode()
def test_a_guidance_distilled_model_may_have_guidance_too():
    kind = TRANSFORMERS["flux"]
    model, positive, negative = kind.model(), kind.conditioning(2), kind.conditioning(3, guidance=1.0)
    trajectory = invert(model, positive, kind.latent(1), schedule(model, 2, "simple"), "ddim", 1, negative, 3.0)
    path = back(exact(model, trajectory), trajectory, 3.0, negative)
    assert relative(path, trajectory.latents) < 1e-5


@pytest.mark.parametrize("name", cases(["flux", "flux2"], "flux"))
@torch.inference_mode()
def test_a_guidance_distilled_model_is_inverted_at_guidance_1_whatever_the_prompt_says(name: str):
    kind = TRANSFORMERS[name]
    model, read = kind.model(), []

    def asked(apply, args):
        read.append(float(args["c"]["guidance"]))
        return apply(args["input"], args["timestep"], **args["c"])

    counted = model.clone()
    counted.set_model_unet_function_wrapper(asked)
    picture, sigmas = {"samples": kind.latent(1, height=4, width=4)}, schedule(model, 2, "simple")
    made = [
        DDIMInvert.execute(counted, kind.conditioning(2, **options), picture, sigmas, "ddim", 1)
        for options in ({}, {"guidance": 3.5}, {"guidance": 30.0})
    ]
    assert read == [1.0] * 6
    assert all(torch.equal(node[0].latents, made[0][0].latents) for node in made)
    assert "Inverted at FluxGuidance 1: reconstruct it with this guidance" in made[0].ui["palimpsest_result"]
    [[_, options]] = made[1][0].positive  # what edits read the source with
    assert options["guidance"] == 1.0


@torch.inference_mode()
def test_fixed_point_is_retraced_by_stock_nodes_and_says_where_it_is_not():
    model = v_model()
    trajectory = inverted(model, "fixed_point", 4.0)
    assert convergence_report(trajectory)[1] and trajectory.cfg == 4.0
    assert relative(back(model, trajectory, 4.0), trajectory.latents) < 1e-4
    assert not convergence_report(inverted(two_level(), "fixed_point", 15.0, iterations=3))[1]


@torch.inference_mode()
def test_rows_of_a_batch_split_calls_and_half_precision():
    model, calls = v_model(), []
    together = inverted(counting(model, calls), batch=2)
    assert calls == [4] * STEPS
    assert relative(back(exact(model, together), together), together.latents) < 1e-5
    long = conditioning(model, 3, tokens=77 * 5)  # core does not join a prompt with one five times as long
    calls.clear()
    split = inverted(counting(model, calls), negative=long)
    assert calls == [1] * 2 * STEPS
    assert relative(back(exact(model, split), split, negative=long), split.latents) < 1e-5
    repeated = [[prompts(model)[1][0][0].repeat(1, 5, 1), {}]]
    assert relative(inverted(model, batch=2, negative=repeated).latents, together.latents) < 1e-4
    half = two_level(dtype=torch.float16)
    trajectory = inverted(half)
    assert trajectory.latents.dtype == torch.float32
    assert relative(back(exact(half, trajectory), trajectory)[-1], trajectory.latents[-1]) < 0.05


@torch.inference_mode()
def test_an_interrupt_half_way_leaves_the_model_as_it_was():
    model, rows = two_level(), []
    options, before = repr(model.model_options), inverted(model)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        inverted(counting(model, rows, stop=2))
    assert len(rows) <= 3 and repr(model.model_options) == options
    assert torch.equal(inverted(model).latents, before.latents)


@torch.inference_mode()
def test_guidance_by_other_nodes_is_followed_where_it_can_be_found_again():
    """RescaleCFG combines the predictions in a way of its own, so it cannot be corrected before; momentum remembers earlier steps."""
    rescaled = core_advanced.RescaleCFG().patch(v_model(), 0.7)[0]
    trajectory = inverted(rescaled, "fixed_point", 4.0)
    assert relative(back(rescaled, trajectory, 4.0), trajectory.latents) < 1e-4
    assert relative(inverted(v_model()).latents, inverted(rescaled).latents) > 1e-2
    for guided in (rescaled, other_packs.perturbed_attention(v_model())):
        trajectory = inverted(guided)
        with pytest.raises(ValueError, match=r"^model: expected plain classifier-free guidance, .* made at cfg 7\.5"):
            back(exact(guided, trajectory), trajectory)
    for threshold in (0.0, 5.0):
        momentum = APG.execute(v_model(), 0.5, threshold, 0.3)[0]
        with pytest.raises(ValueError, match=r"^model: expected a model that gives the same prediction .* momentum"):
            inverted(momentum)


@torch.inference_mode()
def test_guidance_without_a_negative_is_refused_before_the_model_runs():
    model, rows = two_level(), []
    inputs = counting(model, rows), prompts(model)[0], latent(model, 5), schedule(model, STEPS), "ddim", 1
    with pytest.raises(ValueError, match=r"^negative: expected a negative prompt, because cfg is 7\.5, got none"):
        DDIMInvert.execute(*inputs, cfg=CFG)
    assert rows == []
    done = DDIMInvert.execute(*inputs, cfg=CFG, negative=prompts(model)[1])
    [_, guidance] = done.ui["palimpsest_result"]
    assert guidance == "Made at cfg 7.5: reconstruct it with this cfg and its negative prompt"


@torch.inference_mode()
def test_a_prompt_to_prompt_edit_that_changes_no_word_reconstructs_the_picture():
    """The source is read from the recorded latents, at whatever guidance they were made."""
    model, clip = two_level(), tiny_clip.sd1()
    trajectory = inverted(model)
    edit = EncodePromptEdit.execute(clip, "a red cat", "a red cat", "auto", "", "")[1]
    for settings in ((0.8, 0.4, 0.2, 0.3), (0.0, 0.0, 0.2, 0.3)):
        edited = PromptToPrompt.execute(
            model, trajectory, edit, *settings, source=trajectory.positive, exact_retracing=True
        )[0]
        assert relative(back(edited, trajectory), trajectory.latents) < 1e-4


@torch.inference_mode()
def test_null_text_starts_from_the_negative_that_reconstructs_and_refuses_the_one_that_cannot(tmp_path, monkeypatch):
    model = v_model()
    trajectory = inverted(model, "fixed_point", 4.0)
    positive, negative = prompts(model)
    found, course = optimize(model, positive, negative, trajectory, 4.0, Effort(), "fast")
    assert float(torch.stack(course.before).max()) < Effort().tolerance
    assert all(torch.equal(embedding, negative[0][0]) for embedding, _ in found)
    noise, euler = core.RandomNoise.execute(5)[0], core.KSamplerSelect.execute("euler")[0]
    guider = core.CFGGuider.execute(model, positive, negative, 3.0)[0]
    dual = core.DualCFGGuider.execute(model, positive, positive, negative, 3.0, 3.0, "regular")[0]
    empty = {"samples": torch.zeros(1, 4, 8, 8)}
    recorded, by_dual = (
        SampleTrajectory.execute(noise, own, euler, trajectory.sigmas, empty)[1] for own in (guider, dual)
    )
    save_trajectory(by_dual, tmp_path / "dual.trajectory.safetensors")
    monkeypatch.setattr("palimpsest.nodes.inversion.nodes.resolve", lambda socket, name, suffix: tmp_path / name)
    loaded = LoadTrajectory.execute("dual.trajectory.safetensors")
    assert loaded[0].cfg is None
    assert loaded.ui["palimpsest_result"] == ["Made by a guider with its own guidance: reconstruct it with that guider"]
    for path, made in (
        (trajectory, "at cfg 4"),
        (recorded, "at cfg 3"),
        (by_dual, "by a guider with its own guidance"),
    ):
        with pytest.raises(ValueError, match=rf"^trajectory: expected one made at cfg 1, .* got one made {made}"):
            optimize(model, positive, negative, path, 4.0, Effort(), "negative_prompt")
