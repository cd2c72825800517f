"""Taking out equations of two terms leaves a linear system's solutions what they are."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

from hypothesis import given, settings
from hypothesis import strategies as st
from sympy import QQ
from sympy.polys.matrices import DomainMatrix

from noetherflow.symbolic.linear_systems import Unknown, Vector, solve
from noetherflow.symbolic.ties import Ties

UNKNOWNS = tuple(Unknown(i, frozenset(), frozenset()) for i in range(9))
COEFFICIENTS = st.sampled_from([Fraction(1), Fraction(-1), Fraction(1), Fraction(-1), Fraction(2), Fraction(1, 3)])
EQUATIONS = st.lists(st.dictionaries(st.sampled_from(UNKNOWNS), COEFFICIENTS, min_size=1, max_size=3), max_size=9)


def matrix(vectors: Sequence[Vector], columns: Sequence[Unknown]) -> DomainMatrix:
    rows = [[QQ(v.get(u, Fraction(0)).numerator, v.get(u, Fraction(0)).denominator) for u in columns] for v in vectors]
    return DomainMatrix(rows, (len(rows), len(columns)), QQ)


def reduced(equations: Sequence[Vector], targets: int) -> list[list[object]]:
    """The solutions' parts in the targets, as a reduced basis: by plain elimination, with nothing taken out."""
    null = matrix(equations, UNKNOWNS).nullspace() if equations else DomainMatrix.eye(len(UNKNOWNS), QQ)
    basis, pivots = null.to_sparse().rref()
    return [row[:targets] for row in basis.to_dense().to_list()[: len(pivots)] if any(row[:targets])]


@given(EQUATIONS, st.integers(1, len(UNKNOWNS)))
@settings(max_examples=150, deadline=None)
def test_solutions_are_those_of_plain_elimination(equations: list[Vector], targets: int) -> None:
    found = solve(equations, UNKNOWNS[:targets])
    assert all(sum((c * v.get(u, Fraction(0)) for u, c in e.items()), Fraction(0)) == 0 for v in found for e in equations)
    expected = matrix([dict(zip(UNKNOWNS, map(Fraction, map(str, row)), strict=False)) for row in reduced(equations, targets)], UNKNOWNS)
    ours = matrix(found, UNKNOWNS[:targets])
    assert ours.shape[0] == expected.shape[0]
    if found:
        ours_reduced, _ = ours.to_sparse().rref()
        assert ours_reduced.to_dense().to_list() == [row[:targets] for row in expected.to_dense().to_list()]


def test_a_contradiction_is_kept() -> None:
    """u = v and u = 2 v leave both zero: the second must not be lost when the first has tied them."""
    u, v, w = UNKNOWNS[:3]
    assert solve([{u: Fraction(1), v: Fraction(-1)}, {u: Fraction(1), v: Fraction(-2)}, {w: Fraction(1), v: Fraction(1)}], [u, v, w]) == []


def test_a_chain_is_one_unknown() -> None:
    chain = [{i: Fraction(1), i + 1: Fraction(-2)} for i in range(1000)]
    ties = Ties([500])
    assert ties.take(chain) == []
    assert ties.first(1000) == (500, Fraction(1, 2**500))
    assert len(ties.spread({500: Fraction(1)})) == 1001
