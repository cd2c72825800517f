"""Closed forms of linear charge equations: against the recursion they solve, in exact arithmetic, in every regime."""

from __future__ import annotations

from itertools import product

import pytest
import sympy as sp

from noetherflow.errors import RuleError
from noetherflow.symbolic.balance import CHARGE, CURRENT, derive_balance
from noetherflow.symbolic.flows import TIME
from noetherflow.symbolic.oscillators import REGIMES, SPEED, START
from noetherflow.symbolic.pairings import Inner
from noetherflow.symbolic.rules import sgd_form
from noetherflow.symbolic.solutions import STEPS, Solution, solve_homogeneous

ETA, DECAY, MU, TAU = sp.symbols("eta lambda mu tau", real=True)
Q0, K0 = sp.symbols("Q_0 K_0", real=True)
HALF, FIFTH = sp.Rational(1, 2), sp.Rational(1, 5)
# T²/4 - D has the stated sign for a translation charge: T = 1 + μ - η(1 - τ)λ, D = μ; it vanishes for ηλ(1 - τ) = (1 - √μ)²
VALUES = {
    "underdamped": {ETA: 1, DECAY: sp.Rational(4, 5), MU: HALF, TAU: FIFTH},
    "critical": {ETA: HALF, DECAY: HALF, MU: sp.Rational(1, 4), TAU: 0},
    "overdamped": {ETA: HALF, DECAY: FIFTH, MU: FIFTH, TAU: FIFTH},
}


def solution(momentum: bool, nesterov: bool, linear: bool) -> Solution:
    return solve_homogeneous(derive_balance((sgd_form(momentum=momentum, nesterov=nesterov, maximize=False),), linear, True))


def test_the_roots_are_those_of_the_literature() -> None:
    z = sp.Symbol("z")
    heavy = solution(True, False, True)
    assert sp.expand(heavy.characteristic.as_expr() - (z**2 - (1 + MU - ETA * (1 - TAU) * DECAY) * z + MU)) == 0
    assert sp.expand(solution(True, False, False).characteristic.as_expr() - heavy.characteristic.as_expr().subs(DECAY, 2 * DECAY)) == 0


@pytest.mark.parametrize("regime", REGIMES)
def test_a_motion_is_the_power_of_the_matrix(regime: str) -> None:
    law = solution(True, False, True)
    values = VALUES[regime]
    assert law.regime(values) == regime
    matrix, state = law.matrix.subs(values), sp.Matrix([3, sp.Rational(-1, 7)])
    motion = law.motion(regime).subs(values)
    for k in range(7):
        found = motion.subs({STEPS: k, Q0: 3, K0: sp.Rational(-1, 7)})
        assert abs(sp.N(found - (matrix**k * state)[0], 40)) < 1e-35, (regime, k)


def test_a_motion_in_another_regime_is_wrong() -> None:
    law = solution(True, False, True)
    exact = (law.matrix.subs(VALUES["overdamped"]) ** 3 * sp.Matrix([3, 1]))[0]
    assert abs(sp.N(law.motion("critical").subs(VALUES["overdamped"]).subs({STEPS: 3, Q0: 3, K0: 1}) - exact)) > 1e-3


@pytest.mark.parametrize(("momentum", "nesterov"), [(False, False), (True, False), (True, True)])
def test_sources_enter_by_discrete_convolution(momentum: bool, nesterov: bool) -> None:
    """Against the balance law itself, iterated in rational numbers with sources that change from step to step."""
    law = solution(momentum, nesterov, linear=False)
    values = {ETA: HALF, DECAY: FIFTH, MU: FIFTH, TAU: 0}
    regime = law.regime(values)
    sources = sorted([*law.sources.atoms(Inner), CURRENT], key=str)
    assert len(sources) >= 2
    kicks = [{s: sp.Rational(3 * j + i + 1, 5 + j) for i, s in enumerate(sources)} for j in range(5)]
    state = sp.Matrix([2, -1][: law.matrix.rows])
    for kick in kicks:
        state = law.matrix.subs(values) * state + law.sources.xreplace(kick).subs(values)
    told = law.motion(regime).subs(values).subs({STEPS: 5, Q0: 2, K0: -1})
    for source, (j, kick) in product(sources, enumerate(kicks)):
        told += law.response(regime, source).subs(values).subs(STEPS, 5 - j) * kick[source]
    assert abs(sp.N(told - state[0], 40)) < 1e-35
    shifted = told - law.response(regime, sources[0]).subs(values).subs(STEPS, 5) * kicks[0][sources[0]]
    assert abs(sp.N(shifted - state[0])) > 1e-6, "a kick that is left out is missed"


