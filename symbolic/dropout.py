"""Dropout as explicit symmetry breaking: what its masks add to a loss on average, derived from their moments.

A mask multiplies each hidden value by z = 0 with probability p and by z = 1/(1 - p) otherwise: E z = 1, independently. A loss that is a
polynomial in the masks of degree two has, exactly,

    E L(z) = L(1) + ½ ρ Σ_i ∂²L/∂z_i²,        ρ = p/(1 - p),

since only variances enter; any other loss has this to leading order in ρ. For mean squares behind a linear layer, |y - U diag(z) h|²/2, the
*penalty* is ½ρ Σ_i |u_i|² h_i². It keeps what commutes with masks unit by unit (rescalings, permutations) and breaks the rest of GL(r).

Source: own (the expansion); the penalty and its minimum on an orbit are of mianjy2018implicit.
"""

from __future__ import annotations

from typing import Final

import sympy as sp

PROBABILITY: Final = sp.Symbol("p", positive=True)
RATIO: Final = PROBABILITY / (1 - PROBABILITY)


def mask_moment(order: int) -> sp.Expr:
    """E (z - 1)^order of one mask.

    Examples
    --------
    >>> [sp.factor(mask_moment(k)) for k in range(3)]
    [1, 0, -p/(p - 1)]
    """
    kept = sp.Integer(1) / (1 - PROBABILITY)
    return sp.cancel(PROBABILITY * (-1) ** order + (1 - PROBABILITY) * (kept - 1) ** order)


def masked_mean(loss: sp.Expr, masks: list[sp.Symbol]) -> sp.Expr:
    """E L(z) of a polynomial in independent masks, exactly.

    Parameters
    ----------
    loss : sympy.Expr
        A polynomial in `masks`.
    masks : list of sympy.Symbol

    Examples
    --------
    >>> z, h = sp.symbols("z h")
    >>> sp.factor(masked_mean((1 - z * h) ** 2, [z]) - (1 - h) ** 2)
    -h**2*p/(p - 1)
    """
    centred = sp.Poly(sp.expand(loss.subs({z: 1 + z for z in masks}, simultaneous=True)), *masks)
    return sp.Add(*(c * sp.Mul(*map(mask_moment, powers)) for powers, c in centred.terms()))


def penalty(loss: sp.Expr, masks: list[sp.Symbol]) -> sp.Expr:
    """½ ρ Σ ∂²L/∂z² at z = 1: the whole of E L(z) - L(1) for losses of degree two in the masks, the leading order in ρ for others.

    Examples
    --------
    >>> z, h = sp.symbols("z h")
    >>> sp.simplify(penalty((1 - z * h) ** 2, [z]) - masked_mean((1 - z * h) ** 2, [z]) + (1 - h) ** 2)
    0
    """
    bent = sp.Add(*(sp.diff(loss, z, 2) for z in masks))
    return RATIO / 2 * bent.subs(dict.fromkeys(masks, 1))


def shrinkage(values: list[sp.Expr], kept: int, units: sp.Expr, ratio: sp.Expr = RATIO) -> list[sp.Expr]:
    """Singular values of the minimum of ½‖M - S‖² + (ρ/2r)‖M‖_*², if the first `kept` of those of S are kept.

    Stationary where m_j = s_j - (ρ/r) Σ m: all are lowered by one threshold, which solves a linear equation.

    Parameters
    ----------
    values : list of sympy.Expr
        Singular values of S, the largest first.
    kept : int
        How many are above the threshold: the largest number for which the result is positive.
    units : sympy.Expr
        r, the number of hidden units.
    """
    share = ratio / units
    total = sum(values[:kept]) / (1 + share * kept)
    return [v - share * total for v in values[:kept]]
