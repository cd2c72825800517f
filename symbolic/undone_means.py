"""What a centring normalisation does not see of its input, and readers beside it undo.

A stream x that goes into LayerNorm(x + f(x)) and, in f, to weights W may change by X = 1 u^T, for every vector u: the norm does not see
what is the same along its index, whatever else that depends on, and readers undo it, W <- W exp(-X). What makes x takes X: P <- exp(X) P.
With gains g on the way it is g X g^-1. This is the transpose of what readers do behind a norm (`empty_columns`), and like that it has no
charge. Where nothing reads x beside the norm it is a shift of what makes x along 1, which is a family already.

Source: own (GL(n) of `algebras`, restricted to the matrices whose result a centring norm does not see).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from noetherflow.symbolic.algebras import Carrier, Search
from noetherflow.symbolic.empty_columns import Columns, agreeing
from noetherflow.symbolic.ignored import Ignored
from noetherflow.symbolic.primitives import Add, Cell, Normalize, Program, Term, cells


def undone_means(program: Program, ignored: Ignored) -> list[Columns]:
    """Every component of carriers that some normalisation looks past and some weight reads, and that meets nothing which forbids it."""
    if not any(isinstance(step, Normalize) and step.shift for step in program.steps):
        return []
    search = _Search(program, ignored=ignored)
    for step in program.steps:
        search.state(step)
    return list(search.columns())


@dataclass
class _Search(Search):
    """The search for algebras, in which what is not seen is not followed."""

    ignored: Ignored = field(default_factory=dict)
    begun: set[Carrier] = field(default_factory=set)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.wanted = {(atom, others) for atom, others in self.wanted if not others}

    def state(self, step: object) -> None:
        """Add the relations of one primitive."""
        if isinstance(step, Add):
            for row in cells(self.program.table, (step.out, *step.operands)):
                self._add(step, row)
        else:
            super().state(step)

    def _add(self, step: Add, row: Sequence[Cell]) -> None:
        terms, unseen = (step.out, *step.operands), self.ignored.get((step.out.value.root, row[0].block), set())
        for place, spectators in self._positions(row):
            carriers = [self._carrier(t, cell, place, spectators) for t, cell in zip(terms, row, strict=True) if place in cell.leaves]
            if place in row[0].leaves and frozenset({row[0].leaves[place].identity}) in unseen:
                self.begun.update(carrier for carrier in carriers[1:] if carrier is not None)
            elif len(carriers) != len(terms):
                self._forbid(carriers)
            else:
                for other in carriers[1:]:
                    self._join(carriers[0], other)

    def _normalize(self, step: Normalize, row: Sequence[Cell]) -> None:
        along = [place for place in row[1].leaves if place[0] in step.over]
        for place, spectators in self._positions(row):
            out, x = (self._carrier(t, cell, place, spectators) for t, cell in zip((step.out, step.operand), row, strict=True))
            self._forbid([out])
            if step.shift and along == [place] and self._is_whole(step.operand, place[0]) and x is not None:
                self.begun.add(x)
            else:
                self._forbid([x])

    def _is_whole(self, term: Term, label: str) -> bool:
        axis = dict(zip(term.labels, term.value.axes, strict=True))[label]
        return len(self.program.table.segments(axis)) == 1

    def columns(self) -> Iterator[Columns]:
        """The components; in them 1 stands for readers and -1 for what they read, as it is the transpose that acts."""
        for start, labels in agreeing(self, self.begun):
            members = {c: (-sign, dressing) for c, (sign, dressing) in labels.items() if c.root in self.roots}
            if {sign for sign, _ in members.values()} == {1, -1}:
                yield Columns(self.atoms[start][0], members)
