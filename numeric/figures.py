"""Figures of a report: each family's residual against its bound, and what moved its charges.

Drawn through `matplotlib.figure.Figure`, which belongs to no window and to no global state.
"""

import math
from collections.abc import Sequence
from typing import Final

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, LogLocator, NullFormatter

from noetherflow.numeric.findings import FamilyRecord, Findings, amount
from noetherflow.numeric.palette import BAD, GOOD, INK, MUTED, STYLE, UNSURE, mechanism_colours
from noetherflow.numeric.trajectories import most_moving, trajectories

__all__ = ["ROWS_SHOWN", "budget_bars", "most_moving", "residual_overview", "summary", "trajectories"]

ROWS_SHOWN: Final = 48
ROW_HEIGHT: Final = 0.235
MARGIN: Final = 1.15
LABEL_LENGTH: Final = 34
COLOURS: Final = {"exact": GOOD, "failed": BAD, "not checked": UNSURE}


def residual_overview(findings: Findings) -> Figure:
    """Draw the largest residual over its bound, one line per family, the worst on top.

    Parameters
    ----------
    findings : Findings
        At most `ROWS_SHOWN` of its families are drawn, the failed ones first.

    Returns
    -------
    matplotlib.figure.Figure
        A logarithmic axis with a line at 1.
    """
    families = findings.by_badness[:ROWS_SHOWN]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(6.2, _height(families)), layout="constrained")
        axes = figure.subplots()
        _draw_overview(axes, families)
        _name_rows(axes, families)
        axes.set_title(_heading("Largest residual over its rounding bound", findings, families))
    return figure


def budget_bars(findings: Findings) -> Figure:
    """Draw which mechanism moved each family's charges, as signed shares, with the total motion beside each bar.

    Parameters
    ----------
    findings : Findings
        At most `ROWS_SHOWN` of its families are drawn, those whose charges moved most for their scale.

    Returns
    -------
    matplotlib.figure.Figure
        Stacked bars: what raised the charges to the right, what lowered them to the left.
    """
    families = sorted(findings.families, key=_relative_motion, reverse=True)[:ROWS_SHOWN]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.2, _height(families) + 0.3), layout="constrained")
        axes = figure.subplots()
        _draw_budget(axes, families, findings.mechanisms)
        _name_rows(axes, families)
        axes.set_title(_heading("What moved the charges", findings, families))
        _legend(figure, axes)
    return figure


def summary(findings: Findings) -> Figure:
    """Draw residuals and budget side by side, one line per family.

    Parameters
    ----------
    findings : Findings
        At most `ROWS_SHOWN` of its families are drawn, the failed ones first.

    Returns
    -------
    matplotlib.figure.Figure
        Two axes over the same lines.
    """
    families = findings.by_badness[:ROWS_SHOWN]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10.4, _height(families) + 0.3), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=(1, 1.15))
        _draw_overview(left, families)
        _draw_budget(right, families, findings.mechanisms)
        _name_rows(left, families)
        right.set_yticks([])
        right.set_ylim(left.get_ylim())
        left.set_title(_heading("Largest residual over its rounding bound", findings, families))
        right.set_title("What moved the charges")
        _legend(figure, right)
    return figure


def _draw_overview(axes: Axes, families: Sequence[FamilyRecord]) -> None:
    known = [f.ratio for f in families if f.verdict != "not checked" and 0 < f.ratio < math.inf]
    low, high = 10.0 ** math.floor(math.log10(min([*known, 0.1])) - 0.3), 10.0 ** math.ceil(math.log10(max([*known, 1.0])) + 0.4)
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    axes.axvspan(1.0, high, color=BAD, alpha=0.07, linewidth=0)
    axes.axvline(1.0, color=BAD, linewidth=1.0)
    for row, family in enumerate(families):
        _draw_ratio(axes, row, family, low, high)
    axes.xaxis.set_major_locator(LogLocator(numticks=6))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("residual / bound   (the law holds left of the line)")


