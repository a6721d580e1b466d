"""How sure a measured figure is: 95 % intervals of shares, of means and of paired differences, as a page writes them."""

from __future__ import annotations

import numpy as np
from scipy.stats import binomtest, bootstrap
from torch import Tensor

RESAMPLES = 5000


def share(right: int, count: int) -> str:
    """A share and its interval (Wilson)."""
    interval = binomtest(right, count).proportion_ci(method="wilson")
    return f"{100 * right / count:.0f} % ({100 * interval.low:.0f} to {100 * interval.high:.0f})"


def mean(values: Tensor, digits: int = 2, sign: str = "") -> str:
    """The mean of at least two values and its interval (bootstrap). `sign` is "+" where the sign says something."""
    low, high = mean_interval(values)
    form = f"{sign}.{digits}f"
    return f"{float(values.mean()):{form}} ({low:{form}} to {high:{form}})"


def difference(a: Tensor, b: Tensor, digits: int = 2) -> str:
    """Of the means of a and b, which hold what two methods make of the same pictures (paired bootstrap)."""
    return mean(a.double() - b.double(), digits, "+")


def differ(a: Tensor, b: Tensor) -> bool:
    """Whether the interval of the paired difference leaves out 0. If it does not, a page calls it a tie."""
    low, high = mean_interval(a.double() - b.double())
    return low > 0 or high < 0


def ahead(a: Tensor, b: Tensor) -> bool:
    """Whether a's mean is above b's by more than chance: the interval of the paired difference lies above 0."""
    return mean_interval(a.double() - b.double())[0] > 0


def mean_interval(values: Tensor) -> tuple[float, float]:
    """Of the mean of values [N], resampled with a fixed seed."""
    samples = values.double().numpy()
    if np.ptp(samples) == 0:
        return float(samples[0]), float(samples[0])
    found = bootstrap(
        (samples,), np.mean, n_resamples=RESAMPLES, method="percentile", random_state=np.random.default_rng(0)
    ).confidence_interval
    return float(found.low), float(found.high)
