"""The figures of a page as inline SVG, in colours that follow the page's theme."""

import re
from collections import Counter
from io import StringIO
from typing import Final

import matplotlib
from matplotlib.figure import Figure

from noetherflow.errors import NoetherflowError
from noetherflow.numeric.findings import FamilyRecord, Findings
from noetherflow.numeric.page_style import THEMED
from noetherflow.numeric.palette import STYLE
from noetherflow.numeric.progress import shown
from noetherflow.numeric.recorded import RecordedRun, open_run
from noetherflow.numeric.trajectories import trajectories

__all__ = ["FAMILIES_DRAWN", "FIGURE_BUDGET", "chosen_families", "svg_of", "trajectory_figures"]

FAMILIES_DRAWN: Final = 40  # besides the failed ones
FIGURE_BUDGET: Final = 3_000_000  # characters; keeps a page of a large model small enough to send around
OUTLINE: Final = re.compile(r' d="[^"]*"')
DIGITS: Final = re.compile(r"(\d+\.\d{2})\d+")


def trajectory_figures(findings: Findings) -> tuple[list[str], list[str]]:
    """Trajectories of all failed families and of those that moved most.

    Parameters
    ----------
    findings : Findings
        Its folder may hold the recorded run.

    Returns
    -------
    figures : list of str
        HTML figures.
    remarks : list of str
        What the reader should know of what is not shown.
    """
    if findings.directory is None:
        return [], []
    try:
        run = open_run(findings.directory)
    except NoetherflowError as error:
        return [], [f"Trajectories are not shown. {error}"]
    if not run.rows:
        return [], [f"Trajectories are not shown: the run in '{findings.directory}' has no row."]
    recorded = {family.name for family in run.families}
    wanted = [family for family in chosen_families(findings) if family.name in recorded]
    figures: list[str] = []
    for family in shown(wanted, "Drawing trajectories"):
        if sum(map(len, figures)) > FIGURE_BUDGET:
            break
        figures.append(_figure(run, family))
    hidden = len(findings.families) - len(figures)
    drawn = f"Trajectories of {len(figures)} families are drawn, the failed ones and of each kind those that moved most"
    remarks = [f"{drawn}; {hidden} are not."]
    return figures, remarks if hidden else []


def chosen_families(findings: Findings) -> list[FamilyRecord]:
    """All failed families, the worst first, then of each kind in turn the one that moved most for its scale."""
    others = sorted((f for f in findings.families if f.verdict == "exact"), key=_relative_motion, reverse=True)
    rank: Counter[str] = Counter()
    turns: list[tuple[int, FamilyRecord]] = []
    for family in others:
        turns.append((rank[family.kind], family))
        rank[family.kind] += 1
    return [*findings.failed, *(family for _, family in sorted(turns, key=lambda turn: turn[0])[:FAMILIES_DRAWN])]


def svg_of(figure: Figure, label: str) -> str:
    """A figure as inline SVG whose colours follow the theme of the page.

    Parameters
    ----------
    figure : matplotlib.figure.Figure
        Drawn in the colours of `noetherflow.numeric.palette`.
    label : str
        What it shows, for readers who do not see it.

    Returns
    -------
    str
        An ``<svg>`` element that refers to nothing outside it.
    """
    out = StringIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = out.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    # outlines need no more than a hundredth of a point; the scales of letters do, and stay as they are
    text = OUTLINE.sub(lambda match: DIGITS.sub(r"\1", match.group()), re.sub(r"\n\s*", "\n", text))
    for colour, variable in THEMED.items():
        text = text.replace(colour, variable)
    return text.replace("<svg", f'<svg role="img" aria-label="{label}"', 1)


def _figure(run: RecordedRun, family: FamilyRecord) -> str:
    worst = f"worst at step {family.worst_step} in charge {family.worst_charge}"
    mark, caption = None, ""
    if family.verdict == "failed" and family.first_step is not None and family.first_charge is not None:
        mark = (family.first_step, family.first_charge)
        caption = f"leaves its bound at step {mark[0]} in charge {mark[1]}; {worst}"
    elif family.verdict == "failed":
        mark, caption = (family.worst_step, family.worst_charge), worst
    figure = trajectories(run, family.name, deviations=_deviations(run, family), mark=mark)
    drawn = svg_of(figure, "measured over predicted trajectories, and the residual against its bound")
    return f"<figure>{drawn}<figcaption>{caption}</figcaption></figure>"


def _deviations(run: RecordedRun, family: FamilyRecord) -> float | None:
    """How many deviations the bound allows, read off at the worst place; None where it cannot be told."""
    if "deviation" not in run.columns:
        return None
    rows = (run.steps == family.worst_step).nonzero()[0]
    column = run.column("deviation", family.name)
    if not rows.size or not 0 <= family.worst_charge < column.shape[1]:
        return None
    deviation = float(column[rows[0], family.worst_charge])
    return family.bound / deviation if deviation > 0 else None


def _relative_motion(family: FamilyRecord) -> float:
    return family.motion / family.scale if family.scale > 0 else family.motion
