"""Small exact linear systems over the rationals, one for every index set that a change may depend on.

A change of a tensor along its indices (the logarithm of a scale, or a shift) is a function of them. It splits uniquely into parts that
depend on a set S of indices and have zero mean over each (the analysis-of-variance decomposition). Every primitive relates parts with the
same S only, with the same small coefficients for every value of the indices: so there is one small system per S, whatever the sizes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import lru_cache
from itertools import combinations
from math import lcm

from sympy import QQ
from sympy.polys.matrices import DomainMatrix

from noetherflow.symbolic.axes import Identity, Leaf
from noetherflow.symbolic.primitives import Block, Cell, Program
from noetherflow.symbolic.ties import Ties

MAX_INDICES = 3
# Up to here denominators are cleared; beyond, they come from measured factors (1 / sqrt(d)), and the first coefficient stays 1.
LARGEST_SCALE = 1000

Atoms = tuple[int, ...]

_EXACT: dict[Fraction | int, Fraction] = {n: Fraction(n) for n in range(-2, 3)}


@dataclass(frozen=True, slots=True, eq=False)
class Unknown:
    """The part of one tensor's change that depends on the indices `indices` (identities of leaves) of one block."""

    root: int
    block: Block
    indices: frozenset[Identity]
    _hash: int = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_hash", hash((self.root, self.block, self.indices)))

    def __hash__(self) -> int:  # taken once: an unknown is looked up often
        return self._hash

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        same = isinstance(other, Unknown) and self._hash == other._hash and self.root == other.root
        return same and self.block == other.block and self.indices == other.indices  # type: ignore[attr-defined]


Vector = dict[Unknown, Fraction]


@dataclass
class Systems:
    """Equations by index set; `wanted` are the index sets that some trainable parameter carries."""

    wanted: frozenset[Atoms]
    equations: dict[Atoms, list[Vector]] = field(default_factory=lambda: defaultdict(list))
    atoms: dict[Identity, int] = field(default_factory=dict)

    def positions(self, members: Iterable[Cell]) -> Iterator[tuple[Atoms, frozenset[tuple[str, int]]]]:
        """Every wanted index set among the leaves of some cells, with the (label, position)s that carry it."""
        atoms = {where: leaf.atom for cell in members for where, leaf in cell.leaves.items()}
        useful = sorted(where for where, atom in atoms.items() if (atom,) in self.wanted)
        for size in range(MAX_INDICES + 1):
            for chosen in combinations(useful, size):
                key = tuple(sorted(atoms[where] for where in chosen))
                if key in self.wanted:
                    yield key, frozenset(chosen)

    def unknown(self, root: int, cell: Cell, chosen: frozenset[tuple[str, int]]) -> Unknown | None:
        """The unknown of a tensor for chosen positions; None if it does not carry them all."""
        if not chosen <= cell.leaves.keys():
            return None
        leaves = [cell.leaves[where] for where in chosen]
        self.atoms.update({leaf.identity: leaf.atom for leaf in leaves})
        return Unknown(root, cell.block, frozenset(leaf.identity for leaf in leaves))

    def state(self, key: Atoms, equation: Mapping[Unknown | None, Fraction | int]) -> None:
        """Add ``sum coefficient * unknown = 0``; None stands for zero."""
        kept = {u: _EXACT.get(c) or Fraction(c) for u, c in equation.items() if u is not None and c != 0}
        if kept:
            self.equations[key].append(kept)


def parameter_cells(program: Program) -> Iterator[tuple[str, int, Block, tuple[Leaf, ...], int]]:
    """Every block of every trainable parameter: name, root, choices, leaves, offset is left to `symmetries`."""
    for name, value in program.parameters.items():
        if not value.fixed:
            flat = tuple(o for axis in value.axes for o in axis)
            for number, segment in enumerate(program.table.segments(flat)):
                yield name, value.root, segment.choices, segment.leaves, number


def wanted_index_sets(program: Program) -> frozenset[Atoms]:
    """Index sets (up to `MAX_INDICES` distinct atoms) that a trainable parameter carries, the empty one included."""
    found: set[Atoms] = {()}
    for _, _, _, leaves, _ in parameter_cells(program):
        atoms = sorted({leaf.atom for leaf in leaves})
        for size in range(1, MAX_INDICES + 1):
            found.update(combinations(atoms, size))
    return frozenset(found)


