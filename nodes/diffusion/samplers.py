"""Which samplers follow one deterministic path, so that a trajectory means something to them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from comfy.samplers import Sampler

# Names as core's sampler list has them, where "ddim" is euler.
DETERMINISTIC = frozenset(
    (
        "euler", "heun", "heunpp2", "exp_heun_2_x0", "dpm_2", "lms", "dpmpp_2m", "ipndm", "ipndm_v", "deis",
        "res_multistep", "gradient_estimation",
    )
)  # fmt: skip
CFG_PP = frozenset(("euler_cfg_pp", "dpmpp_2m_cfg_pp", "res_multistep_cfg_pp", "gradient_estimation_cfg_pp"))
UNI_PC = frozenset(("uni_pc", "uni_pc_bh2"))
RECORDABLE = DETERMINISTIC | CFG_PP | UNI_PC

# For these KSampler and KSampler (Advanced) leave out the last level but one.
LEAVES_OUT_A_LEVEL = frozenset(("dpm_2", "dpm_2_ancestral", "uni_pc", "uni_pc_bh2"))

NOISE_OF_ITS_OWN = "which adds noise of its own at every step"
# Free of noise when their node sets eta to 0.
WITH_ETA = frozenset(
    (
        "euler_ancestral", "dpm_2_ancestral", "dpmpp_2s_ancestral", "dpmpp_sde", "dpmpp_sde_gpu", "dpmpp_2m_sde",
        "dpmpp_2m_sde_gpu", "dpmpp_2m_sde_heun", "dpmpp_2m_sde_heun_gpu", "dpmpp_3m_sde", "dpmpp_3m_sde_gpu",
        "res_multistep_ancestral", "exp_heun_2_x0_sde", "seeds_2", "seeds_3",
    )
)  # fmt: skip
REASONS = {
    **dict.fromkeys(WITH_ETA, NOISE_OF_ITS_OWN),
    **dict.fromkeys(
        (
            "euler_ancestral_cfg_pp", "dpmpp_2s_ancestral_cfg_pp", "res_multistep_ancestral_cfg_pp", "ddpm", "lcm",
            "er_sde", "sa_solver", "sa_solver_pece",
        ),
        NOISE_OF_ITS_OWN,
    ),
    **dict.fromkeys(("dpm_fast", "dpm_adaptive"), "which does not step along the sigmas but chooses its own noise levels"),
    **dict.fromkeys(CFG_PP, "which steps along the prediction without guidance"),
    **dict.fromkeys(UNI_PC, "which corrects each latent after the model was evaluated on it"),
}  # fmt: skip


def sampler_name(sampler: Sampler) -> str:
    """As core's list of samplers has it."""
    function = getattr(sampler, "sampler_function", None)
    name = getattr(function, "__name__", type(sampler).__name__)
    return name.removeprefix("sample_").removesuffix("_function").replace("unipc", "uni_pc")


def require_deterministic(sampler: Sampler, socket: str = "sampler", allowed: frozenset[str] = DETERMINISTIC) -> None:
    """Raise ValueError unless `sampler` is one of `allowed`, or would be with the eta of 0 that it has, and adds no noise."""
    name = sampler_name(sampler)
    options = getattr(sampler, "extra_options", {})
    if float(options.get("s_churn", 0.0) or 0.0) > 0.0:
        got, reason = f"{name} with s_churn > 0", NOISE_OF_ITS_OWN
    elif name in allowed or (name in WITH_ETA and options.get("eta") == 0):
        return
    else:
        got, reason = name, REASONS.get(name, "which is not known to be one")
    raise ValueError(
        f"{socket}: expected a sampler that follows one deterministic path ({', '.join(sorted(allowed))}, ddim), got {got}, "
        f"{reason}. euler is the one that retraces an inversion exactly."
    )
