"""Orders, critical decays and jumps: against minima of the landscape found by brute force, at every depth."""

from __future__ import annotations

import numpy as np
import pytest
import sympy as sp

from noetherflow.errors import RuleError
from noetherflow.symbolic.phase_transitions import CURVATURE, DECAY, DEPTH, GAIN, SIGNAL, potential, stationary_decay, transition

AT = {CURVATURE: sp.Rational(3, 2), GAIN: sp.Rational(4, 5)}
LINE = np.linspace(1e-9, 0.6, 60_001)


def deepest(depth: int, decay: float) -> tuple[float, float]:
    """(s, F) of the global minimum over s ≥ 0, F(0) = 0 among them."""
    height = sp.lambdify((SIGNAL, DECAY), potential(depth).subs(AT))(LINE, decay)
    k = int(height.argmin())
    return (0.0, 0.0) if height[k] >= 0 else (float(LINE[k]), float(height[k]))


@pytest.mark.parametrize("depth", [2, 3, 5])
def test_deep_chains_jump_at_the_critical_decay(depth: int) -> None:
    found = transition(depth)
    critical, jump = (float(x.subs(AT)) for x in (found.critical, found.jump))
    assert found.order == 1
    assert abs(deepest(depth, critical * 0.9999)[0] / jump - 1) < 1e-3
    assert deepest(depth, critical * 1.0001)[0] == 0.0
    assert abs(float(transition(depth + 1).critical.subs(AT)) / critical - 1) > 0.05, "another depth's is elsewhere"


@pytest.mark.parametrize("depth", [2, 3, 5])
def test_the_other_minimum_ends_at_the_spinodal(depth: int) -> None:
    found = transition(depth)
    spinodal = float(found.spinodal.subs(AT))
    slope = sp.lambdify((SIGNAL, DECAY), sp.diff(potential(depth), SIGNAL).subs(AT))
    assert (slope(LINE, spinodal * 0.999) < 0).any()
    assert not (slope(LINE, spinodal * 1.001) < 0).any()
    assert abs(float((found.last / found.jump).subs(AT)) - 0.5) < 1e-12


def test_a_symbolic_depth_says_the_same() -> None:
    symbolic = transition(DEPTH)
    for depth in (2, 4, 9):
        exact = transition(depth)
        for name in ("critical", "jump", "spinodal", "last"):
            assert abs(float((getattr(symbolic, name).subs(DEPTH, depth) - getattr(exact, name)).subs(AT))) < 1e-12


def test_shallow_chains() -> None:
    assert transition(0).order is None
    assert deepest(0, 50.0)[0] > 0
    one = transition(1)
    assert (one.order, one.critical) == (2, GAIN)
    assert deepest(1, 0.81)[0] == 0.0
    assert abs(deepest(1, 0.7)[0] - 0.1 / 1.5) < 1e-4
    assert stationary_decay(1) == GAIN - CURVATURE * SIGNAL


def test_a_negative_depth_is_refused() -> None:
    with pytest.raises(RuleError, match="hidden layers"):
        transition(-1)
