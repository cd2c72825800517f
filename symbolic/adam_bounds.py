"""How large an update of Adam can be: the exact bound in discrete time, and the published one in continuous time.

m_n = Σ a_j g_{n-j} and v_n = Σ w_j g²_{n-j} with kernels that the recursions m' = β m + (1 - β) g, v' = γ v + (1 - γ) g² unroll to. By
Cauchy and Schwarz, with equality for g_{n-j} ∝ a_j / w_j,

    m_n² ≤ (Σ a_j² / w_j) v_n.

In discrete time the sum is geometric in β²/γ, bounded for all n exactly if γ > β². In continuous time it is ∫ a² / w with exponential
kernels of rates κ, κ': bounded exactly if 2κ > κ'. The rates (1 - β)/β, (1 - γ)/γ give γ > β/(2 - β); the kernels' own, -ln β and -ln γ,
give γ > β².
Source: own for discrete time; gould2024continuous for continuous time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import sympy as sp

BETA, GAMMA = sp.symbols("beta gamma", positive=True)
LAG: Final = sp.Symbol("j", integer=True, nonnegative=True)
WINDOW: Final = sp.Symbol("n", integer=True, positive=True)
SPAN: Final = sp.Symbol("n", positive=True)


def kernel(memory: sp.Expr) -> sp.Expr:
    """Weight of the gradient j steps ago in x' = memory · x + (1 - memory) g, by solving its recursion.

    Examples
    --------
    >>> kernel(BETA)
    beta**j*(1 - beta)
    """
    weight = sp.Function("a")
    return sp.rsolve(weight(LAG + 1) - memory * weight(LAG), weight(LAG), {weight(0): 1 - memory})


def worst_gradient(beta: sp.Expr = BETA, gamma: sp.Expr = GAMMA) -> sp.Expr:
    """The gradient j steps ago, up to a factor, that attains the bound: (β/γ)^j, the same growing sequence for every n.

    Examples
    --------
    >>> sp.simplify(worst_gradient() - (BETA / GAMMA) ** LAG)
    0
    """
    ratio = sp.powsimp(sp.powdenest(kernel(beta) / kernel(gamma), force=True), force=True)
    return sp.simplify(ratio / ratio.subs(LAG, 0))


def squared_bound(steps: sp.Expr = WINDOW, beta: sp.Expr = BETA, gamma: sp.Expr = GAMMA) -> sp.Expr:
    """Supremum of m_n² / v_n over all gradients of n steps from empty averages; exact. For γ = β² it is n times its first term.

    Examples
    --------
    >>> sp.simplify(squared_bound(sp.Integer(2)) - (1 - BETA) ** 2 / (1 - GAMMA) * (1 + BETA**2 / GAMMA))
    0
    """
    first = kernel(beta).subs(LAG, 0) ** 2 / kernel(gamma).subs(LAG, 0)
    ratio = growth(beta, gamma)
    if ratio == 1:
        return sp.factor(first) * steps
    return first * (1 - ratio**steps) / (1 - ratio)


def growth(beta: sp.Expr = BETA, gamma: sp.Expr = GAMMA) -> sp.Expr:
    """β²/γ: ratio of consecutive terms of the bound; it stays bounded for all n exactly if this is below one."""
    term = kernel(beta) ** 2 / kernel(gamma)
    return sp.simplify(term.subs(LAG, 1) / term.subs(LAG, 0))


def correction(steps: sp.Expr = WINDOW, beta: sp.Expr = BETA, gamma: sp.Expr = GAMMA) -> sp.Expr:
    """What bias correction multiplies m/√v by: √(1 - γ^n) / (1 - β^n)."""
    return sp.sqrt(1 - gamma**steps) / (1 - beta**steps)


@dataclass(frozen=True)
class Rates:
    """Rates of the exponential kernels that stand for β and γ in continuous time, with a step as the unit of time."""

    momentum: sp.Expr
    square: sp.Expr

    @property
    def margin(self) -> sp.Expr:
        """C = 2κ - κ': the bound stays finite exactly if it is positive."""
        return 2 * self.momentum - self.square

    def squared_bound(self, span: sp.Expr = SPAN) -> sp.Expr:
        """∫ a²/w over a span of time, without bias correction, for C ≠ 0."""
        s = sp.Symbol("s", nonnegative=True)
        margin = sp.Symbol("C", nonzero=True, real=True)
        integrand = sp.powsimp((self.momentum * sp.exp(-self.momentum * s)) ** 2 / (self.square * sp.exp(-self.square * s)))
        front = integrand.subs(s, 0)
        return front * sp.integrate(sp.exp(-margin * s), (s, 0, span)).subs(margin, self.margin)


def published_rates(beta: sp.Expr = BETA, gamma: sp.Expr = GAMMA) -> Rates:
    """(1 - β)/β and (1 - γ)/γ: from x' - x = κ (g - x'), read as a derivative at the new step.

    Examples
    --------
    >>> sp.solve(published_rates().margin, GAMMA)
    [-beta/(beta - 2)]
    """
    return Rates((1 - beta) / beta, (1 - gamma) / gamma)


def kernel_rates(beta: sp.Expr = BETA, gamma: sp.Expr = GAMMA) -> Rates:
    """-ln β and -ln γ: e^(-κ j) = β^j, the rates at which the discrete kernels themselves decay.

    Examples
    --------
    >>> sp.solve(kernel_rates().margin, GAMMA)
    [beta**2]
    """
    return Rates(-sp.log(beta), -sp.log(gamma))
