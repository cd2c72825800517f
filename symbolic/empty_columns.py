"""What the readers of a centring normalisation do together, with the normalisation's bias: matrices that see only the empty direction.

The entries of z = LayerNorm(x) sum to zero, so X = a 1^T has X z = 0 for every vector a. Acting on the index as a member of GL(n) would, it
turns a bias c into exp(X) c and every reader W into W exp(-X), and leaves z alone: W (z + c) does not change. Behind a gain g the matrix is
g X g^-1. Where every reader could take back its share with a bias of its own this is what readers do one by one (`annihilated`) next to
the shift of the norm's bias (`images`); where one has no bias, or is used more than once, it is a family of its own, without a charge.

Source: own (GL(n) of `algebras`, restricted to the matrices that a centred tensor does not see).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import sympy as sp

from noetherflow.symbolic.algebras import PLAIN, Carrier, Dressing, Search
from noetherflow.symbolic.axes import multiply
from noetherflow.symbolic.graph import Size
from noetherflow.symbolic.linear_systems import parameter_cells
from noetherflow.symbolic.primitives import Block, Cell, Normalize, Program


@dataclass(frozen=True)
class Columns:
    """A component of carriers on which the matrices a 1^T act.

    Attributes
    ----------
    atom : int
        The index that is acted upon.
    members : mapping of Carrier to (sign, dressing)
        Parameters: sign 1 for what the readers read, -1 for the readers.
    """

    atom: int
    members: Mapping[Carrier, tuple[int, Dressing]]

    @property
    def readers(self) -> frozenset[tuple[int, Block]]:
        """The weights that read."""
        return frozenset((carrier.root, carrier.block) for carrier, (sign, _) in self.members.items() if sign < 0)


def empty_columns(program: Program) -> list[Columns]:
    """Every component that begins at a centring normalisation and meets nothing which forbids it."""
    if not any(isinstance(step, Normalize) and step.scale and step.shift for step in program.steps):
        return []
    search = _Search(program)
    for step in program.steps:
        search.state(step)
    return list(search.columns())


def agreeing(search: Search, begun: set[Carrier]) -> Iterator[tuple[Carrier, dict[Carrier, tuple[int, Dressing]]]]:
    """Components that hold what was begun, meet nothing forbidden, and in which all that was begun carries the same matrix, undressed."""
    seen: set[Carrier] = set()
    for start in sorted(begun, key=str):
        if start not in seen:
            component = search.component(start)
            seen.update(component)
            labels, signed, dressed = search.labelled(start)
            alike = all(labels[carrier] == (1, PLAIN) for carrier in component if carrier in begun)
            if search.forbidden.isdisjoint(component) and signed and dressed and alike:
                yield start, {carrier: labels[carrier] for carrier in component}


@dataclass
class _Search(Search):
    """The search for algebras, begun at what a normalisation gives instead of going through it."""

    begun: set[Carrier] = field(default_factory=set)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.wanted = {(atom, others) for atom, others in self.wanted if not others}

    def _normalize(self, step: Normalize, row: list[Cell]) -> None:  # type: ignore[override]
        along = [place for place in row[0].leaves if place[0] in step.over]
        axes = dict(zip(step.out.labels, step.out.value.axes, strict=True))
        whole = len(along) == 1 and len(self.program.table.segments(axes[along[0][0]])) == 1
        for place, spectators in self._positions(row):
            out, x = (self._carrier(t, cell, place, spectators) for t, cell in zip((step.out, step.operand), row, strict=True))
            self._forbid([x])
            if step.scale and step.shift and whole and place in along and out is not None:
                self.begun.add(out)
            else:
                self._forbid([out])

    def columns(self) -> Iterator[Columns]:
        for start, labels in agreeing(self, self.begun):
            found = Columns(self.atoms[start][0], {c: label for c, label in labels.items() if c.root in self.roots})
            if self._are_seen(found):
                yield found

    def _are_seen(self, columns: Columns) -> bool:
        """Whether readers see every vector a: with fewer rows than columns, some a only shift the bias."""
        table, blocks = self.program.table, {(root, block): leaves for _, root, block, leaves, _ in parameter_cells(self.program)}
        rows: list[Size] = []
        for carrier, (sign, _) in columns.members.items():
            if sign < 0:
                others = [leaf.size for leaf in blocks[carrier.root, carrier.block] if leaf.identity != carrier.index]
                rows.append(multiply(others))
        return bool(sp.Ge(sp.Add(*rows), table.atom_size(columns.atom)) == True)  # noqa: E712  # a symbolic comparison may be undecided
