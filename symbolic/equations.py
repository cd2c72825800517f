"""Equations on changes of tensors, written from the primitives that they pass through: what scales and shifts have in common."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from fractions import Fraction
from typing import Any

from noetherflow.symbolic.axes import AxisTable
from noetherflow.symbolic.linear_systems import Atoms, Systems, Unknown
from noetherflow.symbolic.primitives import Cell, Join, Pin, Program, Term, Value, cells, join_cells

Chosen = frozenset[tuple[str, int]]
Statement = Callable[[Systems, AxisTable, Any], None]


def stated(program: Program, wanted: frozenset[Atoms], statements: Mapping[type, Statement]) -> Systems:
    """All equations of a program, given what each primitive states."""
    systems = Systems(wanted)
    for step in program.steps:
        statements[type(step)](systems, program.table, step)
    return systems


def unknown_of(systems: Systems, value: Value, cell: Cell, chosen: Chosen) -> Unknown | None:
    """The unknown of a value, None where it must be zero."""
    return None if value.fixed else systems.unknown(value.root, cell, chosen)


def each(systems: Systems, table: AxisTable, terms: tuple[Term, ...]) -> Iterator[tuple[Atoms, Chosen, list[Unknown | None]]]:
    """For every block and wanted index set among some terms: the unknown of each term."""
    for row in cells(table, terms):
        for key, chosen in systems.positions(row):
            yield key, chosen, [unknown_of(systems, t.value, cell, chosen) for t, cell in zip(terms, row, strict=True)]


def summed(pairs: list[tuple[Unknown | None, int | Fraction]]) -> Mapping[Unknown | None, Fraction | int]:
    """Add up coefficients of equal unknowns."""
    out: dict[Unknown | None, Fraction | int] = {}
    for unknown, coefficient in pairs:
        out[unknown] = out.get(unknown, 0) + coefficient
    return out


def equal_pieces(systems: Systems, table: AxisTable, step: Join) -> None:
    """A whole and its pieces change alike."""
    for whole, cell, piece in join_cells(table, step):
        for key, chosen in systems.positions([whole]):
            parts = unknown_of(systems, step.whole, whole, chosen), unknown_of(systems, piece, cell, chosen)
            systems.state(key, summed([(parts[0], 1), (parts[1], -1)]))


def pinned(systems: Systems, table: AxisTable, step: Pin) -> None:
    """The value does not change."""
    unchanged(systems, table, Term(step.value, tuple(str(i) for i, _ in enumerate(step.value.axes))))


def unchanged(systems: Systems, table: AxisTable, *terms: Term) -> None:
    """No term changes."""
    for term in terms:
        kept = Term(term.value, tuple(label if axis else None for label, axis in zip(term.labels, term.value.axes, strict=True)))
        for key, _, (x,) in each(systems, table, (kept,)):
            systems.state(key, {x: 1})
