"""One step of method `ddim` against closed forms, for every prediction type of core (fault E13)."""

import comfy.model_sampling as ms
import pytest
import torch
from palimpsest.nodes.inversion.solvers import Level, ddim_step

pytestmark = pytest.mark.model


def sampling(*bases: type, **attributes) -> torch.nn.Module:
    made = type("Sampling", bases, {})()
    for name, value in attributes.items():
        setattr(made, name, value)
    return made


def vp(s: float) -> tuple[float, float]:
    return 1 / (s * s + 1) ** 0.5, s / (s * s + 1) ** 0.5


def v_slope(x, v, s: float):
    """eps of a v-prediction in variance-preserving units: alpha v + sigma z."""
    alpha, sigma = vp(s)
    return alpha * v + sigma * (alpha * x)


def edm_slope(x, answer, s: float, data: float, sign: float):
    skip, out = data**2 / (s**2 + data**2), sign * s * data / (s**2 + data**2) ** 0.5
    return (x - skip * x - out * answer) / s


def zsnr() -> torch.nn.Module:
    made = sampling(ms.ModelSamplingDiscrete, ms.V_PREDICTION)
    made.set_sigmas(ms.rescale_zero_terminal_snr_sigmas(made.sigmas))
    return made


# kind: sampling object, what the network gets of x at a level, d from x, the network's answer and a level above 0, and at 0
KINDS = {
    "eps": (sampling(ms.ModelSamplingDiscrete, ms.EPS), lambda s: vp(s)[0], lambda x, f, s: f, lambda x, f: f),
    "v": (sampling(ms.ModelSamplingDiscrete, ms.V_PREDICTION), lambda s: vp(s)[0], v_slope, lambda x, f: f),
    "v with zero terminal SNR": (zsnr(), lambda s: vp(s)[0], v_slope, lambda x, f: f),
    "x0": (sampling(ms.ModelSamplingDiscrete, ms.X0), lambda s: vp(s)[0], lambda x, f, s: (x - f) / s, None),
    "flow": (sampling(ms.ModelSamplingDiscreteFlow, ms.CONST), lambda s: 1.0, lambda x, f, s: f, lambda x, f: f),
    "edm": (
        sampling(ms.ModelSamplingContinuousEDM, ms.EDM, sigma_data=0.5),
        lambda s: 1 / (s * s + 0.25) ** 0.5,
        lambda x, f, s: edm_slope(x, f, s, 0.5, 1.0),
        lambda x, f: -f,
    ),
    "v with sigma_data 0.5": (
        sampling(ms.ModelSamplingContinuousEDM, ms.V_PREDICTION, sigma_data=0.5),
        lambda s: 1 / (s * s + 0.25) ** 0.5,
        lambda x, f, s: edm_slope(x, f, s, 0.5, -1.0),
        lambda x, f: f,
    ),
    "cosmos": (
        sampling(ms.ModelSamplingCosmosRFlow, ms.COSMOS_RFLOW),
        lambda s: 1 / (s + 1),
        lambda x, f, s: (x + f) / (s + 1),
        lambda x, f: x + f,
    ),
}
if hasattr(ms, "V_PREDICTION_DDPM"):  # ComfyUI 0.16 has no CogVideoX
    KINDS["cogvideo"] = (
        sampling(ms.ModelSamplingDiscrete, ms.V_PREDICTION_DDPM),
        lambda s: 1.0,
        lambda x, f, s: (x - (x - s * f) * vp(s)[0]) / s,
        lambda x, f: f,
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("low", "high"), [(0.2, 0.7), (0.02, 0.03), (0.6, 0.999), (2.0, 5.0), (100.0, 4500.0)])
def test_the_answer_at_the_target_level_is_read_at_the_source_level_E13(kind: str, low: float, high: float):
    """Fault E13: only sigma_data 1 was right (4.9 % off at 0.5), and every kind but v was taken for eps."""
    model, scale, slope, _ = KINDS[kind]
    if kind == "flow" and high > 1:
        low, high = low / 5000, high / 5000
    x, network, denoise = a_network(model)
    got = ddim_step(denoise, x, Level(low, high), model)
    assert_close(got, x + slope(x, network(x * scale(low)), low) * (high - low))


@pytest.mark.parametrize("kind", KINDS)
def test_the_first_step_is_the_limit_at_sigma_0_E13(kind: str):
    model, scale, slope, at_zero = KINDS[kind]
    high = 0.03
    x, network, denoise = a_network(model)
    got = ddim_step(denoise, x, Level(0.0, high), model)
    if at_zero is None:  # the picture itself is predicted: at sigma 0 there is no d, so that of the target level counts
        x_high = x * scale(0.0) / scale(high)
        d = slope(x_high, network(x_high * scale(high)), high)
    else:
        d = at_zero(x, network(x * scale(0.0)))
    assert_close(got, x + d * high)


def a_network(model: torch.nn.Module):
    """x, a function that stands for the network, and its denoised prediction as core computes it."""
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(3)) * 3

    def network(seen: torch.Tensor) -> torch.Tensor:
        return torch.sin(2 * seen) + 0.3 * seen.flip(3)

    def denoise(y: torch.Tensor, sigma: float) -> torch.Tensor:
        level = torch.full((len(y),), sigma)
        return model.calculate_denoised(level, network(model.calculate_input(level, y)), y)

    return x, network, denoise


def assert_close(got: torch.Tensor, wanted: torch.Tensor) -> None:
    assert float((got - wanted).norm() / wanted.norm()) < 1e-4
