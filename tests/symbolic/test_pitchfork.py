"""The normal form beside a mirror's subspace, against landscapes whose branches are known."""

from __future__ import annotations

import numpy as np
import pytest
import sympy as sp

from noetherflow.symbolic.phase_transitions import CURVATURE as FIT
from noetherflow.symbolic.phase_transitions import DECAY as GAMMA
from noetherflow.symbolic.phase_transitions import GAIN, stationary_decay, transition
from noetherflow.symbolic.pitchfork import (
    AMPLITUDE,
    ANCHOR,
    COUPLING,
    CURVATURE,
    DECAY,
    LEVEL,
    QUARTIC,
    RELAXED,
    STIFFNESS,
    amplitude_squared,
    anchored_amplitude,
    landscape,
    quartic_level,
)

AT = {COUPLING: 0.7, QUARTIC: 9.0, STIFFNESS: 1.3, DECAY: 0.4}


def test_the_branch_minimises_the_landscape() -> None:
    point = AT | {CURVATURE: -0.4004}
    height = sp.lambdify((AMPLITUDE, RELAXED), landscape().subs(point))
    grid = np.meshgrid(np.linspace(0, 0.05, 1001), np.linspace(-0.002, 0.002, 401), indexing="ij")
    found = float(grid[0].ravel()[height(*grid).argmin()])
    told = float(amplitude_squared().subs({LEVEL: quartic_level()}).subs(point)) ** 0.5
    unrelaxed = float(amplitude_squared().subs({LEVEL: QUARTIC / 24}).subs(point)) ** 0.5
    spacing = 0.05 / 1000
    assert abs(found - told) < spacing
    assert abs(found - unrelaxed) > 5 * spacing, "what lies inside the subspace relaxes"


@pytest.mark.parametrize("coupling", [1.0, 3.0])
def test_strong_coupling_makes_the_transition_a_jump(coupling: float) -> None:
    level = float(quartic_level().subs(AT | {COUPLING: coupling}))
    assert (level > 0) == (coupling < (9.0 / 3 * 1.7) ** 0.5)


def test_the_chain_of_one_hidden_layer_is_a_case() -> None:
    a = sp.Symbol("amplitude", positive=True)
    chain = FIT * (a**2 / 2) ** 2 - GAIN * a**2
    at = {CURVATURE: sp.diff(chain, a, 2).subs(a, 0), DECAY: 2 * GAMMA, LEVEL: sp.diff(chain, a, 4) / 24}
    assert sp.simplify(at[CURVATURE] + 2 * transition(1).critical) == 0
    signal = amplitude_squared().subs(at) / 2
    assert sp.simplify(stationary_decay(1).subs(sp.Symbol("s", positive=True), signal) - GAMMA) == 0


def test_an_anchor_leaves_the_third_root() -> None:
    told = anchored_amplitude()
    assert sp.simplify(told.subs(ANCHOR, 8 * ANCHOR) / told) == 2