def solve(equations: Sequence[Vector], targets: Iterable[Unknown]) -> list[Vector]:
    """Basis of the solutions, modulo those that move no target: reduced, with small integers or one 1 as coefficients of the targets.

    Unknowns that no equation holds are free. The basis is canonical for a given order of the targets.
    """
    zero, left = _without_zeros(equations)
    wanted = {u: None for u in targets if u not in zero}
    ties = Ties(wanted)
    left = ties.take(left)
    order = {u: i for i, u in enumerate(dict.fromkeys(ties.first(u)[0] for u in wanted))}
    out: list[Vector] = []
    for unknowns, part in _components(left, list(order)):
        moved = sorted((u for u in unknowns if u in order), key=order.__getitem__)
        if moved:
            found = _solve_component([*moved, *sorted(unknowns - set(moved), key=repr)], len(moved), part)
            out.extend(_in_small_integers(ties.spread(vector), wanted) for vector in found)
    return out


def _in_small_integers(vector: Vector, targets: Mapping[Unknown, None]) -> Vector:
    scale = lcm(*(value.denominator for u, value in vector.items() if u in targets))
    return vector if scale == 1 or scale > LARGEST_SCALE else {u: value * scale for u, value in vector.items()}


def _without_zeros(equations: Sequence[Vector]) -> tuple[set[Unknown], list[Vector]]:
    """Unknowns that are zero because an equation holds no other, again and again, and the equations on the rest."""
    holding: dict[Unknown, list[int]] = defaultdict(list)
    for number, equation in enumerate(equations):
        for unknown in equation:
            holding[unknown].append(number)
    open_terms = [len(equation) for equation in equations]
    zero: set[Unknown] = set()
    pending = [next(iter(equation)) for equation in equations if len(equation) == 1]
    while pending:
        unknown = pending.pop()
        if unknown in zero:
            continue
        zero.add(unknown)
        for number in holding[unknown]:
            open_terms[number] -= 1
            if open_terms[number] == 1:
                pending.extend(u for u in equations[number] if u not in zero)
    left = [{u: c for u, c in equation.items() if u not in zero} for equation, n in zip(equations, open_terms, strict=True) if n]
    return zero, left


def _components(equations: Sequence[Vector], targets: Sequence[Unknown]) -> Iterator[tuple[set[Unknown], list[Vector]]]:
    parent: dict[Unknown, Unknown] = {u: u for u in targets}

    def find(u: Unknown) -> Unknown:
        while parent.setdefault(u, u) != u:
            parent[u] = parent[parent[u]]
            u = parent[u]
        return u

    for equation in equations:
        first, *rest = equation
        for other in rest:
            parent[find(other)] = find(first)
        find(first)
    members: dict[Unknown, set[Unknown]] = defaultdict(set)
    for u in list(parent):
        members[find(u)].add(u)
    parts: dict[Unknown, list[Vector]] = defaultdict(list)
    for equation in equations:
        parts[find(next(iter(equation)))].append(equation)
    for root, unknowns in members.items():
        yield unknowns, parts[root]


def _solve_component(columns: Sequence[Unknown], targets: int, equations: Sequence[Vector]) -> Iterator[Vector]:
    index = {u: i for i, u in enumerate(columns)}
    rows = tuple(tuple(sorted((index[u], c) for u, c in equation.items())) for equation in equations)
    for solution in _reduced_nullspace(rows, len(columns), targets):
        yield {columns[i]: value for i, value in solution}


@lru_cache(maxsize=4096)
def _reduced_nullspace(
    rows: tuple[tuple[tuple[int, Fraction], ...], ...], width: int, targets: int
) -> tuple[tuple[tuple[int, Fraction], ...], ...]:
    """Solutions that move a target, as (column, value) pairs; equal layers of a network ask the same question, and are answered once."""
    matrix = {r: {i: QQ(c.numerator, c.denominator) for i, c in row} for r, row in enumerate(rows)}
    null = DomainMatrix(matrix, (len(rows), width), QQ).nullspace() if rows else DomainMatrix.eye(width, QQ)
    reduced, pivots = null.to_sparse().rref()
    found = []
    for row, pivot in enumerate(pivots):
        if pivot < targets:
            entries = {i: Fraction(int(QQ.numer(v)), int(QQ.denom(v))) for i, v in reduced.rep.to_sdm()[row].items()}
            found.append(tuple(entries.items()))
    return tuple(found)
