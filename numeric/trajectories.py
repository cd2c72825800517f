"""Measured over predicted trajectories of one family, and the residual against its bound.

A figure reads at most `POINTS` rows of a run, evenly spaced, and always the one it is asked to show; so it costs the same for a run of a
hundred steps and for one of a million.
"""

from collections.abc import Sequence
from typing import Any, Final

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter
from numpy.typing import NDArray

from noetherflow.errors import ReportError
from noetherflow.numeric.palette import ACCENTS, BAD, INK, MUTED, STYLE
from noetherflow.numeric.recorded import RecordedRun

__all__ = ["POINTS", "most_moving", "sampled_rows", "trajectories"]

POINTS: Final = 400
SCANNED_ROWS: Final = 64
NAMED_CHARGES: Final = 4
TITLE_LENGTH: Final = 58

Floats = NDArray[np.float64]


def sampled_rows(rows: int, limit: int, keep: Sequence[int] = ()) -> NDArray[np.intp]:
    """Indices of at most `limit` evenly spaced rows, the first and the last among them, and of the rows to keep.

    Examples
    --------
    >>> sampled_rows(100, 3, keep=[7]).tolist()
    [0, 7, 50, 99]
    """
    spaced = np.linspace(0, max(rows - 1, 0), min(limit, rows)).round().astype(np.intp)
    return np.union1d(spaced, np.asarray([row for row in keep if 0 <= row < rows], dtype=np.intp))


def most_moving(run: RecordedRun, family: str, count: int = 3, keep: Sequence[int] = ()) -> list[int]:
    """The charges of a family that move most, judged at evenly spaced rows.

    Parameters
    ----------
    run : RecordedRun
        The run.
    family : str
        Name of the family.
    count : int
        How many charges.
    keep : sequence of int
        Charges that must be among them, for instance the worst.

    Returns
    -------
    list of int
        Indices within the family: those to keep first, then by falling motion.
    """
    measured = run.column("measured", family)
    start = np.array(measured[0]) if run.rows else np.zeros(measured.shape[1])
    motion = np.zeros_like(start)
    for row in sampled_rows(run.rows, SCANNED_ROWS):
        # a charge that left the numbers altogether has moved most of all
        motion = np.maximum(motion, np.nan_to_num(np.abs(measured[row] - start), nan=np.inf))
    order = [*dict.fromkeys((*(charge for charge in keep if 0 <= charge < motion.size), *np.argsort(-motion, kind="stable").tolist()))]
    return order[:count]


def trajectories(
    run: RecordedRun,
    family: str,
    charges: Sequence[int] | None = None,
    *,
    deviations: float | None = None,
    mark: tuple[int, int] | None = None,
    title: str | None = None,
) -> Figure:
    """Draw charges as measured and as predicted above, and their distance against its bound below.

    Parameters
    ----------
    run : RecordedRun
        Holds the columns ``measured`` and ``predicted``; ``bound``, or ``deviation`` (one standard deviation), are drawn where present.
    family : str
        Name of the family.
    charges : sequence of int, optional
        Indices within the family; the few that move most by default.
    deviations : float, optional
        How many deviations the bound allows. Without it the deviation itself is drawn and called so.
    mark : (step, charge), optional
        A place to mark, for instance where the residual is worst.
    title : str, optional
        Heading; the name of the family by default.

    Returns
    -------
    matplotlib.figure.Figure
        Two axes over one axis of steps.

    Raises
    ------
    ReportError
        The run has no row.
    """
    if not run.rows:
        raise ReportError(f"The run in '{run.directory}' has no row yet, so there is nothing to draw.", directory=run.directory)
    kept = [] if mark is None else [mark[1]]
    chosen = list(charges) if charges is not None else most_moving(run, family, keep=kept)
    at = [] if mark is None else [int(np.searchsorted(run.steps, mark[0]))]
    rows = sampled_rows(run.rows, POINTS, keep=at)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(5.6, 3.9))
        # fixed margins: small multiples line up, and nothing is laid out twice
        figure.subplots_adjust(left=0.125, right=0.8, top=0.885, bottom=0.115, hspace=0.1)
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
        _draw_motion(above, run, family, chosen, rows)
        _draw_residual(below, run, family, chosen, rows, deviations)
        if mark is not None:
            below.axvline(mark[0], color=BAD, linewidth=0.8, linestyle=(0, (1, 2)), zorder=1)
        above.set_title(_short(title or family))
        below.set_xlabel("step")
        below.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        figure.align_ylabels([above, below])
    return figure


