"""Reports: the judgement, the words, the tables, and every way out of the program."""

import dataclasses
import json
import math
import re
from html.parser import HTMLParser
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console
from support.runs import BREAKS_AT, synthetic_report

from noetherflow.errors import ReportError
from noetherflow.numeric.findings import amount
from noetherflow.numeric.formulas import formula
from noetherflow.numeric.report import FamilyRecord, Report
from noetherflow.numeric.terminal import lines


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Report:
    return synthetic_report(tmp_path_factory.mktemp("good") / "run", families=4)


@pytest.fixture(scope="module")
def bad(tmp_path_factory: pytest.TempPathFactory) -> Report:
    return synthetic_report(tmp_path_factory.mktemp("bad") / "run", families=40, failing=(3, 20))


def shown(report: Report, width: int, *, verbose: bool = False) -> str:
    out = StringIO()
    report.render(Console(file=out, width=width, color_system=None), verbose=verbose)
    return out.getvalue()


def with_family(report: Report, place: int, **changes: object) -> Report:
    families = list(report.families)
    families[place] = dataclasses.replace(families[place], **changes)  # type: ignore[arg-type]
    return dataclasses.replace(report, families=tuple(families))


def test_a_report_holds_only_when_every_law_was_checked_and_is_exact(good: Report, bad: Report) -> None:
    assert good.holds
    assert not bad.holds
    assert not with_family(good, 1, verdict="not checked").holds
    assert not dataclasses.replace(good, families=()).holds


def test_the_worst_is_a_failed_one_whatever_the_ratios(good: Report, bad: Report) -> None:
    assert good.worst is not None
    assert good.worst.ratio == max(family.ratio for family in good.families)
    assert [family.name for family in bad.failed] == [family.name for family in bad.by_badness[:2]]
    odd = with_family(good, 2, verdict="failed", ratio=0.01)
    assert odd.worst is odd.families[2]


def test_a_ratio_that_is_no_number_counts_as_the_worst(good: Report) -> None:
    lost = with_family(good, 3, verdict="failed", ratio=math.nan)
    lost = with_family(lost, 0, verdict="failed", ratio=1e30)
    assert lost.worst is lost.families[3]


def test_the_sentence_of_a_run_that_holds(good: Report) -> None:
    charges = sum(family.charges for family in good.families)
    assert good.sentence().startswith(f"4 of 4 laws hold: {charges} charges over 200 steps; the largest residual is ")
    assert "of the charge scale, 0." in good.sentence()
    assert good.sentence().endswith("of its rounding bound.")


def test_the_sentence_of_a_run_that_fails_names_where(bad: Report) -> None:
    sentence = bad.sentence()
    assert sentence.startswith("2 of 40 laws fail: 'blocks.")
    assert f"The first departure is at step {BREAKS_AT} in charge 2 of " in sentence
    assert "at step 200 in charge 2 of" in sentence
    unknown = with_family(with_family(bad, 3, first_step=None), 20, first_step=None)
    assert "The largest departure, " in unknown.sentence()


def test_the_sentence_never_claims_what_was_not_checked(good: Report) -> None:
    assert with_family(good, 0, verdict="not checked").sentence().startswith("3 of 4 laws hold")
    assert with_family(good, 0, verdict="not checked").sentence().endswith("1 law was not checked.")
    nothing = dataclasses.replace(good, families=(dataclasses.replace(good.families[0], verdict="not checked"),))
    assert nothing.sentence().startswith("Nothing was checked")
    assert nothing.worst is None
    assert dataclasses.replace(good, families=()).sentence() == "There was no law to check."


def test_an_exact_zero_is_called_so(good: Report) -> None:
    one = dataclasses.replace(good, families=(dataclasses.replace(good.families[0], residual=0.0, ratio=0.0),))
    assert one.sentence().startswith("1 of 1 law holds: ")
    assert one.sentence().endswith("the largest residual is exactly zero.")


def test_the_tables_have_one_row_per_family_and_per_mechanism(bad: Report) -> None:
    table, budget = bad.table(), bad.budget()
    assert [row["family"] for row in table] == [family.name for family in bad.families]
    assert set(table[0]) >= {"kind", "charges", "motion", "residual", "bound", "verdict"}
    assert len(budget) == 40 * 4
    for family in bad.families:
        rows = [row for row in budget if row["family"] == family.name]
        assert math.isclose(sum(row["share"] for row in rows), 1.0)
        assert math.isclose(math.fsum(row["contribution"] for row in rows), family.total_motion, rel_tol=1e-12, abs_tol=1e-15)


