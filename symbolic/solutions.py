"""Closed forms of linear charge equations with constant hyper-parameters.

(Q, K) obeys a linear recursion x' = M x + sources. Without sources Q_k is a sum of powers of the eigenvalues of M: for translation charges
under SGD with momentum the roots of z² - (1 + μ - η(1 - τ)λ) z + μ, a damped oscillator in discrete time (THEORY 2). Sources s_j add
Σ_j (M^{k-1-j} s_j).
"""

from __future__ import annotations

from dataclasses import dataclass

import sympy as sp

from noetherflow.symbolic.balance import CHARGE, Balance

STEPS = sp.Symbol("k", integer=True, nonnegative=True)


@dataclass(frozen=True)
class Solution:
    """The homogeneous solution of a balance law.

    Attributes
    ----------
    matrix : sympy.Matrix
        M of x' = M x with x = (Q, K...).
    characteristic : sympy.Poly
        Its characteristic polynomial in z.
    charge : sympy.Expr
        Q_k in k, Q_0 and K_0; exact for constant hyper-parameters and vanishing sources.
    """

    matrix: sp.Matrix
    characteristic: sp.Poly
    charge: sp.Expr


def solve_homogeneous(balance: Balance) -> Solution:
    """Solve a single-group balance law without sources, exactly.

    Raises
    ------
    ValueError
        If the law crosses parameter groups or does not close.
    """
    if len(balance.forms) != 1 or not balance.closed:
        raise ValueError("A closed form needs a law within one parameter group; restrict the rule to one group.")
    state = (CHARGE, *balance.momenta)
    rows = [sum(balance.charge_terms.values(), CHARGE) + sp.Add(*(balance.momentum_in_charge[k] * k for k in balance.momenta))]
    rows += [balance.momentum_factor[k] * k + sp.Add(*balance.momentum_terms[k].values()) for k in balance.momenta]
    matrix = sp.Matrix([[sp.expand(row).coeff(x, 1) for x in state] for row in rows])
    z = sp.Symbol("z")
    initial = sp.Matrix([sp.Symbol(f"{x.name}_0", real=True) for x in state])
    return Solution(matrix, sp.Poly(matrix.charpoly(z).as_expr(), z), _power_times(matrix, initial))


def _power_times(matrix: sp.Matrix, initial: sp.Matrix) -> sp.Expr:
    """First entry of M^k x for a 1×1 or 2×2 matrix with distinct eigenvalues, by interpolation (Sylvester's formula)."""
    if matrix.shape == (1, 1):
        return matrix[0, 0] ** STEPS * initial[0]
    half, root = matrix.trace() / 2, sp.sqrt(sp.factor(matrix.trace() ** 2 / 4 - matrix.det()))
    plus, minus = half + root, half - root
    first = (matrix * initial)[0]
    return (plus**STEPS * (first - minus * initial[0]) - minus**STEPS * (first - plus * initial[0])) / (2 * root)
