"""Figures of the comparisons."""

import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from study import Run, values


def smooth(x: Sequence[float], width: int = 5) -> np.ndarray:
    """Running mean; shorter at the ends."""
    x = np.asarray(x, float)
    kernel = np.ones(min(width, len(x)))
    return np.convolve(x, kernel, "same") / np.convolve(np.ones_like(x), kernel, "same")


def curves(found: Mapping[str, Sequence[Run]], panels: Sequence[str], path: Path, scale=None):
    """A panel a metric: the mean over seeds and its range, over steps (or FLOPs, by `scale`).

    Args:
        scale: arm -> what a step is on the axis, and its name; None counts steps.
    """
    figure, axes = plt.subplots(1, len(panels), figsize=(4.2 * len(panels), 3.2), squeeze=False)
    for axis, panel in zip(axes[0], panels, strict=True):
        for arm, some in found.items():
            lines = [[row for row in one.metrics if panel in row] for one in some]
            if not lines[0]:
                continue
            x = np.array([row["step"] for row in lines[0]], float)
            y = np.array([smooth([row[panel] for row in line]) for line in lines])
            x = x * (scale[0][arm] if scale else 1.0)
            (drawn,) = axis.plot(x, y.mean(0), label=arm, lw=1.2)
            axis.fill_between(x, y.min(0), y.max(0), alpha=0.15, color=drawn.get_color(), lw=0)
        axis.set_title(panel, fontsize=10)
        axis.set_xlabel(scale[1] if scale else "step")
        axis.set_yscale("log")
        axis.grid(alpha=0.3, which="both")
    axes[0][0].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=90)
    plt.close(figure)


def bars(
    found: Mapping[str, Sequence[Run]],
    entries: Mapping[str, str],
    path: Path,
    beside: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """A panel an entry of the summaries: a bar an arm, a dot a seed.

    beside: entry -> another, which is the same in all runs: a dashed line.
    """
    rows = math.ceil(len(entries) / 6)
    columns = math.ceil(len(entries) / rows)
    figure, axes = plt.subplots(rows, columns, figsize=(3.0 * columns, 3.2 * rows), squeeze=False)
    for axis in axes.flat[len(entries) :]:
        axis.remove()
    for axis, (name, title) in zip(axes.flat, entries.items(), strict=False):
        for place, (_, some) in enumerate(found.items()):
            if not all(name in one.summary for one in some):
                continue
            each = values(some, name)
            axis.bar(place, np.mean(each), color=f"C{place}", alpha=0.5)
            axis.plot([place] * len(each), each, ".", color="black", ms=4)
        axis.set_xticks(range(len(found)), list(found), rotation=30, ha="right", fontsize=7)
        if name in beside:
            some = next(iter(found.values()))
            axis.axhline(some[0].summary[beside[name]]["value"], color="gray", ls="--", lw=1)
        axis.set_title(textwrap.fill(title, 32), fontsize=9)
    figure.tight_layout()
    figure.savefig(path, dpi=90)
    plt.close(figure)