def _draw_motion(axes: Axes, run: RecordedRun, family: str, chosen: Sequence[int], rows: NDArray[np.intp]) -> None:
    steps = run.steps[rows]
    measured, predicted = run.column("measured", family), run.column("predicted", family)
    for place, charge in enumerate(chosen):
        start = measured[0, charge]
        axes.plot(steps, measured[rows, charge] - start, color=INK, linewidth=1.0, zorder=2)
        colour, label = ACCENTS[place % len(ACCENTS)], f"charge {charge}"
        axes.plot(steps, predicted[rows, charge] - start, color=colour, linewidth=2.0, dashes=(3, 2), zorder=3, label=label)
    axes.plot([], [], color=INK, linewidth=1.0, label="measured")
    axes.plot([], [], color=MUTED, linewidth=2.0, dashes=(3, 2), label="predicted")
    axes.set_ylabel("motion  $Q_k - Q_0$")
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.ticklabel_format(axis="y", scilimits=(-3, 4), useMathText=True)
    axes.yaxis.get_offset_text().set_fontsize(7.5)
    # beside the axes, so that it never covers a line
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), borderaxespad=0.2, handlelength=1.8)


def _draw_residual(
    axes: Axes, run: RecordedRun, family: str, chosen: Sequence[int], rows: NDArray[np.intp], deviations: float | None
) -> None:
    steps = run.steps[rows]
    bounds, name = _bounds(run, family, chosen, rows, deviations)
    seen = False
    for place, charge in enumerate(chosen):
        residual = np.abs(run.column("measured", family)[rows, charge] - run.column("predicted", family)[rows, charge])
        colour = ACCENTS[place % len(ACCENTS)]
        looks: tuple[tuple[Floats, dict[str, Any]], ...] = (
            (residual, {"linestyle": "", "marker": ".", "markersize": 2.6}),
            (bounds[:, place], {"linewidth": 1.3}),
        )
        for values, look in looks:
            positive = np.where(values > 0, values, np.nan)  # an exact zero has no place on a logarithmic axis
            seen = seen or bool(np.isfinite(positive).any())
            axes.plot(steps, positive, color=colour, **look)
    if seen:
        _scale_residual(axes, name)
    else:
        axes.set_yticks([])
        axes.text(0.5, 0.5, "measured and predicted agree to the last bit", transform=axes.transAxes, ha="center", va="center", color=MUTED)
    axes.set_ylabel("residual")


def _scale_residual(axes: Axes, bound: str) -> None:
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(numticks=5))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.plot([], [], color=MUTED, linestyle="", marker=".", markersize=4, label="residual")
    if bound:
        axes.plot([], [], color=MUTED, linewidth=1.3, label=bound)
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), borderaxespad=0.2, handlelength=1.8)


def _bounds(run: RecordedRun, family: str, chosen: Sequence[int], rows: NDArray[np.intp], deviations: float | None) -> tuple[Floats, str]:
    """The bound of each chosen charge at each row, shape (rows, charges), and what to call it; nan and nothing where none is known."""
    column = "bound" if "bound" in run.columns else "deviation"
    if column not in run.columns:
        return np.full((len(rows), len(chosen)), np.nan), ""
    values = np.array(run.column(column, family)[np.ix_(rows, np.asarray(chosen, dtype=np.intp))])
    if column == "bound":
        return values, "bound"
    return (values, "1 deviation") if deviations is None else (values * deviations, "bound")


def _short(name: str) -> str:
    return name if len(name) <= TITLE_LENGTH else f"{name[: TITLE_LENGTH // 2]} … {name[-TITLE_LENGTH // 2 :]}"