def _draw_ratio(axes: Axes, row: int, family: FamilyRecord, low: float, high: float) -> None:
    colour = COLOURS[family.verdict]
    if family.verdict == "not checked":
        axes.text(low, row, "  not checked", color=UNSURE, va="center", fontsize=7.5)
    elif family.ratio == 0:
        axes.plot([low], [row], marker="<", color=colour, markersize=5.5, clip_on=False)
    elif not math.isfinite(family.ratio):
        axes.plot([high], [row], marker=">", color=colour, markersize=5.5, clip_on=False)
    else:
        axes.hlines(row, low, family.ratio, color=colour, linewidth=1.0, alpha=0.35)
        axes.plot([family.ratio], [row], marker="X" if family.verdict == "failed" else "o", color=colour, markersize=5.0)


def _draw_budget(axes: Axes, families: Sequence[FamilyRecord], mechanisms: Sequence[str]) -> None:
    colours = mechanism_colours(mechanisms)
    rows = np.arange(len(families))
    ends = {1: np.zeros(len(families)), -1: np.zeros(len(families))}
    for name in mechanisms:
        shares = np.array([_share(family, name) for family in families])
        for sign in (1, -1):
            part = np.where(np.sign(shares) == sign, shares, 0.0)
            label = name.replace("_", " ") if sign > 0 else None
            axes.barh(rows, part, left=ends[sign], height=0.62, color=colours[name], label=label, linewidth=0)
            ends[sign] += part
    axes.axvline(0.0, color=INK, linewidth=0.8)
    axes.set_xlim(-1.04, 1.04)
    axes.set_xticks([-1, -0.5, 0, 0.5, 1], ["100 %", "50 %", "0", "50 %", "100 %"])
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("lowered   ←   share of all motion   →   raised")
    for row, family in enumerate(families):
        axes.text(1.02, row, _signed(family.total_motion), transform=axes.get_yaxis_transform(), va="center", fontsize=7.5, color=MUTED)
    axes.text(1.02, -0.9, "total", transform=axes.get_yaxis_transform(), va="center", fontsize=7.5, color=INK)


def _share(family: FamilyRecord, mechanism: str) -> float:
    whole = math.fsum(abs(part) for part in family.motion_parts.values())
    share = family.motion_parts.get(mechanism, 0.0) / whole if whole > 0 else 0.0
    return share if math.isfinite(share) else 0.0


def _signed(value: float) -> str:
    return ("+" if value > 0 else "") + amount(value).replace("-", "−")


def _name_rows(axes: Axes, families: Sequence[FamilyRecord]) -> None:
    axes.yaxis.set_major_locator(FixedLocator(range(len(families))))
    axes.set_yticklabels([_short(family.name) for family in families])
    axes.tick_params(axis="y", length=0)
    for label, family in zip(axes.get_yticklabels(), families, strict=True):
        label.set_color(BAD if family.verdict == "failed" else INK)
    axes.set_ylim(len(families) - 0.4, -1.1)


def _legend(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside lower right", ncols=min(len(labels), 4), handlelength=1.1, columnspacing=1.2)


def _heading(text: str, findings: Findings, families: Sequence[FamilyRecord]) -> str:
    hidden = len(findings.families) - len(families)
    return f"{text} ({len(families)} of {len(findings.families)} families)" if hidden else text


def _relative_motion(family: FamilyRecord) -> float:
    motion = family.motion / family.scale if family.scale > 0 else family.motion
    return math.inf if math.isnan(motion) else motion


def _height(families: Sequence[FamilyRecord]) -> float:
    return MARGIN + ROW_HEIGHT * max(len(families), 2)


def _short(name: str) -> str:
    half = LABEL_LENGTH // 2
    return name if len(name) <= LABEL_LENGTH else f"{name[:half]}…{name[-half:]}"
