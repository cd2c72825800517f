"""Implicit adaptive optimization: the growing step size in rational numbers, averages against their equations, growth against the law."""

from __future__ import annotations

import pytest
import sympy as sp

from noetherflow.errors import RuleError
from noetherflow.symbolic.balance import CURRENT, derive_balance
from noetherflow.symbolic.flows import TIME
from noetherflow.symbolic.implicit_steps import (
    GRADIENT_SQUARED,
    NORM_SQUARED,
    ExponentialAverage,
    buffer_power,
    norm_average,
    norm_growth,
    norm_motion,
    rmsprop_average,
    schedule_without_decay,
)
from noetherflow.symbolic.pairings import Inner
from noetherflow.symbolic.rules import Form, sgd_form
from noetherflow.symbolic.solutions import STEPS, solve_homogeneous

ETA, DECAY, MU, TAU = sp.symbols("eta lambda mu tau", real=True)
R = sp.Rational
PLAIN = sgd_form(momentum=False, nesterov=False, maximize=False)
HEAVY = sgd_form(momentum=True, nesterov=False, maximize=False)
# ηλ = 1 + μ - c - μ/c has the rational root c = 9/10
VALUES = {ETA: R(1, 3), DECAY: 3 * (R(3, 2) - R(9, 10) - R(5, 9)), MU: R(1, 2), TAU: 0}


def gradient(point: sp.Matrix) -> sp.Matrix:
    """Of x²/(x² + y²), which no scale changes."""
    x, y = point
    return sp.Matrix([2 * x * y**2, -2 * x**2 * y]) / (x**2 + y**2) ** 2


def run(start: sp.Matrix, buffer: sp.Matrix, sizes: list[sp.Expr], decay: sp.Expr, momentum: sp.Expr) -> list[sp.Matrix]:
    points = [start]
    for size in sizes:
        buffer = momentum * buffer + gradient(points[-1]) + decay * points[-1]
        points.append(points[-1] - size * buffer)
    return points


@pytest.mark.parametrize("form", [PLAIN, HEAVY], ids=lambda form: form.name)
def test_weight_decay_is_a_growing_step_size(form: Form) -> None:
    found = schedule_without_decay(form)
    root, first = (sp.nsimplify(x.subs(VALUES)) for x in (found.root, found.buffer))
    momentum = VALUES[MU] if form is HEAVY else sp.Integer(0)
    start, rest = sp.Matrix([1, 2]), sp.zeros(2, 1)
    decayed = run(start, rest, [VALUES[ETA]] * 4, VALUES[DECAY], momentum)
    sizes = [found.step_size.subs(STEPS, k).subs(VALUES) for k in range(4)]
    grown = run(start, first * start, sizes, sp.Integer(0), momentum)
    assert all((a - root**k * b).applyfunc(sp.simplify).is_zero_matrix for k, (a, b) in enumerate(zip(decayed, grown, strict=True)))
    late = [size * root for size in sizes]
    assert run(start, first * start, late, sp.Integer(0), momentum)[1] * root != decayed[1]
    if form is HEAVY:
        assert (run(start, rest, sizes, sp.Integer(0), momentum)[1] * root - decayed[1]).applyfunc(sp.simplify) != rest


def test_nesterov_is_refused() -> None:
    with pytest.raises(RuleError, match="mixes"):
        schedule_without_decay(sgd_form(momentum=True, nesterov=True, maximize=False))


def test_the_norm_moves_as_published() -> None:
    m, mu, k = sp.symbols("m mu k", positive=True)
    r, speed = NORM_SQUARED(TIME), GRADIENT_SQUARED(TIME)
    assert norm_motion() == sp.Eq(m * r.diff(TIME, 2) + mu * r.diff(TIME), -2 * k * r + 2 * m * speed)
    average = norm_average()
    assert (average.decay, average.gain) == (4 * k / mu, 4 * m / mu**3)
    beta = sp.Symbol("beta")
    assert sp.cancel(norm_average(ETA * (1 + beta) / 2, 1 - beta).gain - 2 * ETA * (1 + beta) / (1 - beta) ** 3) == 0


def test_an_average_solves_its_equation() -> None:
    a, b, w = sp.symbols("a b w", positive=True)
    solution = ExponentialAverage(a, b).solution(w, TIME**2).doit()
    assert sp.simplify(solution.diff(TIME) + a * solution - b * TIME**2) == 0
    assert sp.simplify(solution.subs(TIME, 0) - w) == 0
    found = rmsprop_average(sp.Symbol("gamma"), ETA)
    assert sp.expand(found.decay - (1 - sp.Symbol("gamma")) / ETA) == 0
    assert found.decay == found.gain


@pytest.mark.parametrize("form", [PLAIN, HEAVY], ids=lambda form: form.name)
def test_growth_is_what_the_law_does_in_the_long_run(form: Form) -> None:
    law = solve_homogeneous(derive_balance((form,), False, True))
    (pair,) = law.sources.atoms(Inner)
    values = {ETA: R(1, 3), DECAY: 0, MU: R(1, 5), TAU: 0, CURRENT: 0}
    matrix, kick = law.matrix.subs(values), law.sources.xreplace({pair: sp.S.One}).subs(values)
    before = state = sp.zeros(matrix.rows, 1)
    for _ in range(40):
        before, state = state, matrix * state + kick
    grown = 2 * (state - before)[0]
    assert abs(sp.N(grown - values[ETA] ** 2 * norm_growth(form).subs(values), 30)) < 1e-25


def test_the_power_of_a_buffer_is_its_double_sum() -> None:
    beta, rho = 0.7, 0.6
    double = sum(beta ** (i + j) * rho ** abs(i - j) for i in range(200) for j in range(200))
    told = float(buffer_power(sp.Float(beta), sp.Float(rho)))
    assert abs(told - double) < 1e-10
    assert abs(told - 1 / (1 - beta**2)) > 1
