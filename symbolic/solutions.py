"""Closed forms of linear charge equations with constant hyper-parameters.

(Q, K) obeys a linear recursion x' = M x + s with sources s (measured pairings, currents). Its solution is

    x_k = M^k x_0 + Σ_{j<k} M^{k-1-j} s_j,        M^k = U_k M - D U_{k-1},

by Cayley and Hamilton, with T = tr M, D = det M, U_{k+1} = T U_k - D U_{k-1}, U_0 = 0, U_1 = 1. For translation charges under SGD with
momentum the eigenvalues are the roots of z² - (1 + μ - η(1 - τ)λ) z + μ (THEORY 2): a damped oscillator in discrete time, with its three
regimes; scale and rescale charges have 2λ for λ and a forcing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import sympy as sp

from noetherflow.errors import RuleError
from noetherflow.symbolic.balance import CHARGE, CURRENT, Balance
from noetherflow.symbolic.oscillators import Oscillator, known_regime, oscillator
from noetherflow.symbolic.pairings import Inner

STEPS = sp.Symbol("k", integer=True, nonnegative=True)


@dataclass(frozen=True)
class Solution:
    """The solution of a balance law by matrix powers; exact for constant hyper-parameters.

    Attributes
    ----------
    matrix : sympy.Matrix
        M of x' = M x + s with x = (Q, K...).
    characteristic : sympy.Poly
        Its characteristic polynomial in z.
    charge : sympy.Expr
        Q_k in k, Q_0 and K_0 without sources, for distinct eigenvalues (complex ones where the motion is underdamped; see `motion`).
    sources : sympy.Matrix
        s: what else a step adds, in pairings and the current J.
    rate : sympy.Symbol
        η.
    """

    matrix: sp.Matrix
    characteristic: sp.Poly
    charge: sp.Expr
    sources: sp.Matrix
    rate: sp.Symbol

    @cached_property
    def trace(self) -> sp.Expr:
        """T = tr M."""
        return sp.expand(self.matrix.trace())

    @cached_property
    def determinant(self) -> sp.Expr:
        """D of the recursion of second order: det M, and zero for a law without momentum, whose recursion is of first order."""
        return sp.S.Zero if self.matrix.shape == (1, 1) else sp.factor(self.matrix.det())

    @cached_property
    def discriminant(self) -> sp.Expr:
        """T²/4 - D: negative where the charge oscillates."""
        return sp.factor(self.trace**2 / 4 - self.determinant)

    def regime(self, values: Mapping[sp.Symbol, sp.Expr | float]) -> str:
        """'underdamped', 'critical' or 'overdamped' for given hyper-parameters, from the sign of the discriminant (give rationals)."""
        found = sp.sympify(self.discriminant.subs(values))
        return "critical" if found == 0 else "overdamped" if found > 0 else "underdamped"

    def motion(self, regime: str) -> sp.Expr:
        """Q_k without sources, in real functions of k, Q_0 and K_0.

        Raises
        ------
        RuleError
            For a regime that is none of 'underdamped', 'critical', 'overdamped'.
        """
        return self._after(regime, STEPS, sp.Matrix(_initial(self.matrix.rows)))

    def response(self, regime: str, source: sp.Expr) -> sp.Expr:
        """What a unit of a source, as in ``sources``, leaves in Q_k at k = 1, 2, ... steps after the step it entered with.

        With it Q_k = motion + Σ_{j<k} Σ_source response(k - j) source_j, exactly (discrete convolution).

        Raises
        ------
        RuleError
            For an unknown regime, or a source that the law does not have.
        """
        known = self.sources.atoms(Inner) | (self.sources.free_symbols & {CURRENT})
        if source not in known:
            raise RuleError(f"The law has no source {source}; it has {sorted(map(str, known))}.", source=source)
        return self._after(regime, STEPS - 1, self.sources.applyfunc(lambda entry: entry.coeff(source, 1)))

    def _after(self, regime: str, steps: sp.Expr, x: sp.Matrix) -> sp.Expr:
        """First entry of M^steps x."""
        if self.matrix.shape == (1, 1):
            return self.matrix[0, 0] ** steps * x[0]
        return self._ladder(regime, steps) * (self.matrix * x)[0] - self.determinant * self._ladder(regime, steps - 1) * x[0]

    def _ladder(self, regime: str, n: sp.Expr) -> sp.Expr:
        """U_n."""
        known_regime(regime)
        half, root = self.trace / 2, sp.sqrt(self.discriminant)
        scale, phase = sp.sqrt(self.determinant), sp.acos(self.trace / (2 * sp.sqrt(self.determinant)))
        forms = {
            "overdamped": lambda: ((half + root) ** n - (half - root) ** n) / (2 * root),
            "critical": lambda: n * half ** (n - 1),
            "underdamped": lambda: scale ** (n - 1) * sp.sin(n * phase) / sp.sin(phase),
        }
        return forms[regime]()

    @property
    def stationary(self) -> sp.Matrix:
        """(Q, K) at rest, (1 - M)^-1 s: exact for constant sources, and for the means of a stationary state with the sources' means.

        Raises
        ------
        RuleError
            If nothing pulls the charge back (no weight decay).
        """
        away = sp.eye(self.matrix.rows) - self.matrix
        if sp.simplify(away.det()) == 0:
            raise RuleError("Without weight decay nothing pulls the charge back: it has no stationary value. Give the rule a weight decay.")
        return away.LUsolve(self.sources).applyfunc(sp.factor)

    @property
    def oscillator(self) -> Oscillator:
        """The differential equation m Q¨ + μ Q˙ + k Q = f whose central differences the law is."""
        pushed = self.sources[0]
        if self.matrix.rows == 2:  # from K' = M_KQ Q + M_KK K + s_K, with sources that are constant over a step
            pushed = (1 - self.matrix[1, 1]) * self.sources[0] + self.matrix[0, 1] * self.sources[1]
        return oscillator(self.trace, self.determinant, pushed, self.rate)


def solve_homogeneous(balance: Balance) -> Solution:
    """Solve a single-group balance law, exactly.

    Raises
    ------
    ValueError
        If the law crosses parameter groups, does not close, or has more than one buffer.
    """
    if len(balance.forms) != 1 or not balance.closed or len(balance.momenta) > 1:
        raise ValueError("A closed form needs a law with at most one buffer within one parameter group; restrict the rule to one group.")
    state = (CHARGE, *balance.momenta)
    rows = [sum(balance.charge_terms.values(), CHARGE) + sp.Add(*(balance.momentum_in_charge[k] * k for k in balance.momenta))]
    rows += [balance.momentum_factor[k] * k + sp.Add(*balance.momentum_terms[k].values()) for k in balance.momenta]
    matrix = sp.Matrix([[sp.expand(row).coeff(x, 1) for x in state] for row in rows])
    sources = (sp.Matrix(rows) - matrix * sp.Matrix(state)).applyfunc(sp.expand)
    z = sp.Symbol("z")
    characteristic = sp.Poly(matrix.charpoly(z).as_expr(), z)
    return Solution(matrix, characteristic, _power_times(matrix, sp.Matrix(_initial(len(state)))), sources, balance.forms[0].rate)


def _initial(size: int) -> tuple[sp.Symbol, ...]:
    return tuple(sp.symbols("Q_0 K_0", real=True)[:size])


def _power_times(matrix: sp.Matrix, initial: sp.Matrix) -> sp.Expr:
    """First entry of M^k x for a 1×1 or 2×2 matrix with distinct eigenvalues, by interpolation (Sylvester's formula)."""
    if matrix.shape == (1, 1):
        return matrix[0, 0] ** STEPS * initial[0]
    half, root = matrix.trace() / 2, sp.sqrt(sp.factor(matrix.trace() ** 2 / 4 - matrix.det()))
    plus, minus = half + root, half - root
    first = (matrix * initial)[0]
    return (plus**STEPS * (first - minus * initial[0]) - minus**STEPS * (first - plus * initial[0])) / (2 * root)
