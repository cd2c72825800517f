"""A report in the terminal: the table of families, the budget, and one sentence.

A model of forty blocks has forty families of one kind, and forty equal lines hide the one that matters. Beyond `GROUP_BEYOND` lines the
families of one kind and verdict share a line; a failed family always keeps its own.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from rich.box import SIMPLE_HEAD
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from noetherflow.numeric.findings import FamilyRecord, Findings, amount, plural, scientific

__all__ = ["GROUP_BEYOND", "Line", "Listing", "lines"]

GROUP_BEYOND: Final = 25
STYLES: Final = {"exact": "green", "failed": "bold red", "not checked": "yellow"}
NAME_WIDTH: Final = 30
FIGURE_WIDTH: Final = 14
RATIO_FROM: Final = 96  # narrower than this, the names need the room more
LISTED_MECHANISMS: Final = 3


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a table: a family, or all families of one kind and verdict.

    Parameters
    ----------
    label : str
        Name of the family, or how many share the line.
    members : tuple of FamilyRecord
        The families, the worst first.
    """

    label: str
    members: tuple[FamilyRecord, ...]

    @property
    def worst(self) -> FamilyRecord:
        """The member with the largest ratio."""
        return self.members[0]

    @property
    def charges(self) -> int:
        """Charges of all members."""
        return sum(member.charges for member in self.members)

    @property
    def motion(self) -> float:
        """Largest motion of a charge in any member."""
        return max(member.motion for member in self.members)

    @property
    def total_motion(self) -> float:
        """Signed motion summed over the charges of all members."""
        return math.fsum(member.total_motion for member in self.members)

    def part(self, mechanism: str) -> float:
        """Signed contribution of one mechanism, summed over the charges of all members."""
        return math.fsum(member.motion_parts.get(mechanism, 0.0) for member in self.members)


def lines(findings: Findings, *, verbose: bool = False) -> tuple[Line, ...]:
    """The lines of the tables, the failed families first, the others in the order of the report.

    Parameters
    ----------
    findings : Findings
        What was found.
    verbose : bool
        One line per family, however many there are.

    Returns
    -------
    tuple of Line
        Every family is a member of exactly one.
    """
    failed = [Line(family.name, (family,)) for family in findings.failed]
    others = [family for family in findings.families if family.verdict != "failed"]
    if verbose or len(findings.families) <= GROUP_BEYOND:
        return (*failed, *(Line(family.name, (family,)) for family in others))
    groups: dict[tuple[str, str], list[FamilyRecord]] = {}
    for family in others:
        groups.setdefault((family.kind, family.verdict), []).append(family)
    return (*failed, *(_group(members) for members in groups.values()))


def _group(members: list[FamilyRecord]) -> Line:
    label = members[0].name if len(members) == 1 else f"{len(members)} families"
    return Line(label, tuple(sorted(members, key=lambda member: member.badness, reverse=True)))


@dataclass(frozen=True, slots=True)
class Listing:
    """What rich prints for a report.

    Parameters
    ----------
    findings : Findings
        What was found.
    verbose : bool
        One line per family, however many there are.
    """

    findings: Findings
    verbose: bool = False

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the parts, fitted to the width of the console."""
        shown = lines(self.findings, verbose=self.verbose)
        yield Text(self.findings.title, style="bold")
        if shown:
            yield _families_table(shown, options.max_width)
            yield from _budget_part(self.findings, shown, options.max_width)
        yield from self._remarks(shown)
        yield Text(self.findings.sentence(), style=_tone(self.findings))

    def _remarks(self, shown: tuple[Line, ...]) -> Iterator[Text]:
        for line in shown:
            if line.worst.verdict != "exact" and line.worst.reason:
                yield Text.assemble((f"{line.label}: ", STYLES[line.worst.verdict]), line.worst.reason)
        if self.findings.opaque:
            yield Text("Nothing was let through: " + ", ".join(self.findings.opaque), style="yellow")
        for note in self.findings.notes:
            yield Text(f"Note: {note}", style="dim")
        if any(len(line.members) > 1 for line in shown):
            yield Text("Families of one kind share a line: figures are of the worst. verbose=True shows each.", style="dim")


def _tone(findings: Findings) -> str:
    return "bold red" if findings.failed else "bold green" if findings.holds else "bold yellow"


def _families_table(shown: tuple[Line, ...], width: int) -> Table:
    narrow = width < RATIO_FROM
    table = Table(box=SIMPLE_HEAD, header_style="bold", pad_edge=not narrow, collapse_padding=narrow)
    table.add_column("family", overflow="fold", min_width=9)
    table.add_column("kind", no_wrap=True)
    ratio = () if narrow else ("ratio",)
    for heading in ("charges", "motion", "residual", "bound", *ratio):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    for line in shown:
        worst = line.worst
        figures = (scientific(line.motion), scientific(worst.residual), scientific(worst.bound), *(amount(worst.ratio) for _ in ratio))
        table.add_row(Text(line.label), Text(worst.kind), f"{line.charges:,}", *figures, Text(worst.verdict, style=STYLES[worst.verdict]))
    return table


def _budget_part(findings: Findings, shown: tuple[Line, ...], width: int) -> Iterator[Table]:
    mechanisms = findings.mechanisms
    if not mechanisms:
        return
    if NAME_WIDTH + FIGURE_WIDTH * (len(mechanisms) + 1) <= width:
        yield _wide_budget(shown, mechanisms)
    else:
        yield _narrow_budget(shown, mechanisms)


def _budget_frame() -> Table:
    title = "Budget: what moved the charges, summed over each family"
    table = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, header_style="bold")
    table.add_column("family", overflow="fold", min_width=9)
    table.add_column("motion", justify="right", no_wrap=True)
    return table


def _wide_budget(shown: tuple[Line, ...], mechanisms: tuple[str, ...]) -> Table:
    table = _budget_frame()
    for name in mechanisms:
        table.add_column(name.replace("_", " "), justify="right", max_width=FIGURE_WIDTH)
    for line in shown:
        parts = [line.part(name) for name in mechanisms]
        largest = max(map(abs, parts))
        cells = [Text(scientific(part), style="bold" if abs(part) == largest > 0 else "") for part in parts]
        table.add_row(_budget_label(line), scientific(line.total_motion), *cells)
    return table


def _narrow_budget(shown: tuple[Line, ...], mechanisms: tuple[str, ...]) -> Table:
    table = _budget_frame()
    table.add_column("moved by, the largest first")
    for line in shown:
        parts = sorted(((line.part(name), name) for name in mechanisms), key=lambda item: -abs(item[0]))
        told = [f"{name.replace('_', ' ')} {scientific(part)}" for part, name in parts[:LISTED_MECHANISMS] if part]
        table.add_row(_budget_label(line), scientific(line.total_motion), ", ".join(told) or "nothing")
    return table


def _budget_label(line: Line) -> Text:
    if len(line.members) == 1:
        return Text(line.label)
    return Text(f"{line.worst.kind}, {plural(len(line.members), 'family').replace('familys', 'families')}")
