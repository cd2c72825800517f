"""Exact solutions of balanced and unbalanced deep linear networks: what a conserved imbalance makes of the motion.

A mode of strength S is learned by a product of layers with loss ½(S - s)², s = Π a_i. Gradient flow conserves a_i² - a_{i+1}², so s
moves by itself:

    balanced, N layers        s˙ = N s^(2 - 2/N) (S - s);      two layers: a logistic curve
    two layers, δ = a² - b²   s˙ = √(δ² + 4s²) (S - s);        closed form below

and for f = a wᵀx with rates η_a, η_w and δ = η_w a² - η_a |w|²

    β˙ = -[(κ + δ)/2 + (κ - δ)/2 β̂β̂ᵀ] ∇_β L,    κ = √(δ² + 4 η_a η_w |β|²) = η_w a² + η_a |w|².

Source: saxe2014exact (logistic curve, hyperbolic coordinates); arora2018optimization for N layers; kunin2024get for β. Derived here from
the layers' equations.
"""

from __future__ import annotations

from typing import Final

import sympy as sp

from noetherflow.errors import RuleError
from noetherflow.symbolic.flows import TIME

STRENGTH: Final = sp.Symbol("S", positive=True)
SIGNAL, FIRST = sp.symbols("s s_0", positive=True)
IMBALANCE: Final = sp.Symbol("delta", real=True)
OUTER, INNER, SQUARE = sp.symbols("eta_a eta_w beta_squared", positive=True)


def balanced_motion(layers: int | sp.Expr) -> sp.Expr:
    """s˙ of a balanced chain of N layers.

    a_i˙ = (S - s) s / a_i, so s˙ = Σ (s / a_i) a_i˙ = (S - s) Σ s² / a_i², and a_i² = s^(2/N).

    Raises
    ------
    RuleError
        For fewer than one layer.

    Examples
    --------
    >>> balanced_motion(2)
    2*s*(S - s)
    """
    n = sp.sympify(layers)
    if n.is_number and n < 1:
        raise RuleError(f"A chain has at least one layer; got {layers}.", layers=layers)
    return n * SIGNAL**2 / SIGNAL ** (2 / n) * (STRENGTH - SIGNAL)


def unbalanced_motion() -> sp.Expr:
    """s˙ of two layers with a² - b² = δ: (a² + b²)(S - s), with a² + b² solved from δ and s.

    Examples
    --------
    >>> unbalanced_motion()
    (S - s)*sqrt(delta**2 + 4*s**2)
    """
    total = sp.Symbol("n", positive=True)  # (a² + b²)² = (a² - b²)² + 4 (ab)²
    (found,) = sp.solve(total**2 - IMBALANCE**2 - 4 * SIGNAL**2, total)
    return (STRENGTH - SIGNAL) * found


def logistic() -> sp.Expr:
    """s(t) of two balanced layers from s(0) = s_0, by solving the equation.

    Examples
    --------
    >>> sp.simplify(logistic().subs(TIME, 0))
    s_0
    """
    s = sp.Function("s")
    found = sp.dsolve(sp.Eq(s(TIME).diff(TIME), balanced_motion(2).subs(SIGNAL, s(TIME))), s(TIME), ics={s(0): FIRST})
    return sp.simplify(found.rhs)


def unbalanced() -> sp.Expr:
    """s(t) of two layers with δ ≠ 0, from s(0) = s_0; exact.

    With s = ½δ sinh φ and u = e^φ the equation is u˙ = 2S u - ½δ(u² - 1), of constant coefficients: (u - p)/(u - q) decays as
    e^(-√(4S² + δ²) t), p and q being the roots of the right-hand side.
    """
    u = sp.Symbol("u", positive=True)
    p, q = _fixed_points(u)
    start = (2 * FIRST + sp.sqrt(4 * FIRST**2 + IMBALANCE**2)) / IMBALANCE  # e^(asinh(2s/δ)), for both signs of δ
    fall = (start - p) / (start - q) * sp.exp(-sp.sqrt(4 * STRENGTH**2 + IMBALANCE**2) * TIME)
    moved = (p - q * fall) / (1 - fall)
    return IMBALANCE * (moved - 1 / moved) / 4


def _fixed_points(u: sp.Symbol) -> tuple[sp.Expr, sp.Expr]:
    """The stable root first: s = S."""
    root = sp.sqrt(4 * STRENGTH**2 + IMBALANCE**2)
    p, q = ((2 * STRENGTH + sign * root) / IMBALANCE for sign in (1, -1))
    if any(sp.simplify(2 * STRENGTH * x - IMBALANCE * (x**2 - 1) / 2) != 0 for x in (p, q)):
        raise ArithmeticError(f"{p} and {q} are no fixed points of {u}")
    return p, q


def layer_norms() -> tuple[sp.Expr, sp.Expr]:
    """(a², |w|²) of f = a wᵀx from δ = η_w a² - η_a |w|² and |β|² = a²|w|², solved.

    Examples
    --------
    >>> a_squared, w_squared = layer_norms()
    >>> sp.simplify(a_squared * w_squared), sp.simplify(INNER * a_squared - OUTER * w_squared)
    (beta_squared, delta)
    """
    square = sp.Symbol("a_squared", positive=True)
    candidates = sp.solve(INNER * square**2 - IMBALANCE * square - OUTER * SQUARE, square)
    (found,) = (x for x in candidates if x.subs({INNER: 1, OUTER: 1, IMBALANCE: 0, SQUARE: 1}) > 0)
    return found, sp.simplify((INNER * found - IMBALANCE) / OUTER)


def function_metric(beta: sp.Matrix) -> sp.Matrix:
    """P of β˙ = -P ∇_β L for f = a wᵀx under gradient flow, in β and δ alone.

    β˙ = a w˙ + a˙ w with a˙ = -η_a wᵀ∇, w˙ = -η_w a ∇: P = η_w a² + η_a |w|² β̂β̂ᵀ.

    Parameters
    ----------
    beta : sympy.Matrix, shape (n, 1)
        Symbols.

    Returns
    -------
    sympy.Matrix, shape (n, n)
    """
    length = beta.dot(beta)
    outer, inner = (x.subs(SQUARE, length) for x in layer_norms())
    return INNER * outer * sp.eye(beta.rows) + OUTER * inner * beta * beta.T / length
