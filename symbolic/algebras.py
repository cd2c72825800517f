"""Matrix algebras: along which indices more acts than a diagonal.

Along an index of size n the network may be symmetric under all of GL(n), or under rotations only. For an antisymmetric or off-diagonal
matrix X every tensor that carries the index either carries X too or nothing, so carriers fall into connected components:

    contract    two operands contracted: X on one, -X^T on the other; handed to the result: X on both; behind a gain g: g X g^-1
    add         X on all addends and the result
    apply       a linear function hands X on, no other does
    normalize   |x| bears rotations along the normalised index, and those that fix (1, ..., 1) if it centres
    turn        rotations of pairs bear rotations of pairs

A component that meets nothing which forbids it is an algebra: gl(n) if signs agree and nothing asks for rotations, else so(n).

Source: own; the single cases are in ainsworth2023git, ashkboos2024slicegpt.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import combinations

from noetherflow.symbolic.axes import Identity
from noetherflow.symbolic.families import Family
from noetherflow.symbolic.linear_systems import Atoms, parameter_cells
from noetherflow.symbolic.primitives import (
    Add,
    Apply,
    Block,
    Cell,
    Contract,
    Join,
    Normalize,
    Pin,
    Program,
    Term,
    Turn,
    Value,
    cells,
    join_cells,
)

MAX_SPECTATORS = 2

Place = tuple[str, int]
Gain = tuple[int, Block]
Dressing = frozenset[tuple[Gain, int]]
PLAIN: Dressing = frozenset()


@dataclass(frozen=True, slots=True)
class Carrier:
    """One index of one block of a tensor, on which a matrix may act that depends on the spectators."""

    root: int
    block: Block
    index: Identity
    spectators: frozenset[Identity]


@dataclass(frozen=True, slots=True)
class Edge:
    """What one carrier does if another carries X: X or -X^T (`opposite`), with a gain between them."""

    other: Carrier
    opposite: bool = False
    gain: Gain | None = None
    exponent: int = 0


@dataclass(frozen=True)
class Algebra:
    """A component of carriers.

    Attributes
    ----------
    atom : int
        The index that is acted upon.
    spectators : tuple of int
        Indices that the matrix may depend on.
    members : mapping of Carrier to (sign, dressing)
    rotations : bool
        so(n); otherwise gl(n).
    centred : bool
        Only rotations that fix (1, ..., 1).
    pairs : bool
        The rotations of RoPE's pairs.
    roots : frozenset of int
        Every tensor that is acted upon, parameter or not.
    """

    atom: int
    spectators: Atoms
    members: Mapping[Carrier, tuple[int, Dressing]]
    rotations: bool
    centred: bool
    pairs: bool
    roots: frozenset[int]


def algebras(program: Program) -> list[Algebra]:
    """Every matrix algebra that moves a parameter, with as many spectators as it can have."""
    search = Search(program)
    for step in program.steps:
        search.state(step)
    return list(search.found())


def matrix_indices(program: Program, found: Sequence[Algebra], families: Sequence[Family]) -> list[Algebra | None]:
    """For each scale family the gl(n) whose diagonal it is, or None; other indices of the family are its spectators."""
    roots = {value.root for value in program.parameters.values()}
    by_indices: dict[tuple[int, Atoms], list[Algebra]] = defaultdict(list)
    for algebra in found:
        if not algebra.rotations:
            by_indices[algebra.atom, tuple(sorted((algebra.atom, *algebra.spectators)))].append(algebra)
    out = []
    for family in families:
        signs = {(u.root, u.block, u.indices): c for u, c in family.vector.items() if u.root in roots}
        key = tuple(sorted(family.atoms))
        larger = (algebra for atom in reversed(family.atoms) for algebra in by_indices[atom, key] if _same_signs(algebra, signs))
        out.append(next(larger, None) if family.atoms and not family.zero_mean else None)
    return out


def _same_signs(algebra: Algebra, signs: Mapping[tuple[int, Block, frozenset[Identity]], Fraction]) -> bool:
    theirs = {(m.root, m.block, m.spectators | {m.index}): sign for m, (sign, _) in algebra.members.items()}
    return signs.keys() == theirs.keys() and {signs[where] * sign for where, sign in theirs.items()} in ({1}, {-1})


@dataclass
class Search:
    """Carriers, what joins them, and what forbids them.

    `normed`, `centred` and `paired` are those that a normalisation, a centring one, or a rotation of pairs carries.
    """

    program: Program
    edges: dict[Carrier, list[Edge]] = field(default_factory=lambda: defaultdict(list))
    forbidden: set[Carrier] = field(default_factory=set)
    normed: set[Carrier] = field(default_factory=set)
    centred: set[Carrier] = field(default_factory=set)
    paired: set[Carrier] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.roots = {value.root for value in self.program.parameters.values() if not value.fixed}
        self.atoms: dict[Carrier, tuple[int, Atoms]] = {}
        self.wanted: set[tuple[int, Atoms]] = set()
        for _, _, _, leaves, _ in parameter_cells(self.program):
            for leaf in leaves:
                others = sorted({other.atom for other in leaves if other.atom != leaf.atom})
                for size in range(MAX_SPECTATORS + 1):
                    self.wanted.update((leaf.atom, chosen) for chosen in combinations(others, size))
        self._rotating = {atom for atom, _ in self.wanted}
        self._useful = self._rotating | {atom for _, chosen in self.wanted for atom in chosen}

    # --- what each primitive says

    def state(self, step: object) -> None:
        """Add the relations of one primitive."""
        table = self.program.table
        match step:
            case Contract():
                for row in cells(table, (step.out, *step.operands)):
                    self._contract(step, row)
            case Add():
                for row in cells(table, (step.out, *step.operands)):
                    self._alike((step.out, *step.operands), row, everywhere=True)
            case Apply():
                for row in cells(table, (step.out, step.operand)):
                    self._alike((step.out, step.operand), row, everywhere=step.factor is not None, allowed=step.factor is not None)
            case Normalize():
                for row in cells(table, (step.out, step.operand)):
                    self._normalize(step, row)
            case Turn():
                for row in cells(table, (step.out, step.operand)):
                    self._turn(step, row)
            case Join():
                for whole, cell, piece in join_cells(table, step):
                    self._alike((_bare(step.whole), _bare(piece)), [whole, cell], everywhere=True)
            case Pin():
                for row in cells(table, (_labelled(step.value),)):
                    self._alike((_labelled(step.value),), row, everywhere=True, allowed=False)

    def _contract(self, step: Contract, row: Sequence[Cell]) -> None:
        terms = (step.out, *step.operands)
        for place, spectators in self._positions(row):
            holders = [i for i, cell in enumerate(row) if place in cell.leaves]
            carriers = {i: self._carrier(terms[i], row[i], place, spectators) for i in holders}
            gain = next((i for i in holders if i and _is_gain(terms[i], row[i], place, spectators)), None) if len(holders) == 3 else None
            rest = [i for i in holders if i != gain]
            if not step.linear or len(rest) != 2 or (gain is not None and 0 not in rest):
                self._forbid(carriers.values())
                continue
            first, second = (carriers[i] for i in rest)
            if gain is not None:
                self._forbid([carriers[gain]])
                where = terms[gain].value.root, row[gain].block
                self._join(second, first, gain=where)
            else:
                self._join(first, second, opposite=0 not in rest)

    def _alike(self, terms: Sequence[Term], row: Sequence[Cell], *, everywhere: bool, allowed: bool = True) -> None:
        for place, spectators in self._positions(row):
            carriers = [self._carrier(t, cell, place, spectators) for t, cell in zip(terms, row, strict=True) if place in cell.leaves]
            if not allowed or (everywhere and len(carriers) != len(terms)):
                self._forbid(carriers)
                continue
            for other in carriers[1:]:
                self._join(carriers[0], other)

    def _normalize(self, step: Normalize, row: Sequence[Cell]) -> None:
        for place, spectators in self._positions(row):
            pair = [self._carrier(t, cell, place, spectators) for t, cell in zip((step.out, step.operand), row, strict=True)]
            if not step.scale or place[0] not in step.over:
                self._forbid(pair)
                continue
            self._join(*pair)
            found = {carrier for carrier in pair if carrier is not None}
            self.normed |= found
            self.centred |= found if step.shift else set()

    def _turn(self, step: Turn, row: Sequence[Cell]) -> None:
        for place, spectators in self._positions(row):
            pair = [self._carrier(t, cell, place, spectators) for t, cell in zip((step.out, step.operand), row, strict=True)]
            if place[0] != step.pair:
                self._forbid(pair)
                continue
            self._join(*pair)
            self.paired |= {carrier for carrier in pair if carrier is not None}

    def _positions(self, row: Sequence[Cell]) -> Iterator[tuple[Place, frozenset[Place]]]:
        atoms = {place: leaf.atom for cell in row for place, leaf in cell.leaves.items() if leaf.atom in self._useful}
        for place, atom in atoms.items():
            if atom in self._rotating:
                others = [p for p, a in atoms.items() if a != atom]
                for size in range(MAX_SPECTATORS + 1):
                    for chosen in combinations(others, size):
                        if (atom, tuple(sorted(atoms[p] for p in chosen))) in self.wanted:
                            yield place, frozenset(chosen)

    def _carrier(self, term: Term, cell: Cell, place: Place, spectators: frozenset[Place]) -> Carrier | None:
        """The carrier of one term; None where it cannot act."""
        if term.value.fixed or not spectators <= cell.leaves.keys():
            return None
        leaf = cell.leaves[place]
        carrier = Carrier(term.value.root, cell.block, leaf.identity, frozenset(cell.leaves[p].identity for p in spectators))
        self.atoms.setdefault(carrier, (leaf.atom, tuple(sorted(cell.leaves[p].atom for p in spectators))))
        return carrier

    def _forbid(self, carriers: object) -> None:
        self.forbidden.update(c for c in carriers if c is not None)  # type: ignore[attr-defined]

    def _join(self, a: Carrier | None, b: Carrier | None, *, opposite: bool = False, gain: Gain | None = None) -> None:
        if a is None or b is None:
            self._forbid([a, b])
            return
        self.edges[a].append(Edge(b, opposite, gain, 1))
        self.edges[b].append(Edge(a, opposite, gain, -1))

    # --- components

    def found(self) -> Iterator[Algebra]:
        """Components that nothing forbids, those with most spectators first."""
        seen: set[Carrier] = set()
        covered: set[tuple[int, Block, Identity]] = set()
        starts = [c for c in self.atoms if c.root in self.roots and c not in self.forbidden]
        for start in sorted(starts, key=lambda c: -len(c.spectators)):
            if start in seen:
                continue
            component = self.component(start)
            seen.update(component)
            places = {(c.root, c.block, c.index) for c in component if c.root in self.roots}
            if self.forbidden.isdisjoint(component) and not places & covered and (algebra := self._algebra(component)):
                covered |= places
                yield algebra

    def component(self, start: Carrier) -> dict[Carrier, None]:
        """Every carrier that is joined to one, in the order in which they are met."""
        found, pending = {start: None}, [start]
        while pending:
            for edge in self.edges[pending.pop()]:
                if edge.other not in found:
                    found[edge.other] = None
                    pending.append(edge.other)
        return found

    def _algebra(self, component: Mapping[Carrier, None]) -> Algebra | None:
        members = set(component)
        anchors = members & (self.normed | self.paired)
        start = next((c for c in component if c in anchors), next(iter(component)))
        labels, signed, dressed = self.labelled(start)
        plain = all(dressing == PLAIN for _, dressing in labels.values())
        if not dressed or any(labels[c][1] for c in anchors) or (not plain and not anchors & self.normed):
            return None
        atom, spectators = self.atoms[start]
        kept = {c: labels[c] for c in component if c.root in self.roots}
        kinds = bool(anchors) or not signed, bool(members & self.centred), bool(members & self.paired)
        return Algebra(atom, spectators, kept, *kinds, frozenset(c.root for c in component))

    def labelled(self, start: Carrier) -> tuple[dict[Carrier, tuple[int, Dressing]], bool, bool]:
        """Sign and dressing of every carrier, and whether signs and dressings agree along every way."""
        labels, pending, signed, dressed = {start: (1, PLAIN)}, [start], True, True
        while pending:
            here = pending.pop()
            sign, dressing = labels[here]
            for edge in self.edges[here]:
                label = (-sign if edge.opposite else sign, _along(dressing, edge))
                if edge.other not in labels:
                    labels[edge.other] = label
                    pending.append(edge.other)
                signed &= labels[edge.other][0] == label[0]
                dressed &= labels[edge.other][1] == label[1]
        return labels, signed, dressed


def _along(dressing: Dressing, edge: Edge) -> Dressing:
    """Behind a gain g, X acts as g X g^-1; on what is contracted with it, as the inverse transpose."""
    powers = dict(dressing)
    if edge.gain is not None:
        powers[edge.gain] = powers.get(edge.gain, 0) + edge.exponent
    return frozenset((gain, -p if edge.opposite else p) for gain, p in powers.items() if p)


def _is_gain(term: Term, cell: Cell, place: Place, spectators: frozenset[Place]) -> bool:
    return term.value.parameter is not None and cell.leaves.keys() <= spectators | {place}


def _bare(value: Value) -> Term:
    return Term(value, ())


def _labelled(value: Value) -> Term:
    return Term(value, tuple(str(i) if axis else None for i, axis in enumerate(value.axes)))
