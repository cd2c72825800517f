"""Charges under mirror descent: divergences against direct evaluation, and the one potential whose plain step drifts nowhere."""

from __future__ import annotations

import pytest
import sympy as sp

from noetherflow.errors import RuleError
from noetherflow.symbolic.metrics import ARGUMENT, ENTROPY
from noetherflow.symbolic.mirror_steps import (
    AFTER,
    RATE,
    SLOPE,
    change,
    divergence,
    euler_step,
    exact_potentials,
    mirror_step,
    scale_density,
)

POTENTIALS = [ARGUMENT**2 / 2, ENTROPY, -sp.log(ARGUMENT), 4 * ARGUMENT**2, ARGUMENT**3 / 6]


@pytest.mark.parametrize("potential", POTENTIALS, ids=str)
def test_a_mirror_step_changes_a_scaling_charge_by_divergences(potential: sp.Expr) -> None:
    """Three entries with c = 1, 1, -1 and gradients that are invariant: 2·3 + 1·(-2) - 4·1 = 0."""
    step, q = mirror_step(potential), scale_density(potential)
    entries = [(c, {ARGUMENT: x, SLOPE: g, RATE: sp.Rational(1, 20)}) for c, x, g in ((1, 2, 3), (1, 1, -2), (-1, 4, 1))]
    moved = sum(c * (q.subs(ARGUMENT, step.subs(at)) - q.subs(at)) for c, at in entries)
    told = sum(c * divergence(potential, at[ARGUMENT], step.subs(at)) for c, at in entries)
    turned = sum(c * divergence(potential, step.subs(at), at[ARGUMENT]) for c, at in entries)
    assert abs(sp.N(moved - told, 30)) < 1e-25
    assert abs(sp.N(moved)) > 1e-4
    if potential not in (ARGUMENT**2 / 2, 4 * ARGUMENT**2):
        assert abs(sp.N(moved - turned)) > 1e-6


def test_the_law_holds_for_every_potential() -> None:
    phi = sp.Function("phi")
    density, slope = sp.Lambda(ARGUMENT, scale_density(phi(ARGUMENT))), sp.Lambda(ARGUMENT, phi(ARGUMENT).diff(ARGUMENT))
    dual = (slope(ARGUMENT) - slope(AFTER)).doit()
    assert sp.expand((density(AFTER) - density(ARGUMENT)).doit() + ARGUMENT * dual - divergence(phi(ARGUMENT)).doit()) == 0


def test_entropy_alone_has_an_exact_plain_step() -> None:
    assert exact_potentials() == sp.Symbol("C1") / ARGUMENT
    assert change(ENTROPY, euler_step(ENTROPY)) == 0
    assert change(ENTROPY, mirror_step(ENTROPY)) != 0
    assert change(-sp.log(ARGUMENT), euler_step(-sp.log(ARGUMENT))) != 0


def test_a_step_that_is_not_found_is_refused() -> None:
    with pytest.raises(RuleError, match="No single mirror step"):
        mirror_step(sp.Integer(1) * ARGUMENT)