def test_a_mechanism_without_a_sum_is_told_as_missing(good: Report) -> None:
    half = with_family(good, 0, motion_parts={"momentum": 0.0}, budget={"momentum": 0.0, "noise": 2.0})
    momentum, noise = half.budget()[:2]
    assert (momentum["share"], noise["largest"]) == (0.0, 2.0)
    assert math.isnan(noise["contribution"])


@pytest.mark.parametrize("width", [70, 80, 120, 200])
def test_the_terminal_shows_every_family_its_verdict_and_the_sentence(good: Report, width: int) -> None:
    text = shown(good, width)
    assert text.count(" exact") == 4
    assert "Budget" in text
    squeezed = re.sub(r"\s+", " ", text)
    assert good.sentence() in squeezed
    assert "aten.group_norm at 'block3.norm'" in squeezed
    assert max(map(len, text.splitlines())) <= width


def test_many_families_are_grouped_but_failed_ones_keep_their_line(bad: Report) -> None:
    grouped = lines(bad)
    assert [line.label for line in grouped[:2]] == [family.name for family in bad.failed]
    assert len(grouped) < 10
    members = [member.name for line in grouped for member in line.members]
    assert sorted(members) == sorted(family.name for family in bad.families)
    assert all(line.worst.ratio == max(member.ratio for member in line.members) for line in grouped)
    text = shown(bad, 120)
    assert all(family.name in text for family in bad.failed)
    assert bad.families[0].name not in text
    assert all(family.name in shown(bad, 120, verbose=True) for family in bad.families)


def test_few_families_are_not_grouped(good: Report) -> None:
    assert [line.label for line in lines(good)] == [family.name for family in good.families]


def test_names_are_not_read_as_markup(good: Report) -> None:
    odd = with_family(good, 0, name="[red]x[/red] <b>&", verdict="failed", reason="[bold]why[/bold]")
    assert "[red]x[/red] <b>&" in shown(odd, 140)
    assert "[bold]why[/bold]" in shown(odd, 140)
    assert "&lt;b&gt;&amp;" in odd._repr_html_()


def test_printing_plainly_has_no_escape_codes(good: Report) -> None:
    assert "\x1b" not in str(good)
    assert good.sentence() in re.sub(r"\s+", " ", str(good))
    assert repr(good) == f"<Report '{good.title}': {good.sentence()}>"


def test_json_gives_an_equal_report_back(bad: Report, tmp_path: Path) -> None:
    path = bad.to_json(tmp_path / "deep" / "report.json")
    assert Report.from_json(path) == bad


def test_json_keeps_what_json_has_no_numbers_for(good: Report, tmp_path: Path) -> None:
    odd = with_family(good, 0, ratio=math.inf, residual=-math.inf)
    path = odd.to_json(tmp_path / "report.json")
    json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert Report.from_json(path) == odd
    lost = with_family(good, 0, ratio=math.nan).to_json(tmp_path / "lost.json")
    assert math.isnan(Report.from_json(lost).families[0].ratio)


