"""Stationary norms and turns: the reduction to basic pairings in exact arithmetic, the fixed points, and what has none."""

from __future__ import annotations

import pytest
import sympy as sp

from noetherflow.errors import RuleError
from noetherflow.symbolic.balance import CHARGE, CURRENT, derive_balance
from noetherflow.symbolic.pairings import Inner, Vector
from noetherflow.symbolic.rules import GRADIENT, STEP, THETA, Form, sgd_form
from noetherflow.symbolic.stationary import decoupled_form, equilibrium, in_basics

ETA, DECAY, MU, TAU = sp.symbols("eta lambda mu tau", real=True)
R = sp.Rational
VALUES = {ETA: R(1, 3), DECAY: R(1, 5), MU: R(2, 3), TAU: R(1, 7)}
FORMS = [
    sgd_form(momentum=False, nesterov=False, maximize=False),
    sgd_form(momentum=True, nesterov=False, maximize=False),
    sgd_form(momentum=True, nesterov=True, maximize=False),
    decoupled_form(momentum=False),
    decoupled_form(momentum=True),
]


def one_step(form: Form) -> dict[Vector, sp.Matrix]:
    """Every vector of one step from rational θ, g, b in three dimensions."""
    known = {THETA: sp.Matrix([1, -2, R(1, 2)]), GRADIENT: sp.Matrix([R(3, 4), 1, -1]), Vector("b"): sp.Matrix([R(-1, 5), 2, 1])}
    for vector, combination in form.equations:
        expanded = sp.expand(combination)
        known[vector] = sum((expanded.coeff(v).subs(VALUES) * x for v, x in known.items()), sp.zeros(3, 1))
    return known


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
def test_the_law_in_basic_pairings_is_the_step_itself(form: Form) -> None:
    known = one_step(form)
    theta, b = known[THETA], known[Vector("b")]
    after = theta - VALUES[ETA] * known[STEP]
    balance = derive_balance((form,), False, True)
    measured = {CHARGE: theta.dot(theta) / 2, CURRENT: theta.dot(known[GRADIENT]), sp.Symbol("K", real=True): theta.dot(b)}
    expected = [after.dot(after) / 2, *(after.dot(known[made]) for _, made in form.buffers)]
    for equation, value in zip(balance.equations, expected, strict=True):
        told = in_basics(balance, equation.rhs)
        pairs = {pair: known[pair.args[0]].dot(known[pair.args[1]]) for pair in told.atoms(Inner)}
        assert not any(STEP in pair.args or THETA in pair.args for pair in pairs)
        assert told.xreplace(pairs).subs(measured).subs(VALUES) == value


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
def test_a_state_at_rest_stays(form: Form) -> None:
    rest = equilibrium(form)
    balance = derive_balance((form,), False, True)
    state = {CHARGE: rest.norm_squared / 2}
    rows = [in_basics(balance, e.rhs) for e in balance.equations]
    if balance.momenta:
        k = balance.momenta[0]
        change = sp.expand(rows[1] - k)
        state[k] = -(change - change.coeff(k, 1) * k).xreplace(state) / change.coeff(k, 1)
    assert sp.expand((rows[0].xreplace(state) - state[CHARGE]).subs(VALUES)) == 0


def test_known_turns() -> None:
    assert equilibrium(FORMS[0]).cosine == 1 - ETA * DECAY
    assert sp.cancel(equilibrium(FORMS[1]).angle ** 2 - 2 * ETA * DECAY * (1 - TAU) / (1 + MU)) == 0
    rho = 1 - ETA * DECAY
    assert sp.cancel(equilibrium(FORMS[4]).cosine - (MU + rho) / (1 + MU * rho)) == 0
    assert sp.cancel(equilibrium(FORMS[4]).cosine - equilibrium(FORMS[1]).cosine) != 0


def test_coupled_and_decoupled_decay_agree_without_momentum() -> None:
    assert equilibrium(FORMS[0]).norm_squared == equilibrium(FORMS[3]).norm_squared


def test_nesterov_turns_depend_on_gradients() -> None:
    with pytest.raises(RuleError, match="measured pairings"):
        _ = equilibrium(FORMS[2]).cosine


def test_without_decay_there_is_no_stationary_norm() -> None:
    free = Form("free", ((STEP, GRADIENT),), (), ETA, (("lr", ETA),), ())
    with pytest.raises(RuleError, match="no stationary norm"):
        equilibrium(free)
