"""The continuous-time limit of an angular momentum's law: a momentum flow, at t = √η · step.

A step Δ is h times a velocity, h = √η, if the buffer is of size 1/h: b = -v / (h c), where u = c b + ... . Friction that acts at a finite
rate γ asks for a factor 1 - γ h of the buffer. In this limit the motion is θ'' + γ θ' + ∇f(θ) = 0 and P = ⟨ξ(θ), v⟩ takes the place of K.
Where the rule has no buffer the limit is the gradient flow, and its velocity is bound: P = 0.

Source: own (the limit of the discrete law, so that the two cannot disagree); for P e^{γt} marcotte2024keep.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import sympy as sp

from noetherflow.symbolic.angular import ANGULAR, DISPLACEMENT, MomentumBalance, Wedge, combination, own
from noetherflow.symbolic.balance import CURRENT, in_group
from noetherflow.symbolic.flows import TIME
from noetherflow.symbolic.pairings import Vector
from noetherflow.symbolic.rules import STEP, Form

FRICTION = sp.Symbol("gamma", positive=True)
H = sp.Symbol("h", positive=True)
VELOCITY = Vector("v")


def momentum_flow(balance: MomentumBalance) -> sp.Eq | None:
    """How ⟨ξ(θ), v⟩ of an exact symmetry (J = 0) moves along the momentum flow; exact in the limit.

    Returns
    -------
    sympy.Eq or None
        ``Derivative(exp(gamma t) P(t), t) == 0``; with a friction for each group where these differ, the sum of what they take away;
        ``P(t) == 0`` without momentum. None where some groups have momentum and others none (their times are not of one order), and
        where a step is not linear in the buffer, which then is no velocity.

    Examples
    --------
    >>> from noetherflow.symbolic.angular import derive_momentum
    >>> from noetherflow.symbolic.rules import sgd_form
    >>> momentum_flow(derive_momentum((sgd_form(momentum=True, nesterov=True, maximize=False),), True))
    Eq(Derivative(P(t)*exp(gamma*t), t), 0)
    """
    p = sp.Function("P")(TIME)
    if not balance.lasting:
        return sp.Eq(p, 0)
    if not all(balance.buffers) or any(combination(form, STEP) is None for form in balance.forms):
        return None
    groups = [_Limit(form, buffer, number, len(balance.forms)) for number, (form, buffer) in enumerate(_pairs(balance))]
    change = sp.Add(*balance.terms.values()).xreplace({CURRENT: sp.S.Zero})
    slow = {ANGULAR: groups[0].momentum.xreplace({groups[0].p: sp.Symbol("P")})}
    sizes = {DISPLACEMENT: (H, VELOCITY)}
    for group in groups:
        slow |= group.slow
        sizes |= group.sizes
    whole = change.replace(Wedge, lambda x, y: _paired(sizes.get(x, (sp.S.One, x)), sizes.get(y, (sp.S.One, y)))).xreplace(slow)
    limit = sp.expand(sp.cancel(-groups[0].share * whole).subs(H, 0))
    together = sp.Symbol("P") if balance.closed else sp.Add(*(w.xreplace(slow) * g.p for w, g in zip(balance.weights, groups, strict=True)))
    if sp.simplify(limit + FRICTION * together) == 0:
        return sp.Eq(sp.Derivative(sp.exp(FRICTION * TIME) * p, TIME), 0)
    return sp.Eq(sp.Derivative(p, TIME), limit)


@dataclass(frozen=True)
class _Limit:
    """One parameter group: every symbol of its law at the order of h that it has in the limit."""

    form: Form
    buffer: tuple[Vector, Vector]
    number: int
    groups: int

    @property
    def p(self) -> sp.Symbol:
        """⟨ξ, v⟩ of this group."""
        return sp.Symbol("P" if self.groups == 1 else f"P_{self.number}")

    @property
    def momentum(self) -> sp.Expr:
        """K of this group."""
        return -self.p / (H * self.share)

    @cached_property
    def share(self) -> sp.Expr:
        """c: what of the buffer is in the step, to leading order."""
        step = combination(self.form, STEP) or {self.buffer[0]: sp.S.One}
        return step[self.buffer[0]].xreplace({self._held: self._kept(FRICTION)}).subs(H, 0)

    @property
    def slow(self) -> dict[sp.Expr, sp.Expr]:
        """Symbols -> what they are in the limit. A factor that all groups share has no number."""
        friction = FRICTION if self.groups == 1 else sp.Symbol(f"{FRICTION.name}_{self.number}", positive=True)
        ratio = sp.S.One if self.groups == 1 else sp.Symbol(f"r_{self.number}", positive=True)
        rate, held = (in_group(symbol, self.number, self.groups) for symbol in (self.form.rate, self._held))
        return {
            self._held: self._kept(FRICTION),
            held: self._kept(friction),
            rate: ratio * H**2,
            own(self.number, self.groups): self.momentum,
        }

    @property
    def sizes(self) -> dict[Vector, tuple[sp.Expr, Vector]]:
        """Vectors -> their size and direction."""
        return {
            in_group(b, self.number, self.groups): (-1 / (H * self.share), in_group(VELOCITY, self.number, self.groups))
            for b in self.buffer
        }

    @cached_property
    def _factor(self) -> sp.Expr:
        return (combination(self.form, self.buffer[1]) or {}).get(self.buffer[0], sp.S.Zero)

    @property
    def _held(self) -> sp.Symbol:
        """The hyper-parameter that keeps the buffer."""
        return min(self._factor.free_symbols, key=str)

    def _kept(self, friction: sp.Symbol) -> sp.Expr:
        return sp.solve(self._factor - (1 - friction * H), self._held)[0]


def _pairs(balance: MomentumBalance) -> Iterator[tuple[Form, tuple[Vector, Vector]]]:
    for form, buffer in zip(balance.forms, balance.buffers, strict=True):
        if buffer is not None:
            yield form, buffer


def _paired(x: tuple[sp.Expr, Vector], y: tuple[sp.Expr, Vector]) -> sp.Expr:
    return x[0] * y[0] * Wedge(x[1], y[1])
