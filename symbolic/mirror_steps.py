"""Charges under mirror descent, in discrete time: how a step in the dual changes them, exactly.

Mirror descent with a separable potential φ moves φ'(θ') = φ'(θ) - η g. For a scaling generator ξ_e = c_e θ_e the charge is Q = Σ c_e q(θ_e)
with q' = θ φ''(θ), that is q = θ φ' - φ, and invariance, Σ c_e θ_e g_e = 0, leaves of its change a Bregman divergence:

    Q' - Q = Σ c_e D_φ(θ_e, θ'_e),        D_φ(a, b) = φ(a) - φ(b) - φ'(b)(a - b),

for φ = x²/2 the ½η² Σ c g² of gradient descent. A shift ξ_e = c_e has Q = Σ c_e φ'(θ_e), which does not change at all. The plain Euler step
θ - η g/φ'' of the same flow leaves η²/2 Σ c_e g_e² (θφ'')'/φ''² + ..., which vanishes to all orders for entropy alone.

Source: own; marcotte2024keep for the charges, and for the Euler step of non-negative matrix factorization.
"""

from __future__ import annotations

from typing import Final

import sympy as sp

from noetherflow.errors import RuleError
from noetherflow.symbolic.metrics import ARGUMENT
from noetherflow.symbolic.survival import antiderivative

AFTER: Final = sp.Symbol("y", positive=True)
SLOPE, RATE = sp.symbols("g eta", real=True)


def scale_density(potential: sp.Expr) -> sp.Expr:
    """Density q of Q = Σ c_e q(θ_e) for a scaling: ∫ x φ''(x) dx, up to a constant.

    Examples
    --------
    >>> scale_density(ARGUMENT * sp.log(ARGUMENT) - ARGUMENT)
    x
    """
    return antiderivative(sp.expand(ARGUMENT * sp.diff(potential, ARGUMENT, 2)), ARGUMENT)


def divergence(potential: sp.Expr, first: sp.Expr = ARGUMENT, second: sp.Expr = AFTER) -> sp.Expr:
    """D_φ(first, second).

    Examples
    --------
    >>> sp.factor(divergence(ARGUMENT**2 / 2))
    (x - y)**2/2
    """
    value, slope = sp.Lambda(ARGUMENT, potential), sp.Lambda(ARGUMENT, sp.diff(potential, ARGUMENT))
    return value(first) - value(second) - slope(second) * (first - second)


def mirror_step(potential: sp.Expr) -> sp.Expr:
    """θ' of θ = x: φ'(θ') = φ'(x) - η g, solved.

    Raises
    ------
    RuleError
        If SymPy finds no single branch through x at η = 0.

    Examples
    --------
    >>> mirror_step(ARGUMENT * sp.log(ARGUMENT) - ARGUMENT)
    x*exp(-eta*g)
    """
    slope = sp.diff(potential, ARGUMENT)
    found = sp.solve(slope.subs(ARGUMENT, AFTER) - slope + RATE * SLOPE, AFTER)
    through = [sp.simplify(y) for y in found if sp.simplify(y.subs(RATE, 0) - ARGUMENT) == 0]
    if len(through) != 1:
        raise RuleError(f"No single mirror step was found for the potential {potential}; got {found}.", potential=potential)
    return through[0]


def euler_step(potential: sp.Expr) -> sp.Expr:
    """θ' of the plain step of the same flow, x - η g / φ''(x).

    Examples
    --------
    >>> sp.factor(euler_step(ARGUMENT * sp.log(ARGUMENT) - ARGUMENT))
    -x*(eta*g - 1)
    """
    return ARGUMENT - RATE * SLOPE / sp.diff(potential, ARGUMENT, 2)


def change(potential: sp.Expr, step: sp.Expr) -> sp.Expr:
    """What one entry adds to Q' - Q after invariance, Σ c x g = 0, has taken its first order: q(θ') - q(x) + η x g.

    Parameters
    ----------
    potential : sympy.Expr
    step : sympy.Expr
        θ' in x, g and η, for any rule whose first order is the flow's.

    Examples
    --------
    >>> change(ARGUMENT**2 / 2, mirror_step(ARGUMENT**2 / 2))
    eta**2*g**2/2
    """
    q = sp.Lambda(ARGUMENT, scale_density(potential))
    return sp.simplify(sp.expand(q(step) - q(ARGUMENT) + RATE * ARGUMENT * SLOPE))


def exact_potentials() -> sp.Expr:
    """φ'' for which the plain Euler step conserves scaling charges at any step size: c/x, entropy. Derived, not assumed.

    The second order of the change is ½ g² (xφ'')'/φ''²; where it vanishes q is linear in x, and the step linear in g.
    """
    curvature = sp.Function("h")(ARGUMENT)
    return sp.dsolve(sp.diff(ARGUMENT * curvature, ARGUMENT), curvature).rhs
