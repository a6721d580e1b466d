"""The published loop against one written here in plain PyTorch, in diffusers' units, on diffusers' UNet and scheduler."""

import comfy_extras.nodes_model_advanced as core_advanced
import pytest
import torch
from diffusers import DDIMScheduler
from palimpsest.nodes.inversion.ddim import invert
from palimpsest.nodes.null_text.optimize import optimize
from palimpsest.nodes.null_text.solvers import Effort
from support.fixtures import tiny_models
from support.fixtures.inversions import relative, schedule
from support.fixtures.twin_unet import sd15_twin

pytestmark = [pytest.mark.model, pytest.mark.newest]

CFG = 7.5
SD_SCHEDULE = {
    "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False,
    "steps_offset": 1, "timestep_spacing": "leading", "set_alpha_to_one": True,
}  # fmt: skip


def null_text_inversion(unet, prediction, pivot, cond_text, null_text, effort, steps):
    """2211.09794 on one picture. pivot: [T+1, C, H, W] in variance-preserving units, noise first."""
    scheduler = DDIMScheduler(**SD_SCHEDULE, prediction_type=prediction)
    scheduler.set_timesteps(steps)
    unet.requires_grad_(False)
    x, null_text, found, iterations = pivot[:1], null_text.clone(), [], []
    for i, t in enumerate(scheduler.timesteps):
        null_text = null_text.detach().clone().requires_grad_()
        paper = effort.constants == "paper"
        optimizer = torch.optim.Adam(
            [null_text], lr=effort.learning_rate * (1.0 if paper else 1.0 - i * 50 / steps / 100.0)
        )
        tolerance = effort.tolerance + (0.0 if paper else i * 50 / steps * 2e-5)
        with torch.no_grad():
            e_cond = unet(x, t, cond_text).sample
        iterations.append(0)
        for _ in range(effort.inner_steps):
            e_null = unet(x, t, null_text).sample
            previous = scheduler.step(e_null + CFG * (e_cond - e_null), t, x).prev_sample
            loss = torch.nn.functional.mse_loss(previous, pivot[i + 1 : i + 2])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            iterations[-1] += 1
            if loss.item() < tolerance:
                break
        found.append(null_text.detach())
        with torch.no_grad():
            e_null = unet(x, t, null_text).sample
            x = scheduler.step(e_null + CFG * (e_cond - e_null), t, x).prev_sample
    return x, found, iterations


# Of a random net's output, so that two prompts differ by as little as they do for a trained one: losses of 1e-5 to 1e-3. At its
# full output they are 1 to 40 in eps, and 10 steps of Adam blow the rounding of two UNets up past any bound.
GAIN = 0.01


def setup(prediction, batch=1):
    model = tiny_models.two_level()
    for weight in model.model.diffusion_model.out[2].parameters():
        weight.data.mul_(GAIN)
    unet = sd15_twin(model)
    if prediction == "v_prediction":
        model = core_advanced.ModelSamplingDiscrete().patch(model, "v_prediction", False)[0]
    return model, unet, tiny_models.latent(model, 2, batch=batch, height=8, width=8)["samples"]


@pytest.mark.parametrize(
    ("prediction", "steps", "inner_steps", "constants"),
    [
        ("epsilon", 5, 4, "code"),
        ("v_prediction", 4, 3, "paper"),
        pytest.param("epsilon", 50, 10, "code", marks=pytest.mark.long),
        pytest.param("v_prediction", 10, 10, "code", marks=pytest.mark.long),
    ],
)
def test_equals_the_published_loop(prediction, steps, inner_steps, constants):
    model, unet, latent = setup(prediction)
    positive, negative = tiny_models.conditioning(model, 1), tiny_models.conditioning(model, 3)
    effort = Effort(inner_steps=inner_steps, constants=constants)
    with torch.inference_mode():
        trajectory = invert(model, positive, latent, schedule(model, steps), "ddim")
        result, course = optimize(model, positive, negative, trajectory, CFG, effort, "null_text")
    pivot = (trajectory.latents / (trajectory.sigmas**2 + 1).sqrt().view(-1, 1, 1, 1, 1))[:, 0].clone()
    x, found, iterations = null_text_inversion(unet, prediction, pivot, positive[0][0], negative[0][0], effort, steps)
    assert relative(course.final, x) < 1e-4
    assert relative(torch.stack([embedding for embedding, _ in result]), torch.stack(found)) < 1e-4
    assert course.evaluations.backwards == sum(iterations)
    assert course.evaluations.forwards == sum(iterations) + 2 * steps
