"""Which samplers follow one deterministic path, so that a trajectory means something to them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from comfy.samplers import Sampler

# k-diffusion function names behind core's sampler names; "ddim" is sample_euler in core.
DETERMINISTIC = frozenset(
    f"sample_{name}"
    for name in (
        "euler", "heun", "heunpp2", "exp_heun_2_x0", "dpm_2", "lms", "dpmpp_2m", "ipndm", "ipndm_v", "deis",
        "res_multistep", "gradient_estimation",
    )
)  # fmt: skip


def sampler_name(sampler: Sampler) -> str:
    function = getattr(sampler, "sampler_function", None)
    return getattr(function, "__name__", type(sampler).__name__).removeprefix("sample_")


def require_deterministic(sampler: Sampler, socket: str = "sampler") -> None:
    """Raise ValueError unless `sampler` is known to add no noise and to step along its sigmas only."""
    name = sampler_name(sampler)
    options = getattr(sampler, "extra_options", {})
    noisy = [key for key in ("s_churn", "eta") if float(options.get(key, 0.0) or 0.0) > 0.0]
    if f"sample_{name}" in DETERMINISTIC and not noisy:
        return
    got = f"{name} with {noisy[0]} > 0" if noisy else name
    known = ", ".join(sorted(n.removeprefix("sample_") for n in DETERMINISTIC))
    raise ValueError(
        f"{socket}: expected a sampler that follows one deterministic path ({known}, ddim), got {got}, "
        "which adds noise of its own or is not known to be free of it. euler is the one that retraces an inversion exactly."
    )
