"""Figures of order parameters along a run: how far each class of units is from being symmetric, and what units it has at the end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from noetherflow.numeric.palette import ACCENTS, MUTED, STYLE

__all__ = ["FLOOR", "breaking_figure", "draw_overlaps"]

FLOOR: Final = 1e-33
"""Drawn in place of zero on a logarithmic axis: less than one rounding, squared."""

PANELS: Final = (
    ("breaking", "Δ = Σ‖ψᵢ − ψ̄‖² / Σ‖ψᵢ‖²", "log"),
    ("distinct", "distinct units", "linear"),
    ("participation", "directions that units span", "linear"),
)


def breaking_figure(steps: Sequence[float], classes: Mapping[str, Mapping[str, Sequence[float]]]) -> Figure:
    """Draw trajectories of order parameters, one line per class.

    Parameters
    ----------
    steps : sequence of float
    classes : mapping of str to mapping
        Name of a class -> trajectories "breaking", "distinct" and "participation".
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10.5, 3.1), layout="constrained")
        panels = figure.subplots(1, 3)
        for axes, (key, title, scale) in zip(panels, PANELS, strict=True):
            _draw(axes, steps, {name: values[key] for name, values in classes.items()}, scale)
            axes.set(title=title, xlabel="step")
        if len(classes) > 1:
            figure.legend(*panels[-1].get_legend_handles_labels(), loc="outside lower center", ncols=min(4, len(classes)))
    return figure


def _draw(axes: Axes, steps: Sequence[float], lines: Mapping[str, Sequence[float]], scale: str) -> None:
    for number, (name, values) in enumerate(lines.items()):
        shown = np.maximum(np.asarray(values, dtype=float), FLOOR) if scale == "log" else np.asarray(values, dtype=float)
        axes.plot(steps, shown, color=ACCENTS[number % len(ACCENTS)], linewidth=1.3, label=name)
    axes.set_yscale(scale)


def draw_overlaps(axes: Axes, overlaps: np.ndarray, title: str = "Cosines between units") -> None:
    """Draw a matrix of overlaps, shape (N, N), from -1 (blue) over 0 (white) to 1 (red)."""
    axes.imshow(overlaps, cmap="RdBu_r", vmin=-1, vmax=1, interpolation="nearest")
    axes.set(title=title, xticks=[], yticks=[])
    axes.grid(False)
    for spine in axes.spines.values():
        spine.set_color(MUTED)
