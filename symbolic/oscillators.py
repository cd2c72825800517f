"""The damped oscillator behind a linear charge equation.

A law with momentum is, once K is eliminated, a recursion of second order, Q_{n+1} - T Q_n + D Q_{n-1} = F_n. Grouped around step n this is

    ½(1 + D)(Q_{n+1} - 2Q_n + Q_{n-1}) + ½(1 - D)(Q_{n+1} - Q_{n-1}) + (1 - T + D) Q_n = F_n,

the central difference scheme, with nothing dropped, of m Q¨ + μ Q˙ + k Q = f at t = η · step with

    m = η(1 + D)/2,  μ = 1 - D,  k = (1 - T + D)/η,  f = F/η.

So the oscillator errs by the second order of its own time step, if it starts where the recursion does: a buffer at rest is rest half a step
*before* step 0. Source: own; m, μ, k of SGD with momentum agree with tanaka2021noether and kunin2021neural.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import sympy as sp

from noetherflow.errors import RuleError
from noetherflow.symbolic.flows import TIME

START, SPEED = sp.symbols("Q_0 V_0", real=True)
REGIMES: Final = ("underdamped", "critical", "overdamped")


@dataclass(frozen=True)
class Oscillator:
    """m Q¨ + μ Q˙ + k Q = f.

    Attributes
    ----------
    mass, friction, spring : sympy.Expr
        In the hyper-parameters of the rule.
    forcing : sympy.Expr
        f in pairings and the current J; zero for translation charges.

    Examples
    --------
    >>> m, mu, k = sp.symbols("m mu k", positive=True)
    >>> ball = Oscillator(m, mu, k, sp.S.Zero)
    >>> ball.motion("critical")
    (Q_0 + t*(Q_0*mu/(2*m) + V_0))*exp(-mu*t/(2*m))
    """

    mass: sp.Expr
    friction: sp.Expr
    spring: sp.Expr
    forcing: sp.Expr

    @property
    def damping(self) -> sp.Expr:
        """γ = μ / 2m."""
        return sp.cancel(self.friction / (2 * self.mass))

    @property
    def frequency_squared(self) -> sp.Expr:
        """ω² = k / m."""
        return sp.cancel(self.spring / self.mass)

    @property
    def equation(self) -> sp.Eq:
        """The differential equation of Q(t)."""
        q = sp.Function("Q")(TIME)
        moved = self.mass * sp.Derivative(q, (TIME, 2)) + self.friction * sp.Derivative(q, TIME) + self.spring * q
        return sp.Eq(moved, self.forcing)

    def regime(self, values: Mapping[sp.Symbol, sp.Expr | float]) -> str:
        """Which of `REGIMES` holds for given hyper-parameters; critical only where γ² = ω² exactly (give rationals)."""
        gap = sp.sympify((self.damping**2 - self.frequency_squared).subs(values))
        return "critical" if gap == 0 else "overdamped" if gap > 0 else "underdamped"

    def motion(self, regime: str, start: sp.Expr = START, speed: sp.Expr = SPEED) -> sp.Expr:
        """Q(t) without forcing, from Q(0) and Q˙(0).

        Raises
        ------
        RuleError
            For a regime that is none of `REGIMES`.
        """
        even, odd = self._waves(regime)
        return sp.exp(-self.damping * TIME) * (start * even + (speed + self.damping * start) * odd)

    def response(self, regime: str) -> sp.Expr:
        """G(t): what a kick f = δ(t) leaves, so that a forcing adds ∫ G(t - s) f(s) ds (Duhamel)."""
        return self.motion(regime, sp.S.Zero, 1 / self.mass)

    def _waves(self, regime: str) -> tuple[sp.Expr, sp.Expr]:
        """Solutions of x¨ = (γ² - ω²) x with (x, x˙) = (1, 0) and (0, 1) at t = 0."""
        known_regime(regime)
        gap = sp.factor(self.frequency_squared - self.damping**2)
        slow, fast = sp.sqrt(gap), sp.sqrt(-gap)
        return {
            "underdamped": (sp.cos(slow * TIME), sp.sin(slow * TIME) / slow),
            "critical": (sp.S.One, TIME),
            "overdamped": (sp.cosh(fast * TIME), sp.sinh(fast * TIME) / fast),
        }[regime]


def known_regime(regime: str) -> str:
    """The regime itself.

    Raises
    ------
    RuleError
        If it is none of `REGIMES`.
    """
    if regime not in REGIMES:
        raise RuleError(f"A damped motion is one of {REGIMES}; got {regime!r}. Ask `regime(values)` which one holds.", regime=regime)
    return regime


def oscillator(trace: sp.Expr, determinant: sp.Expr, forcing: sp.Expr, rate: sp.Expr) -> Oscillator:
    """The oscillator whose central differences are Q_{n+1} - T Q_n + D Q_{n-1} = F.

    Parameters
    ----------
    trace, determinant : sympy.Expr
        T and D of the recursion's matrix; D = 0 for a recursion of first order.
    forcing : sympy.Expr
        F, with its sources taken constant over a step.
    rate : sympy.Expr
        η, the length of a step in time.
    """
    return Oscillator(
        sp.factor(rate * (1 + determinant) / 2),
        sp.factor(1 - determinant),
        sp.factor(sp.expand(1 - trace + determinant) / rate),
        sp.factor(sp.expand(forcing) / rate),
    )
