"""What becomes of a drift: the stationary charge, and the limit of a stochastic differential equation with what that drops.

**Stationary.** Where the distribution of (θ, b) no longer changes, the expectation of every pairing is that after a step. The drift's
equations are linear in the state (Q, K, ⟨b, A b⟩), so this fixes E Q by the expectations of the sources, with no order in η dropped. For
gradient descent

    2λ(1 - ηλ/2) E Q = η E Q(g),        Q(g) of a mini-batch gradient,

and without decay the sources must balance by themselves: E⟨g, A g⟩ = 0, the noise equilibrium.

**Diffusion.** η → 0 at fixed temperature T = ηκ and fixed t = η · step, momenta at rest: dQ/dt = -2λQ + (T/2) Tr[AΣ] for gradient
descent. What (E[Q'] - Q)/η has beyond it is named: the mean gradient's own charge Q(ḡ), which leads early in training, second orders of
the decay, and the correlation of a buffer with the mean gradient.

Source: own; ziyin2024implicit, ziyin2023law for the limit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import sympy as sp
from sympy.polys.matrices import DomainMatrix

from noetherflow.errors import RuleError
from noetherflow.symbolic.balance import CHARGE, CURRENT
from noetherflow.symbolic.flows import TIME
from noetherflow.symbolic.noise import TEMPERATURE, Drift, Spread
from noetherflow.symbolic.pairings import Inner

# where the sign of an expression is read off: small steps, ordinary momentum
ORDINARY: Final = {"eta": sp.Rational(1, 1000), "lambda": sp.Rational(1, 1000), "mu": sp.Rational(1, 3), "tau": sp.Rational(1, 7)}


@dataclass(frozen=True)
class Stationary:
    """The condition that a stationary distribution of (θ, b) puts on a charge; symbols stand for expectations over it.

    Attributes
    ----------
    loss : sympy.Expr
        What decay takes from the charge, as a multiple of it.
    gain : sympy.Expr
        What gradients give it. Loss and gain have no common factor.
    momenta : mapping of sympy.Expr to sympy.Expr
        K and ⟨b, A b⟩ there, in Q and the sources.
    """

    loss: sp.Expr
    gain: sp.Expr
    momenta: Mapping[sp.Expr, sp.Expr]

    @property
    def equation(self) -> sp.Eq:
        """Loss equals gain, exactly; without decay the gain must vanish by itself."""
        return sp.Eq(self.loss * CHARGE, self.gain, evaluate=False)

    @property
    def charge(self) -> sp.Expr:
        """The stationary charge in the expectations of the sources.

        Raises
        ------
        RuleError
            Without weight decay: then the condition is that the gain vanishes.
        """
        if self.loss == 0:
            raise RuleError("Without weight decay no multiple of the charge is lost: it is stationary where `gain` vanishes.")
        return self.gain / self.loss


def stationary(drift: Drift) -> Stationary:
    """The stationary condition of a drift, exact in η.

    Raises
    ------
    RuleError
        For a law across parameter groups or one that does not close: its charges are several.

    Examples
    --------
    >>> from noetherflow.symbolic.balance import derive_balance
    >>> from noetherflow.symbolic.noise import derive_drift
    >>> from noetherflow.symbolic.rules import sgd_form
    >>> plain = derive_balance((sgd_form(momentum=False, nesterov=False, maximize=False),), False, True)
    >>> found = stationary(derive_drift(plain))
    >>> found.loss, found.gain.subs(CURRENT, 0)
    (-2*S*lambda*(eta*lambda - 2), S*eta*Inner(gbar, gbar) + eta*Spread(g))
    """
    change, rest = _eliminated(drift)
    numerators = _numerators(change)
    lost = -numerators.pop(CHARGE)
    common = sp.gcd_list([lost, *numerators.values()])
    # decay loses: with one sign or the other both sides are written so
    leading = lost if lost != 0 else next((c for s, c in numerators.items() if isinstance(s, Spread)), sp.S.One)
    common *= _sign(leading) * _sign(common)
    gain = sp.Add(*(sp.factor(sp.cancel(c / common)) * source for source, c in numerators.items()))
    return Stationary(sp.factor(sp.cancel(lost / common)), gain, rest)


@dataclass(frozen=True)
class Diffusion:
    """The limit of a stochastic differential equation, and what it leaves out.

    Attributes
    ----------
    flow : sympy.Eq
        dQ/dt as η → 0 at fixed temperature T = ηκ, in t = η · step.
    dropped : mapping of str to sympy.Expr
        Name -> its part of (E[Q'] - Q)/η at finite η (momenta at rest); together with the flow they are all of it.
    """

    flow: sp.Eq
    dropped: Mapping[str, sp.Expr]

    @property
    def rate(self) -> sp.Expr:
        """The right-hand side, in the symbol Q."""
        return self.flow.rhs.subs(sp.Function("Q")(TIME), CHARGE)


def diffusion(drift: Drift) -> Diffusion:
    """The diffusion limit of a drift.

    Raises
    ------
    RuleError
        As for `stationary`.

    Examples
    --------
    >>> from noetherflow.symbolic.balance import derive_balance
    >>> from noetherflow.symbolic.noise import derive_drift
    >>> from noetherflow.symbolic.rules import sgd_form
    >>> plain = derive_balance((sgd_form(momentum=False, nesterov=False, maximize=False),), False, True)
    >>> limit = diffusion(derive_drift(plain))
    >>> limit.rate.subs(CURRENT, 0)
    -2*Q*lambda + T*Spread(g)/2
    >>> limit.dropped["mean gradient"], limit.dropped["decay to second order"]
    (eta*Inner(gbar, gbar)/2, Q*eta*lambda**2)
    """
    change, _ = _eliminated(drift)
    rate = drift.balance.forms[0].rate
    limit, dropped = sp.S.Zero, {}
    for source, coefficient in change.items():
        # the noise enters as κ Tr[AΣ] = (T/η) Tr[AΣ]
        warm = TEMPERATURE / (rate * drift.factor) if isinstance(source, Spread) else sp.S.One
        whole = sp.cancel(coefficient * warm / rate)
        first = sp.factor(whole.subs(rate, 0))
        limit += first * source
        if (rest := sp.factor(whole - first)) != 0:
            dropped[_name(source, drift)] = rest * source
    q = sp.Function("Q")(TIME)
    return Diffusion(sp.Eq(sp.Derivative(q, TIME), limit.subs(CHARGE, q)), dropped)


def _eliminated(drift: Drift) -> tuple[dict[sp.Expr, sp.Expr], dict[sp.Expr, sp.Expr]]:
    """E[Q'] - Q by source (Q among them) with the momenta at the fixed points of their own recursions, and these."""
    if len(drift.balance.forms) != 1 or not drift.balance.closed:
        raise RuleError("A stationary charge needs a law within one parameter group; restrict the rule to one group.")
    others = [x for x in drift.expected if x != CHARGE]
    sources = [CHARGE, *drift.sources]
    charge = [drift.change.coeff(x) for x in (*others, *sources)]
    if not others:
        return dict(zip(sources, charge, strict=True)), {}
    rows = [[sp.expand(drift.expected[x] - x).coeff(y) for y in (*others, *sources)] for x in others]
    n = len(others)
    matrix, right = (DomainMatrix.from_Matrix(sp.Matrix(rows)[:, part]).to_field() for part in (slice(0, n), slice(n, None)))
    field = matrix.domain.unify(right.domain)
    solved = -matrix.convert_to(field).lu_solve(right.convert_to(field)).to_Matrix()
    rest = {x: sp.Add(*(sp.factor(c) * s for c, s in zip(solved.row(i), sources, strict=True))) for i, x in enumerate(others)}
    total = sp.Matrix([charge[n:]]) + sp.Matrix([charge[:n]]) * solved
    return {source: sp.cancel(sp.together(value)) for source, value in zip(sources, total, strict=True)}, rest


def _numerators(change: Mapping[sp.Expr, sp.Expr]) -> dict[sp.Expr, sp.Expr]:
    """Coefficients brought to one denominator, which is dropped."""
    fractions = {source: sp.fraction(sp.cancel(value)) for source, value in change.items()}
    denominator = sp.lcm_list([d for _, d in fractions.values()])
    return {source: sp.expand(sp.cancel(n * denominator / d)) for source, (n, d) in fractions.items()}


def _sign(expression: sp.Expr) -> int:
    at = {s: ORDINARY.get(s.name, sp.Rational(3, 2)) for s in expression.free_symbols}
    return -1 if expression.subs(at) < 0 else 1


def _name(source: sp.Expr, drift: Drift) -> str:
    if source in drift.open:
        return "buffer with mean gradient"
    if isinstance(source, Inner):
        return "mean gradient"
    kinds = {CHARGE: "decay", CURRENT: "current"}
    return f"{kinds.get(source, 'noise')} to second order"