def test_a_stationary_charge_stays() -> None:
    law = solution(True, False, linear=False)
    rest = law.stationary
    assert sp.simplify(law.matrix * rest + law.sources - rest) == sp.zeros(2, 1)
    kick = next(iter(law.sources.atoms(Inner)))
    assert sp.simplify(2 * rest[0].subs(sp.Symbol("J", real=True), 0) - ETA * (1 + MU) / (2 * DECAY * (1 - TAU)) * kick) == 0


def test_without_decay_nothing_is_stationary() -> None:
    bare = sgd_form(momentum=False, nesterov=False, maximize=False)
    balance = derive_balance((bare,), False, True)
    law = solve_homogeneous(balance)
    still = Solution(law.matrix.subs(DECAY, 0), law.characteristic, law.charge, law.sources, law.rate)
    with pytest.raises(RuleError, match="weight decay"):
        _ = still.stationary


@pytest.mark.parametrize("linear", [True, False])
@pytest.mark.parametrize(("momentum", "nesterov"), [(False, False), (True, False), (True, True)])
def test_the_law_is_the_central_difference_scheme_of_its_oscillator(momentum: bool, nesterov: bool, linear: bool) -> None:
    law = solution(momentum, nesterov, linear)
    ball = law.oscillator
    behind, now, ahead = sp.symbols("behind now ahead")
    scheme = ball.mass * (ahead - 2 * now + behind) / ETA**2 + ball.friction * (ahead - behind) / (2 * ETA) + ball.spring * now
    assert sp.simplify(ETA * scheme - (ahead - law.trace * now + law.determinant * behind)) == 0
    constant = law.matrix * law.stationary + law.sources - law.stationary
    assert sp.simplify(constant) == sp.zeros(*constant.shape)
    assert sp.simplify(ball.spring * law.stationary[0] - ball.forcing) == 0, "constant sources: both come to rest at the same charge"


@pytest.mark.parametrize("regime", REGIMES)
def test_an_oscillator_solves_its_equation(regime: str) -> None:
    ball = solution(True, False, True).oscillator
    # (√μ, √..) rational and a time that is a number: SymPy needs no assumptions about signs
    values = {
        "underdamped": {ETA: 1, DECAY: 2, MU: HALF, TAU: 0},
        "critical": {ETA: HALF, DECAY: sp.Rational(1, 6), MU: HALF, TAU: 0},
        "overdamped": {ETA: HALF, DECAY: sp.Rational(1, 100), MU: HALF, TAU: 0},
    }[regime]
    assert ball.regime(values) == regime
    motion = ball.motion(regime).subs(values)
    m, mu, k = (x.subs(values) for x in (ball.mass, ball.friction, ball.spring))
    assert sp.simplify(m * motion.diff(TIME, 2) + mu * motion.diff(TIME) + k * motion) == 0
    assert sp.simplify(motion.subs(TIME, 0) - START) == 0
    assert sp.simplify(motion.diff(TIME).subs(TIME, 0) - SPEED) == 0
    response = ball.response(regime).subs(values)
    assert (sp.simplify(response.subs(TIME, 0)), sp.simplify(response.diff(TIME).subs(TIME, 0) * m)) == (0, 1)


def test_unknown_regimes_and_sources_are_refused() -> None:
    law = solution(True, False, True)
    with pytest.raises(RuleError, match="undampened"):
        law.motion("undampened")
    with pytest.raises(RuleError, match="no source"):
        law.response("overdamped", CHARGE)
