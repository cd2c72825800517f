"""From solutions, one index set at a time, to families: as few and as large as possible, and independent as a whole.

A solution for the index set S gives one generator for every zero-mean function of S. If the same pattern, with indices forgotten, also
solves every smaller index set, these join into one generator for *every* function of S: the family that a person would name ("one per
hidden unit"). What is left in the smaller sets becomes families of its own, so nothing is counted twice.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import combinations

from noetherflow.symbolic.axes import Identity
from noetherflow.symbolic.linear_systems import Atoms, Unknown, Vector


@dataclass(frozen=True, slots=True)
class Family:
    """Generators that act with one pattern for every function of some indices.

    `vector` holds all tensors' coefficients, the parameters' among them; `zero_mean` families exclude functions constant along an index.
    """

    atoms: Atoms
    vector: Vector
    zero_mean: bool = False


def gather(
    solutions: Mapping[Atoms, Sequence[Vector]],
    equations: Mapping[Atoms, Sequence[Vector]],
    atoms: Mapping[Identity, int],
    roots: frozenset[int],
) -> list[Family]:
    """Join solutions into independent families.

    Parameters
    ----------
    solutions, equations : mapping
        Basis of the solutions, and the equations they solve, by index set.
    atoms : mapping
        Atom of every index identity.
    roots : frozenset of int
        Tensors that are parameters: independence is judged on these.
    """
    spans: dict[Atoms, Span] = {key: Span() for key in solutions}
    holding = {key: _by_unknown(equations.get(key, ())) for key in solutions}
    families: list[Family] = []
    for key in sorted(solutions, key=lambda k: (-len(k), k)):
        for vector in sorted(solutions[key], key=lambda v: len(on_parameters(v, roots))):
            if not spans[key].add(on_parameters(vector, roots)):
                continue
            reduced = {s: forget(vector, s, atoms) for s in _subsets(key)}
            whole = all(_solves(v, holding[s]) for s, v in reduced.items()) and _all_new(spans, reduced, roots)
            families.append(Family(key, vector, zero_mean=bool(key) and not whole))
    return families


class Span:
    """A growing subspace over the rationals that knows whether a vector is new to it."""

    def __init__(self) -> None:
        self._rows: dict[Unknown, dict[Unknown, Fraction]] = {}

    def reduce(self, vector: Mapping[Unknown, Fraction]) -> dict[Unknown, Fraction]:
        """The vector modulo the subspace."""
        rest = dict(vector)
        for unknown in sorted(vector, key=repr):
            self._eliminate(rest, unknown)
        while (pivot := next((u for u in rest if u in self._rows), None)) is not None:
            self._eliminate(rest, pivot)
        return rest

    def add(self, vector: Mapping[Unknown, Fraction]) -> bool:
        """Extend by a vector; False if it was in the subspace already."""
        rest = self.reduce(vector)
        if not rest:
            return False
        pivot, value = next(iter(rest.items()))
        self._rows[pivot] = {u: c / value for u, c in rest.items()}
        return True

    def _eliminate(self, rest: dict[Unknown, Fraction], pivot: Unknown) -> None:
        if pivot not in self._rows or pivot not in rest:
            return
        factor = rest[pivot]
        for u, c in self._rows[pivot].items():
            value = rest.get(u, Fraction(0)) - factor * c
            if value:
                rest[u] = value
            else:
                rest.pop(u, None)


def _all_new(spans: Mapping[Atoms, Span], reduced: Mapping[Atoms, Vector], roots: frozenset[int]) -> bool:
    if not all(spans[s].reduce(on_parameters(v, roots)) for s, v in reduced.items()):
        return False
    added = [spans[s].add(on_parameters(v, roots)) for s, v in reduced.items()]
    return all(added)


def _by_unknown(equations: Sequence[Vector]) -> dict[Unknown, list[Vector]]:
    found: dict[Unknown, list[Vector]] = defaultdict(list)
    for equation in equations:
        for unknown in equation:
            found[unknown].append(equation)
    return found


def _solves(vector: Vector, holding: Mapping[Unknown, Sequence[Vector]]) -> bool:
    meeting = (equation for unknown in vector for equation in holding.get(unknown, ()))
    return all(sum(c * vector[u] for u, c in equation.items() if u in vector) == 0 for equation in meeting)


def forget(vector: Vector, keep: Atoms, atoms: Mapping[Identity, int]) -> Vector:
    """The same pattern acting by functions of fewer indices."""
    out: Vector = {}
    for unknown, coefficient in vector.items():
        indices = frozenset(i for i in unknown.indices if i not in atoms or atoms[i] in keep)  # the mark of an image is no index
        target = Unknown(unknown.root, unknown.block, indices)
        out[target] = out.get(target, Fraction(0)) + coefficient
    return {u: c for u, c in out.items() if c}


def on_parameters(vector: Vector, roots: frozenset[int]) -> dict[Unknown, Fraction]:
    """The part of a pattern that acts on parameters."""
    return {u: c for u, c in vector.items() if u.root in roots and c}


def _subsets(key: Atoms) -> list[Atoms]:
    return [s for size in range(len(key)) for s in combinations(key, size)]
