"""Exact solutions of deep linear networks: against the layers' own equations, in exact or many-digit arithmetic."""

from __future__ import annotations

import pytest
import sympy as sp

from noetherflow.errors import RuleError
from noetherflow.symbolic.deep_linear import (
    FIRST,
    IMBALANCE,
    INNER,
    OUTER,
    SIGNAL,
    STRENGTH,
    balanced_motion,
    function_metric,
    logistic,
    unbalanced,
    unbalanced_motion,
)
from noetherflow.symbolic.flows import TIME

R = sp.Rational


@pytest.mark.parametrize("layers", [1, 2, 3, 5])
def test_a_balanced_chain_moves_as_its_layers_do(layers: int) -> None:
    a = sp.symbols(f"a_0:{layers}", positive=True)
    product = sp.prod(a)
    moved = sum(sp.diff(product, x) * sp.diff(product, x) * (STRENGTH - product) for x in a)
    equal = moved.subs(dict.fromkeys(a, SIGNAL ** R(1, layers)))
    assert sp.simplify(equal - balanced_motion(layers)) == 0
    assert sp.simplify(equal - balanced_motion(layers + 1)) != 0


def test_two_unbalanced_layers_move_as_their_layers_do() -> None:
    a, b = sp.symbols("a b", positive=True)
    moved = (a**2 + b**2) * (STRENGTH - a * b)
    told = unbalanced_motion().subs({IMBALANCE: a**2 - b**2, SIGNAL: a * b})
    assert sp.simplify(sp.factor(told**2 - moved**2)) == 0


def test_the_logistic_curve() -> None:
    s = logistic()
    assert sp.simplify(s.diff(TIME) - 2 * s * (STRENGTH - s)) == 0
    assert sp.simplify(s.subs(TIME, 0) - FIRST) == 0
    assert sp.simplify(s - STRENGTH / (1 + (STRENGTH / FIRST - 1) * sp.exp(-2 * STRENGTH * TIME))) == 0


@pytest.mark.parametrize("delta", [R(3, 2), R(-3, 2), R(1, 100)])
def test_the_unbalanced_curve_solves_its_equation(delta: sp.Expr) -> None:
    at = {STRENGTH: 2, FIRST: R(1, 5), IMBALANCE: delta}
    s = unbalanced().subs(at)
    assert abs(sp.N(s.subs(TIME, 0) - R(1, 5), 30)) < 1e-25
    for time in (R(3, 10), 1, 2):
        there = s.subs(TIME, time)
        assert abs(sp.N(s.diff(TIME).subs(TIME, time) - unbalanced_motion().subs(at).subs(SIGNAL, there), 30)) < 1e-25
    assert abs(sp.N(s.subs(TIME, R(3, 10)) - unbalanced().subs(at | {IMBALANCE: 2 * delta}).subs(TIME, R(3, 10)))) > 1e-5


def test_the_function_moves_by_beta_and_delta_alone() -> None:
    """Rational numbers: a = 3, w = (2, 1), any gradient."""
    a, w, grad = R(3), sp.Matrix([2, 1]), sp.Matrix([R(1, 3), -2])
    rates = {OUTER: R(1, 2), INNER: R(1, 5)}
    direct = a * (-rates[INNER] * a * grad) + (-rates[OUTER] * w.dot(grad)) * w
    delta = rates[INNER] * a**2 - rates[OUTER] * w.dot(w)
    symbols = sp.Matrix(sp.symbols("x y"))
    at = rates | {IMBALANCE: delta} | dict(zip(symbols, a * w, strict=True))
    metric = function_metric(symbols)
    assert sp.simplify(-metric.subs(at) * grad - direct) == sp.zeros(2, 1)
    assert sp.simplify(-metric.subs(at | {IMBALANCE: -delta}) * grad - direct) != sp.zeros(2, 1)


def test_no_layers_are_refused() -> None:
    with pytest.raises(RuleError, match="at least one layer"):
        balanced_motion(0)
