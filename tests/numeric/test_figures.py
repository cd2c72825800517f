"""Figures show what was measured, hide nothing that failed, and stay readable."""

import dataclasses
import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from support.runs import BREAKS_AT, DEVIATIONS, synthetic_report

from noetherflow.errors import ReportError
from noetherflow.numeric.figures import ROWS_SHOWN, budget_bars, most_moving, residual_overview, summary, trajectories
from noetherflow.numeric.palette import ACCENTS, mechanism_colours
from noetherflow.numeric.recorder import Recorder, open_run
from noetherflow.numeric.report import Report
from noetherflow.numeric.trajectories import POINTS, sampled_rows


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    return synthetic_report(tmp_path_factory.mktemp("figures") / "run", families=6, failing=(1,))


def bars(axes: Axes) -> list[Rectangle]:
    return [patch for patch in axes.patches if isinstance(patch, Rectangle)]


def row_labels(figure: Figure) -> list[str]:
    return [label.get_text() for label in figure.axes[0].get_yticklabels()]


def assert_rows_do_not_overlap(figure: Figure) -> None:
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    boxes = [label.get_window_extent(canvas.get_renderer()) for label in figure.axes[0].get_yticklabels()]
    boxes.sort(key=lambda box: box.y0)
    assert all(lower.y1 <= upper.y0 + 1 for lower, upper in pairwise(boxes))
    assert all(box.x0 >= 0 for box in boxes)


def test_the_charges_that_move_most_are_chosen(report: Report) -> None:
    assert report.directory is not None
    run = open_run(report.directory)
    name = report.families[0].name
    measured = np.array(run.column("measured", name))
    chosen = most_moving(run, name, count=1)
    assert np.abs(measured[:, chosen[0]] - measured[0, chosen[0]]).max() > 0.8 * np.abs(measured - measured[0]).max()
    assert most_moving(run, name, count=3, keep=[0])[0] == 0
    assert len(most_moving(run, name, count=10**6)) == measured.shape[1]


def test_a_charge_that_left_the_numbers_is_chosen_first(tmp_path: Path) -> None:
    with Recorder(tmp_path, {"measured": 3, "predicted": 3}, [{"name": "a", "start": 0, "count": 3}]) as recorder:
        recorder.record(0, {"measured": [0.0, 0.0, 0.0], "predicted": [0.0, 0.0, 0.0]})
        recorder.record(1, {"measured": [9.0, np.nan, 1.0], "predicted": [9.0, 0.0, 1.0]})
    run = open_run(tmp_path)
    assert most_moving(run, "a") == [1, 0, 2]
    trajectories(run, "a").savefig(tmp_path / "a.png")


def test_trajectories_draw_measured_under_predicted(report: Report) -> None:
    assert report.directory is not None
    run = open_run(report.directory)
    name = report.families[2].name
    figure = trajectories(run, name, [0, 3], deviations=DEVIATIONS)
    above, below = figure.axes
    measured, predicted = above.lines[0], above.lines[1]
    assert np.array_equal(measured.get_ydata(), run.column("measured", name)[:, 0] - run.column("measured", name)[0, 0])
    assert np.array_equal(predicted.get_ydata(), run.column("predicted", name)[:, 0] - run.column("measured", name)[0, 0])
    assert predicted.get_zorder() > measured.get_zorder()
    assert predicted.is_dashed()
    bound = below.lines[1]
    assert np.allclose(bound.get_ydata(), DEVIATIONS * run.column("deviation", name)[:, 0])
    assert below.get_yscale() == "log"


def test_a_residual_that_leaves_its_bound_is_seen_to_leave_it(report: Report) -> None:
    assert report.directory is not None
    family = report.failed[0]
    figure = trajectories(open_run(report.directory), family.name, deviations=DEVIATIONS, mark=(BREAKS_AT, 2))
    residual, bound = figure.axes[1].lines[:2]
    above = np.asarray(residual.get_ydata()) > np.asarray(bound.get_ydata())
    assert np.asarray(residual.get_xdata())[above].min() == BREAKS_AT


def test_agreement_to_the_last_bit_has_no_logarithm_and_says_so(tmp_path: Path) -> None:
    with Recorder(tmp_path, {"measured": 1, "predicted": 1}, [{"name": "a", "start": 0, "count": 1}]) as recorder:
        for step in range(3):
            recorder.record(step, {"measured": [step], "predicted": [step]})
    figure = trajectories(open_run(tmp_path), "a")
    figure.savefig(tmp_path / "a.png")
    assert "to the last bit" in figure.axes[1].texts[0].get_text()


