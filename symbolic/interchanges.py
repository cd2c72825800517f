"""Which values of an index may be interchanged: permutations along the axis classes of a program.

A permutation moves every tensor that carries the index, or none. It may depend on other indices (spectators): hidden units within an
expert, channels within a group, entries within a head. What a primitive asks of a permutation is less than what it asks of a matrix:

    contract    all that carry the index carry it alike, whether it is summed or not; a window or a shift of positions lets none pass
    add         likewise; an addend without the index is the same for all its values
    apply       every function on elements
    normalize   along the normalised indices and along the others, but not along one that depends on a normalised one
    turn        all but the pairs' own

Carriers fall into connected components; one that no fixed tensor, no pin and no position touches is a symmetric group, once for every
value of its spectators.

Source: own; for perceptrons known since Hecht-Nielsen (1990).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from noetherflow.symbolic.algebras import Carrier, Place, Search
from noetherflow.symbolic.linear_systems import Atoms
from noetherflow.symbolic.primitives import (
    Add,
    Apply,
    Cell,
    Contract,
    Join,
    Normalize,
    Pin,
    Program,
    Term,
    Turn,
    cells,
    join_cells,
)


@dataclass(frozen=True)
class Interchange:
    """A class whose values may be permuted, for every value of the spectators by itself.

    Attributes
    ----------
    atom : int
    spectators : tuple of int
    members : tuple of Carrier
        Of parameters.
    others : tuple of Carrier
        Of tensors that are computed.
    """

    atom: int
    spectators: Atoms
    members: tuple[Carrier, ...]
    others: tuple[Carrier, ...]


def interchanges(program: Program) -> list[Interchange]:
    """The classes of indices of trainable parameters that may be permuted, with as many spectators as they can have."""
    search = InterchangeSearch(program)
    for step in program.steps:
        search.state(step)
    return list(search.interchanges())


class InterchangeSearch(Search):
    """Carriers of permutations, what joins them and what forbids them."""

    # --- what each primitive says

    def state(self, step: object) -> None:
        """Add the relations of one primitive."""
        table = self.program.table
        match step:
            case Contract():
                for row in cells(table, (step.out, *step.operands)):
                    self._product(step, row)
            case Add():
                for row in cells(table, (step.out, *step.operands)):
                    self._alike((step.out, *step.operands), row, everywhere=False)
            case Apply():
                for row in cells(table, (step.out, step.operand)):
                    self._alike((step.out, step.operand), row, everywhere=True)
            case Normalize() | Turn():
                for row in cells(table, (step.out, step.operand)):
                    self._mixed(step, row)
            case Join():
                for whole, cell, piece in join_cells(table, step):
                    self._alike((Term(step.whole, ()), Term(piece, ())), [whole, cell], everywhere=True)
            case Pin():
                term = Term(step.value, tuple(str(i) if axis else None for i, axis in enumerate(step.value.axes)))
                for row in cells(table, (term,)):
                    self._alike((term,), row, everywhere=True, allowed=False)

    def _product(self, step: Contract, row: Sequence[Cell]) -> None:
        terms = (step.out, *step.operands)
        for place, spectators in self._positions(row):
            holders = [i for i, cell in enumerate(row) if place in cell.leaves]
            carriers = [self._carrier(terms[i], row[i], place, spectators) for i in holders]
            if not _passes(step, holders):
                self._forbid(carriers)
            for other in carriers[1:]:
                self._join(carriers[0], other)

    def _mixed(self, step: Normalize | Turn, row: Sequence[Cell]) -> None:
        mixed = step.over if isinstance(step, Normalize) else frozenset({step.pair})
        for place, spectators in self._positions(row):
            pair = [self._carrier(t, cell, place, spectators) for t, cell in zip((step.out, step.operand), row, strict=True)]
            within = place[0] in mixed
            dependent = any(label in mixed for label, _ in spectators)
            if (dependent and not within) or (within and isinstance(step, Turn)):
                self._forbid(pair)
            self._join(*pair)

    def _carrier(self, term: Term, cell: Cell, place: Place, spectators: frozenset[Place]) -> Carrier | None:
        """The carrier of one term; None where it cannot be permuted."""
        if term.value.fixed or not ({place} | spectators) <= cell.leaves.keys():
            return None
        leaf = cell.leaves[place]
        carrier = Carrier(term.value.root, cell.block, leaf.identity, frozenset(cell.leaves[p].identity for p in spectators))
        self.atoms.setdefault(carrier, (leaf.atom, tuple(sorted(cell.leaves[p].atom for p in spectators))))
        return carrier

    # --- components

    def interchanges(self) -> Iterator[Interchange]:
        """Components that nothing forbids, those with most spectators first."""
        seen: set[Carrier] = set()
        covered: set[object] = set()
        starts = [c for c in self.atoms if c.root in self.roots and c not in self.forbidden]
        for start in sorted(starts, key=lambda c: -len(c.spectators)):
            if start in seen:
                continue
            component = self.component(start)
            seen.update(component)
            own = tuple(c for c in component if c.root in self.roots)
            places = {(c.root, c.block, c.index) for c in own}
            if self.forbidden.isdisjoint(component) and not places & covered:
                covered |= places
                atom, spectators = self.atoms[start]
                yield Interchange(atom, spectators, own, tuple(c for c in component if c.root not in self.roots))


def _passes(step: Contract, holders: Sequence[int]) -> bool:
    """Whether a product may be permuted along a label that some of its terms hold; term 0 is the result."""
    out = [label for label in step.out.labels if label is not None]
    inside = [label for term in step.operands for label in term.labels if label is not None]
    if holders == [0]:  # repeated along a new axis, unless positions were made anew
        return len(step.operands) == 1 and step.uniform and set(inside) <= set(out)
    if 0 in holders or len(holders) > 1:
        return True
    # Summed in one operand: a sum, a mean or a maximum over all of the index, unless it is a window
    ones = [sum(label is None for label in term.labels) for term in (step.out, *step.operands)]
    return len(step.operands) == 1 and set(out) <= set(inside) and ones[0] <= ones[1]
