"""Two figures of several methods against each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path

import matplotlib

matplotlib.use("agg")
from matplotlib import pyplot as plt

MARKS = "os^vD<>Ph*X"
Point = tuple[float, float]


def trade_off(
    file: Path,
    axes: tuple[str, str],
    panels: Mapping[str, tuple[Mapping[str, Point], Mapping[str, Sequence[Point]]]],
) -> None:
    """A panel for each network, with single points by name, and curves of points by name."""
    figure, places = plt.subplots(1, len(panels), figsize=(5.6 * len(panels), 6.4), squeeze=False, layout="constrained")
    for place, (title, (points, curves)) in zip(places[0], panels.items(), strict=True):
        for name, curve in curves.items():
            place.plot(*zip(*curve, strict=True), ".-", color="0.6", label=name.replace("`", ""))
        for (name, point), mark in zip(points.items(), cycle(MARKS), strict=False):
            place.plot(*point, mark, label=name.replace("`", ""))
        place.set(title=title, xlabel=axes[0], ylabel=axes[1])
        place.grid(alpha=0.3)
        place.legend(loc="upper left", bbox_to_anchor=(0, -0.14), fontsize=8)
    figure.savefig(file, dpi=110)
    plt.close(figure)