def test_a_run_without_rows_has_nothing_to_draw(tmp_path: Path) -> None:
    Recorder(tmp_path, {"measured": 1, "predicted": 1}, [{"name": "a", "start": 0, "count": 1}]).close()
    with pytest.raises(ReportError, match="has no row yet"):
        trajectories(open_run(tmp_path), "a")


def test_a_long_run_is_drawn_through_few_rows_and_the_marked_one(tmp_path: Path) -> None:
    with Recorder(tmp_path, {"measured": 1, "predicted": 1}, [{"name": "a", "start": 0, "count": 1}], flush_every=1e9) as recorder:
        for step in range(0, 20_000, 2):
            recorder.record(step, {"measured": [0.0], "predicted": [1.0 if step == 7776 else 0.0]})
    line = trajectories(open_run(tmp_path), "a", mark=(7776, 0)).axes[1].lines[0]
    assert len(np.asarray(line.get_xdata())) <= POINTS + 1
    assert np.nanmax(np.asarray(line.get_ydata(), dtype=float)) == 1.0


def test_sampled_rows_cover_the_run() -> None:
    assert sampled_rows(0, 5).tolist() == []
    assert sampled_rows(3, 5).tolist() == [0, 1, 2]
    assert sampled_rows(1000, 5, keep=[17, 5000]).tolist() == [0, 17, 250, 500, 749, 999]


def test_the_overview_has_the_failed_on_top_and_right_of_one(report: Report) -> None:
    figure = residual_overview(report)
    assert row_labels(figure)[0] == report.failed[0].name
    low, high = figure.axes[0].get_xlim()
    assert low < min(family.ratio for family in report.families)
    assert high > report.failed[0].ratio > 1
    assert_rows_do_not_overlap(figure)


def test_bars_add_up_to_the_shares(report: Report) -> None:
    figure = budget_bars(report)
    names = row_labels(figure)
    widths = dict.fromkeys(range(len(names)), 0.0)
    for bar in bars(figure.axes[0]):
        widths[round(bar.get_y() + bar.get_height() / 2)] += abs(bar.get_width())
    assert all(math.isclose(width, 1.0) for width in widths.values())
    assert_rows_do_not_overlap(figure)


def test_both_halves_of_the_summary_have_the_same_rows(report: Report) -> None:
    left, right = summary(report).axes
    assert left.get_ylim() == right.get_ylim()
    for row, family in enumerate(report.by_badness):
        raised = sum(bar.get_width() for bar in bars(right) if round(bar.get_y() + bar.get_height() / 2) == row)
        whole = sum(abs(part) for part in family.motion_parts.values())
        assert math.isclose(raised, family.total_motion / whole, abs_tol=1e-12)


def test_many_families_stay_readable_and_the_hidden_are_counted(tmp_path: Path) -> None:
    many = synthetic_report(tmp_path / "run", families=60, failing=(59,), steps=20)
    figure = summary(many)
    assert len(row_labels(figure)) == ROWS_SHOWN
    assert row_labels(figure)[0] == many.failed[0].name
    assert f"{ROWS_SHOWN} of 60 families" in figure.axes[0].get_title(loc="left")
    assert_rows_do_not_overlap(figure)


def test_odd_figures_find_a_place(report: Report) -> None:
    ratios = (0.0, math.inf, math.nan, 1e-300)
    families = [dataclasses.replace(family, ratio=ratio) for family, ratio in zip(report.families, ratios, strict=False)]
    families.append(dataclasses.replace(report.families[4], verdict="not checked", motion_parts={}, name="long " * 30))
    figure = summary(dataclasses.replace(report, families=tuple(families)))
    assert_rows_do_not_overlap(figure)


def test_a_figure_is_written_in_the_format_of_its_name(report: Report, tmp_path: Path) -> None:
    report.plot(tmp_path / "deep" / "report.png")
    assert (tmp_path / "deep" / "report.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ReportError, match="cannot be written"):
        report.plot(tmp_path / "report.nonsense")


def test_mechanisms_keep_their_colour_and_differ() -> None:
    few, many = mechanism_colours(["momentum", "new"]), mechanism_colours(["new", "noise", "momentum", "other"])
    assert few["momentum"] == many["momentum"] == ACCENTS[1]
    assert len(set(many.values())) == 4
    assert mechanism_colours([f"m{place}" for place in range(20)])["m19"] in ACCENTS