@pytest.mark.parametrize("text", ["no json", "[]", "{}", '{"format": 99, "families": []}'])
def test_what_is_no_report_is_told(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(ReportError, match="not a report written by to_json"):
        Report.from_json(tmp_path / "x.json")
    with pytest.raises(ReportError, match="No such file"):
        Report.from_json(tmp_path / "gone.json")


def test_a_report_that_cannot_be_written_is_not_lost(good: Report, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for write in (good.to_html, good.to_json):
        with pytest.raises(ReportError, match=r"Not a directory|File exists|Nothing is lost") as caught:
            write(tmp_path / "file" / "report")
        fallback = caught.value.data["fallback"]
        assert str(fallback) in str(caught.value)
        assert Report.from_json(fallback) == good
        fallback.unlink()
    with pytest.raises(ReportError, match="it is a folder"):
        good.to_html(tmp_path)


class Page(HTMLParser):
    """What a page refers to, and whether its elements close."""

    VOID = frozenset({"meta", "br", "img", "link", "input"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.identifiers: list[str] = []
        self.tags: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "xlink:href", "data"):
                self.addresses.append(value or "")
            if name == "id":
                self.identifiers.append(value or "")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_one_file_that_refers_to_nothing_outside(good: Report, tmp_path: Path) -> None:
    text = good.to_html(tmp_path / "report.html").read_text()
    page = Page(text)
    assert page.open == []
    assert all(address.startswith("#") for address in page.addresses)
    assert not re.search(r"url\((?!#)|@import", text)
    assert {address[1:] for address in page.addresses} <= set(page.identifiers)
    assert "default-src 'none'" in text
    assert page.tags.count("script") == 1


def test_the_page_says_everything(good: Report, tmp_path: Path) -> None:
    text = good.to_html(tmp_path / "report.html").read_text()
    assert "<title>linear 3</title>" in text
    assert "<?xml" not in text
    assert "prefers-color-scheme: dark" in text
    assert text.count("measured over predicted trajectories") == 4
    assert text.count('class="formula"') == 8
    for family in good.families:
        assert f"<code>{family.name}</code>" in text
    for value in good.settings.values():
        assert value in text


def test_the_figures_of_the_page_follow_its_theme(good: Report, tmp_path: Path) -> None:
    text = good.to_html(tmp_path / "report.html").read_text()
    drawn = text[text.index("Measured over predicted") :]
    assert "var(--ink)" in drawn
    assert "#1b1f24" not in drawn.partition("<script>")[0]


def test_the_page_of_a_large_model_stays_small_and_shows_every_failure(tmp_path: Path) -> None:
    failing = tuple(range(0, 60, 5))
    report = synthetic_report(tmp_path / "run", families=60, failing=failing)
    path = report.to_html(tmp_path / "report.html")
    text = path.read_text()
    assert path.stat().st_size < 5_000_000
    assert text.count("leaves its bound at step 12 in charge 2") == len(failing)
    assert "36 are not" in text


def test_a_page_is_safe_from_its_names(good: Report, tmp_path: Path) -> None:
    odd = with_family(good, 0, name="<script>alert(1)</script>", reason="<img src=x>", charge_latex=r"\undefined{<b>}")
    text = dataclasses.replace(odd, title="<i>title</i>", notes=("<u>note</u>",)).to_html(tmp_path / "x.html").read_text()
    assert Page(text).tags.count("script") == 1
    assert not {"img", "i", "u", "b"} & set(Page(text).tags) - {"i", "b"}
    assert "<i>title" not in text
    assert "\\undefined{&lt;b&gt;}" in text


def test_a_page_without_its_trajectories_says_so(good: Report, tmp_path: Path) -> None:
    gone = dataclasses.replace(good, directory=tmp_path / "gone")
    assert "Trajectories are not shown. No recorded run" in gone.to_html(tmp_path / "a.html").read_text()
    none = dataclasses.replace(good, directory=None, graph_svg="", settings={}, families=(), opaque=())
    assert "There was no law to check." in none.to_html(tmp_path / "b.html").read_text()


def test_latex_escapes_and_balances(bad: Report) -> None:
    text = bad.to_latex()
    assert text.count(r"\begin") == text.count(r"\end") == 2
    rows = text[text.index(r"\midrule") : text.index(r"\bottomrule")].splitlines()[1:]
    assert len(rows) == 40
    assert all(row.count("&") == 6 for row in rows)
    assert r"value\_output" in text
    assert not re.search(r"(?<!\\)_", text)
    assert rows[0].endswith(r"failed \\")


@pytest.mark.parametrize(
    ("latex", "drawn"),
    [
        (r"\begin{aligned} a &= \tfrac12 \\ b &= \left\lVert W \right\rVert \end{aligned}", True),
        (r"\operatorname{tr}(X W W^\top)", True),
        (r"\begin{pmatrix} 1 & 2 \end{pmatrix}", False),
        (r"\frac{1", False),
    ],
)
def test_formulas_are_drawn_or_shown_as_written(latex: str, drawn: bool) -> None:
    assert formula(latex).startswith("<svg" if drawn else "<pre")
    assert formula("  ") == ""


def test_the_outline_of_a_formula_ends_where_each_path_began() -> None:
    numbers = re.findall(r'viewBox="([^"]*)"', formula("x = y"))[0].split()
    assert len(re.findall(r"<path", formula(r"x \\ y"))) == 2
    assert float(numbers[2]) > float(numbers[3]) > 0


@pytest.mark.parametrize(("value", "text"), [(0.0, "0"), (0.5, "0.50"), (7.25, "7.2"), (412.0, "412"), (1e-9, "1.0e-09"), (3e5, "3.0e+05")])
def test_amounts(value: float, text: str) -> None:
    assert amount(value) == text


def test_the_worst_of_nothing_is_nothing() -> None:
    empty = Report("nothing", ())
    assert (empty.worst, empty.failed, empty.table(), empty.budget()) == (None, (), [], [])
    assert isinstance(empty.plot().axes, list)
    assert FamilyRecord.__doc__
