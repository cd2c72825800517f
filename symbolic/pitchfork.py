"""Where a mirror's subspace loses its attraction: the normal form of the loss beside it, and the order of the transition.

Let a be the amplitude along the softest transverse direction v, y the change inside the subspace, μ = vᵀHv, K the Hessian inside, both
without decay. The reflection forbids odd powers of a, so with decay λ

    F = ½ (μ + λ) a² + ½ a² t·y + ½ yᵀ (K + λ) y + T a⁴ / 24,      t = D³L[v, v, ·],  T = D⁴L[v, v, v, v],

up to a⁶ (other transverse directions are of the order a³). Relaxing y leaves ½ (μ + λ) a² + B a⁴: the subspace attracts where λ > -μ, and
below it a² = -(μ + λ) / (4B), a square root, if B > 0. If B < 0 the transition is a jump, whatever the sign of μ + λ.
With an anchor, decay ½λ|θ - θ₀|², a linear term -λ a₀ a is added: no reflection is left, a ≈ λ a₀ / (μ + λ) far above, and at the old
critical point a = (λ a₀ / 4B)^(1/3): never zero.
Source: own (Landau's expansion; the critical decay is ziyin2024symmetry's).
"""

from __future__ import annotations

from typing import Final

import sympy as sp

AMPLITUDE, RELAXED = sp.symbols("a y", real=True)
CURVATURE, COUPLING, QUARTIC = sp.symbols("mu t T", real=True)
STIFFNESS, DECAY, ANCHOR = sp.symbols("K lambda a_0", positive=True)
LEVEL: Final = sp.Symbol("B", positive=True)


def landscape() -> sp.Expr:
    """F(a, y) with decay, along the one relaxed direction that t points to.

    Examples
    --------
    >>> sp.degree(landscape(), AMPLITUDE), sp.degree(landscape(), RELAXED)
    (4, 2)
    """
    quadratic = (CURVATURE + DECAY) * AMPLITUDE**2 / 2 + (STIFFNESS + DECAY) * RELAXED**2 / 2
    return quadratic + COUPLING * AMPLITUDE**2 * RELAXED / 2 + QUARTIC * AMPLITUDE**4 / 24


def quartic_level() -> sp.Expr:
    """The level B, after y has relaxed.

    Examples
    --------
    >>> sp.simplify(quartic_level() - (QUARTIC / 24 - COUPLING**2 / (8 * (STIFFNESS + DECAY))))
    0
    """
    (relaxed,) = sp.solve(sp.diff(landscape(), RELAXED), RELAXED)
    return sp.expand(landscape().subs(RELAXED, relaxed)).coeff(AMPLITUDE, 4)


def amplitude_squared() -> sp.Expr:
    """Square of the amplitude, a², of the branch that leaves the subspace, by B.

    Examples
    --------
    >>> sp.simplify(amplitude_squared() + (CURVATURE + DECAY) / (4 * LEVEL))
    0
    """
    square = sp.Symbol("square", real=True)
    slope = sp.diff((CURVATURE + DECAY) * AMPLITUDE**2 / 2 + LEVEL * AMPLITUDE**4, AMPLITUDE)
    (found,) = sp.solve(sp.expand(slope / AMPLITUDE).subs(AMPLITUDE**2, square), square)
    return found


def anchored_amplitude() -> sp.Expr:
    """Amplitude at the critical decay of the symmetric loss, when decay pulls to an anchor a₀ instead of zero.

    Examples
    --------
    >>> sp.simplify(anchored_amplitude() ** 3 - DECAY * ANCHOR / (4 * LEVEL))
    0
    """
    a = sp.Symbol("a", positive=True)
    (found,) = sp.solve(sp.diff(LEVEL * a**4 - DECAY * ANCHOR * a, a), a)
    return found
