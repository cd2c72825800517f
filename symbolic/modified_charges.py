"""The motion of a charge along a modified equation: backward error analysis and invariance together.

Along θ' = F(θ) a charge moves by ⟨ξ(θ), F⟩. Of the elementary differentials in F invariance leaves little: ⟨ξ(θ), ∇f(θ)⟩ = 0 holds at
every θ, and its derivative along x_1, ..., x_k (ξ affine with symmetric A, so that D ξ [x] = A x) is

    ⟨ξ(θ), ∇^{k+1}f [x_1, ..., x_k]⟩ = - Σ_i ⟨A x_i, ∇^k f [..., x_{i-1}, x_{i+1}, ...]⟩ .

So every term is a pairing of two elementary differentials by A, one derivative lower, and for a translation (A = 0) it vanishes: only
weight decay moves such a charge. Source: own; to second order kunin2021neural.
"""

from __future__ import annotations

import sympy as sp

from noetherflow.symbolic.balance import CHARGE
from noetherflow.symbolic.differentials import Differential
from noetherflow.symbolic.modified import ModifiedEquation
from noetherflow.symbolic.pairings import Inner
from noetherflow.symbolic.rules import THETA


def charge_motion(equation: ModifiedEquation, linear: bool) -> tuple[sp.Expr, ...]:
    """dQ/dt along a modified equation, for a charge of an exact symmetry.

    Parameters
    ----------
    equation : ModifiedEquation
    linear : bool
        Whether the charge is ⟨a, θ⟩ (A = 0) rather than ½⟨θ, Aθ⟩ (a = 0).

    Returns
    -------
    tuple of sympy.Expr
        The coefficients of η^0, η^1, ... in Q and pairings ⟨x, A y⟩ of elementary differentials; truncated with the equation.

    Examples
    --------
    >>> from noetherflow.symbolic.modified import modified_equation
    >>> from noetherflow.symbolic.rules import sgd_form
    >>> plain = sgd_form(momentum=False, nesterov=False, maximize=False)
    >>> charge_motion(modified_equation(plain, 3, weight_decay=0), linear=False)
    (0, Inner(g, g)/2, Inner(H(g), g)/2)
    """
    own = CHARGE if linear else 2 * CHARGE
    return tuple(_paired(term, own, linear) for term in equation.field)


def _paired(term: sp.Expr, own: sp.Expr, linear: bool) -> sp.Expr:
    """⟨ξ(θ), term⟩."""
    out = sp.S.Zero
    for tree, coefficient in sorted(_trees(term).items(), key=lambda item: sp.default_sort_key(item[0])):
        out += coefficient * (own if tree == THETA else sp.S.Zero if linear else _along(tree, own))
    return sp.Add(*(sp.factor(c) * pairing for pairing, c in sp.collect(sp.expand(out), _pairings(out), evaluate=False).items()))


def _trees(term: sp.Expr) -> dict[sp.Expr, sp.Expr]:
    """Coefficient of each tree of a sum."""
    out: dict[sp.Expr, sp.Expr] = {}
    for summand in sp.Add.make_args(sp.expand(term)):
        trees = [x for x in sp.Mul.make_args(summand) if isinstance(x, Differential) or x == THETA]
        for tree in trees:
            out[tree] = out.get(tree, sp.S.Zero) + summand / tree
    return out


def _along(tree: Differential, own: sp.Expr) -> sp.Expr:
    """⟨ξ(θ), ∇^{k+1}f [x_1, ..., x_k]⟩."""
    others = (Differential(*tree.args[:i], *tree.args[i + 1 :]) for i in range(len(tree.args)))
    return -sp.Add(*(pairing(x, other, own) for x, other in zip(tree.args, others, strict=True)))


def pairing(x: sp.Expr, y: sp.Expr, own: sp.Expr = 2 * CHARGE) -> sp.Expr:
    """⟨x, A y⟩ of θ and elementary differentials, reduced by invariance where θ is one of them (`own` is ⟨Aθ, θ⟩).

    Examples
    --------
    >>> g = Differential()
    >>> pairing(THETA, g), pairing(THETA, Differential(g)), pairing(g, g)
    (0, -Inner(g, g), Inner(g, g))
    """
    if THETA not in (x, y):
        return Inner(x, y)
    other = y if x == THETA else x
    return own if other == THETA else _along(other, own)


def _pairings(expression: sp.Expr) -> list[sp.Expr]:
    return [CHARGE, *sorted(expression.atoms(Inner), key=sp.default_sort_key)]
