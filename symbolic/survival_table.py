"""What survives a change of metric, as a table: families down, metrics across.

It answers "what do I lose by going from SGD to Adam?" for one network. Families of equal layers share a line.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from noetherflow.errors import RuleError
from noetherflow.symbolic.display import pattern, shortened
from noetherflow.symbolic.laws import Laws
from noetherflow.symbolic.metrics import Metric
from noetherflow.symbolic.survival import Charge, Constraint, survives
from noetherflow.symbolic.symmetries import Symmetry


@dataclass(frozen=True)
class Row:
    """Families that differ by the number of their layer only.

    Attributes
    ----------
    families : tuple of Symmetry
    outcomes : tuple of (Charge or Constraint)
        Of the first family, one for each metric.
    """

    families: tuple[Symmetry, ...]
    outcomes: tuple[Charge | Constraint, ...]

    @property
    def name(self) -> str:
        """Kind and parameters, with the number of families if there are several."""
        first = self.families[0]
        times = f" ({len(self.families)} families)" if len(self.families) > 1 else ""
        return f"{first.kind} {shortened([pattern(name) for name in first.parameters])}{times}"


@dataclass(frozen=True)
class Survival:
    """The table.

    Attributes
    ----------
    metrics : tuple of Metric
    rows : tuple of Row
    """

    metrics: tuple[Metric, ...]
    rows: tuple[Row, ...]

    def lost(self, before: str, after: str) -> tuple[Row, ...]:
        """Rows with a charge under one metric and none, or fewer, under another, both by name.

        Raises
        ------
        RuleError
            If the table has no such metric.
        """
        names = [metric.name for metric in self.metrics]
        if missing := [name for name in (before, after) if name not in names]:
            raise RuleError(f"The table has no metric {missing}; it has {names}.", missing=missing)
        old, new = names.index(before), names.index(after)
        return tuple(row for row in self.rows if _generators(row.outcomes[old]) > _generators(row.outcomes[new]))

    def __repr__(self) -> str:
        lines = []
        for row in self.rows:
            lines.append(row.name)
            width = max(len(metric.name) for metric in self.metrics)
            lines += [f"  {metric.name:<{width}}  {outcome}" for metric, outcome in zip(self.metrics, row.outcomes, strict=True)]
        return "\n".join(lines) or "no families"

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{html.escape(metric.name)}</th>" for metric in self.metrics)
        body = "".join(
            f"<tr><th>{html.escape(row.name)}</th>" + "".join(f"<td>{html.escape(str(x))}</td>" for x in row.outcomes) + "</tr>"
            for row in self.rows
        )
        return f"<table><thead><tr><th></th>{head}</tr></thead><tbody>{body}</tbody></table>"


def what_survives(symmetries: Laws | Iterable[Symmetry], metrics: Sequence[Metric]) -> Survival:
    """Which families have charges under which metrics.

    Parameters
    ----------
    symmetries : Laws, or an iterable of Symmetry
    metrics : sequence of Metric

    Returns
    -------
    Survival
        Exact; shown as text and in notebooks.

    Raises
    ------
    RuleError
        If there is no metric, or two have one name.
    """
    names = [metric.name for metric in metrics]
    if not names or len(set(names)) < len(names):
        raise RuleError(f"A table needs metrics with different names; got {names}. Give each its own `name`.", names=names)
    found = symmetries.symmetries if isinstance(symmetries, Laws) else symmetries
    groups: dict[object, list[Symmetry]] = {}
    for symmetry in found:
        groups.setdefault(_likeness(symmetry), []).append(symmetry)
    rows = [Row(tuple(members), tuple(survives(members[0], metric) for metric in metrics)) for members in groups.values()]
    return Survival(tuple(metrics), tuple(rows))


def _likeness(symmetry: Symmetry) -> object:
    """Equal for families that differ by the number of their layer: one of them speaks for all."""
    actions = tuple((pattern(a.parameter), a.form, a.weight, a.places, len(a.factors), len(a.patch.indices)) for a in symmetry.actions)
    return symmetry.kind, actions


def _generators(outcome: Charge | Constraint) -> int:
    """Rank of an outcome: all or the symmetric part of a matrix family, its diagonal, none."""
    return 0 if isinstance(outcome, Constraint) else 1 if outcome.generators == "diagonal" else 2
