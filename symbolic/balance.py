"""The exact discrete balance law of a charge, derived from a rule's update equations.

One step is Δ = -η u with u linear in (θ, g, buffers). For a charge Q = ½⟨θ, Aθ⟩ + ⟨a, θ⟩ (A symmetric)

    Q(θ + Δ) - Q(θ) = ⟨ξ(θ), Δ⟩ + ½⟨Δ, AΔ⟩                                                    (1)

holds for any generator and says nothing. It becomes a law by expanding ⟨ξ, u⟩ over θ, g and the buffers and using invariance:
⟨ξ, g⟩ = J, zero or a known current. Buffers bring K = ⟨ξ(θ), b⟩, which obeys its own recursion, from b' and from

    ⟨ξ(θ + Δ), b'⟩ = ⟨ξ(θ), b'⟩ + ⟨Δ, A b'⟩.                                                   (2)

Only second-order pairings of u and b' remain to be measured; no ⟨ξ, g⟩ is. When a family crosses parameter groups, only the sum of their
⟨ξ, g⟩ vanishes: the weights of the conserved combination are solved for (for gradient descent they are 1/η_p: the metric).

Source: own (the expansion of (1), (2)); single-group special cases agree with kunin2021neural and tanaka2021noether.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import sympy as sp

from noetherflow.symbolic.pairings import Inner, Vector, inner, parts
from noetherflow.symbolic.rules import GRADIENT, STEP, THETA, Form

CHARGE, CURRENT = sp.symbols("Q J", real=True)
DISCRETIZATION, EXPLICIT, MOMENTUM, METRIC = "discretization", "explicit_breaking", "momentum", "metric"


@dataclass(frozen=True)
class Breaking:
    """A measured source: how far a vector d of a step departs from being a multiple of its companion L (kinetic symmetry breaking).

    Attributes
    ----------
    symbol : sympy.Symbol
        S = ⟨ξ, d⟩ - gain · ⟨ξ, L⟩, of one parameter group.
    gain : sympy.Expr
        Any number: one symbol for all, times a factor in hyper-parameters where groups differ.
    vector : Vector
        d, as the group's form names it.
    companion : sympy.Expr
        L, a linear combination of that form's vectors.
    group : int
    """

    symbol: sp.Symbol
    gain: sp.Expr
    vector: Vector
    companion: sp.Expr
    group: int


@dataclass(frozen=True)
class Balance:
    """One step of a charge and of the pairings it needs, as SymPy expressions split by mechanism.

    Attributes
    ----------
    forms : tuple of Form
        The rule of each parameter group of the family.
    weights : tuple of expressions
        The conserved combination Q = Σ weights[p] Q_p, equal to one for the first group.
    momenta : tuple of sympy.Symbol
        State next to Q: K, one for each buffer (or one for each buffer and group where the sum does not close).
    charge_terms : mapping of str to expression
        Mechanism -> its part of Q' - Q.
    momentum_terms : mapping of Symbol to (mapping of str to expression)
        For each K: mechanism -> its part of K', in addition to ``momentum_factor[K] * K``.
    momentum_factor : mapping of Symbol to expression
    momentum_in_charge : mapping of Symbol to expression
        dQ'/dK: how K moves Q.
    momentum_weights : mapping of Symbol to tuple of expressions
        K = Σ weights[p] ⟨ξ, b⟩_p.
    closed : bool
        False: K is measured before each step instead of being carried (the groups' momenta differ).
    breaking : tuple of Breaking
        Sources of a step that is not linear in the gradients.
    carried : mapping of Symbol to Vector
        The buffer behind each K, as the forms name it; the first one where none is given.
    """

    forms: tuple[Form, ...]
    weights: tuple[sp.Expr, ...]
    momenta: tuple[sp.Symbol, ...]
    charge_terms: Mapping[str, sp.Expr]
    momentum_terms: Mapping[sp.Symbol, Mapping[str, sp.Expr]]
    momentum_factor: Mapping[sp.Symbol, sp.Expr]
    momentum_in_charge: Mapping[sp.Symbol, sp.Expr]
    momentum_weights: Mapping[sp.Symbol, tuple[sp.Expr, ...]]
    closed: bool
    breaking: tuple[Breaking, ...] = ()
    carried: Mapping[sp.Symbol, Vector] = field(default_factory=dict)

    def buffer_of(self, momentum: sp.Symbol, group: int) -> Vector:
        """The buffer, before the step, that a momentum is made of in a group."""
        return self.carried.get(momentum, self.forms[group].buffers[0][0])

    @property
    def equations(self) -> tuple[sp.Eq, ...]:
        """The law as equations: Q' first, then each K'."""
        q = CHARGE + sp.Add(*self.charge_terms.values(), *(self.momentum_in_charge[k] * k for k in self.momenta))
        out = [sp.Eq(sp.Symbol("Q'"), q)]
        for k in self.momenta if self.closed else ():
            terms = sp.Add(*self.momentum_terms[k].values())
            out.append(sp.Eq(sp.Symbol(f"{k.name}'"), self.momentum_factor[k] * k + terms))
        return tuple(out)

    def latex(self) -> str:
        """The equations, aligned."""
        return r"\begin{aligned}" + r"\\ ".join(rf"{sp.latex(e.lhs)} &= {sp.latex(e.rhs)}" for e in self.equations) + r"\end{aligned}"


def in_group(expression: sp.Expr, number: int, groups: int) -> sp.Expr:
    """Names every vector and hyper-parameter by its group, when there are several."""
    if groups == 1:
        return expression
    renamed = {s: _numbered(s, number) for s in expression.free_symbols if s not in (CHARGE, CURRENT)}
    return expression.xreplace(renamed)


def _numbered(symbol: sp.Symbol, number: int) -> sp.Symbol:
    if isinstance(symbol, Vector):
        return Vector(f"{symbol.name}_{number}", f"{symbol.shown}_{{{number}}}")
    return sp.Symbol(f"{symbol.name}_{number}", real=True)


@lru_cache(maxsize=256)
def derive_balance(forms: tuple[Form, ...], linear: bool, same_momentum: bool) -> Balance:
    """Derive the balance law of a charge that crosses the given groups.

    Parameters
    ----------
    forms : tuple of Form
        One per parameter group.
    linear : bool
        Whether the charge is ⟨a, θ⟩ (A = 0) rather than ½⟨θ, Aθ⟩ (a = 0).
    same_momentum : bool
        Whether hyper-parameters other than the step size and the decay are equal in all groups, now and later.

    Returns
    -------
    Balance
        Exact: no order in η is dropped.
    """
    expansions = [_Expansion(form, p, len(forms), linear) for p, form in enumerate(forms)]
    identify = _identified(forms) if same_momentum else {}
    weights = _weights([identify_in(e.rate_of_current, identify) for e in expansions])
    momenta = _momenta(expansions, weights, identify)
    closed = momenta is not None
    if momenta is None:
        momenta = {sp.Symbol(f"K_{p}", real=True): _one_hot(p, len(forms)) for p, e in enumerate(expansions) if e.buffers}
    return _assemble(expansions, weights, momenta, identify, closed)


@dataclass(frozen=True)
class _Expansion:
    """Everything about one group: ⟨ξ, Δ⟩ and ⟨ξ, b'⟩ over (θ, g, b), with the second-order terms."""

    form: Form
    number: int
    groups: int
    linear: bool

    @property
    def buffers(self) -> tuple[tuple[Vector, Vector], ...]:
        return self.form.buffers

    def _expand_along(self, combination: sp.Expr) -> dict[Vector, sp.Expr]:
        """Coefficients of ⟨ξ, ·⟩ over θ, g and the buffers as they were before the step."""
        table = dict(self.form.equations)
        out = combination
        while made := [v for v in out.free_symbols if v in table]:
            out = sp.expand(out.xreplace({v: table[v] for v in made}))
        return parts(out)

    @property
    def rate_of_current(self) -> sp.Expr:
        return self.charge_coefficient(GRADIENT)

    def charge_coefficient(self, vector: Vector) -> sp.Expr:
        return self._named(-self.form.rate * self._expand_along(STEP).get(vector, sp.S.Zero))

    def buffer_coefficient(self, vector: Vector) -> sp.Expr:
        """Of ⟨ξ, vector⟩ in ⟨ξ, b'⟩, for the rule's buffer."""
        return self._named(self._expand_along(self.buffers[0][1]).get(vector, sp.S.Zero))

    @property
    def charge_second_order(self) -> sp.Expr:
        return sp.S.Zero if self.linear else self._named(self.form.rate**2 * Inner(STEP, STEP) / 2)

    @property
    def buffer_second_order(self) -> sp.Expr:
        after = self.buffers[0][1]
        step = after if self.form.in_terms_of_state(STEP) == after else STEP
        return sp.S.Zero if self.linear else self._named(-self.form.rate * inner(step, after))

    def along_theta(self) -> sp.Expr:
        """⟨ξ(θ), θ⟩ in terms of the group's charge."""
        own = CHARGE if self.groups == 1 else sp.Symbol(f"Q_{self.number}", real=True)
        return own if self.linear else 2 * own

    def _named(self, expression: sp.Expr) -> sp.Expr:
        after = [a for _, a in self.buffers]
        if after and self.form.in_terms_of_state(STEP) == after[0]:
            expression = expression.replace(Inner(STEP, STEP), Inner(after[0], after[0]))
        return in_group(sp.expand(expression), self.number, self.groups)


def identify_in(expression: sp.Expr, identify: Mapping[sp.Symbol, sp.Symbol]) -> sp.Expr:
    """Write equal hyper-parameters of different groups with one symbol."""
    return expression.xreplace(dict(identify))


def _identified(forms: Sequence[Form]) -> dict[sp.Symbol, sp.Symbol]:
    if len(forms) == 1:
        return {}
    out = {}
    for p, form in enumerate(forms):
        shared = [s for name, s in form.hyperparameters if name not in ("lr", "weight_decay")]
        out.update({_numbered(s, p): s for s in shared})
    return out


def _weights(rates: Sequence[sp.Expr]) -> tuple[sp.Expr, ...]:
    """Weights that give every group's ⟨ξ, g⟩ the same coefficient, so that only their sum, which is known, remains."""
    return tuple(sp.cancel(rates[0] / rate) for rate in rates)


def _momenta(
    expansions: Sequence[_Expansion], weights: Sequence[sp.Expr], identify: Mapping[sp.Symbol, sp.Symbol]
) -> dict[sp.Symbol, tuple[sp.Expr, ...]] | None:
    """The combination K = Σ v_p ⟨ξ, b⟩_p that closes, or None if none does."""
    having = [e for e in expansions if e.buffers]
    if not having:
        return {}
    if len(having) != len(expansions) or any(len(e.buffers) != 1 for e in having):
        return None
    gradient = [identify_in(e.buffer_coefficient(GRADIENT), identify) for e in having]
    v = _weights(gradient)
    own = [identify_in(e.buffer_coefficient(e.buffers[0][0]), identify) for e in having]
    into = [
        sp.cancel(w * identify_in(e.charge_coefficient(e.buffers[0][0]), identify) / vp)
        for e, w, vp in zip(having, weights, v, strict=True)
    ]
    same = all(sp.cancel(x - y[0]) == 0 for y in (own, into) for x in y)
    return {sp.Symbol("K", real=True): v} if same else None


def _one_hot(p: int, groups: int) -> tuple[sp.Expr, ...]:
    return tuple(sp.S.One if i == p else sp.S.Zero for i in range(groups))


def _assemble(
    expansions: Sequence[_Expansion],
    weights: Sequence[sp.Expr],
    momenta: Mapping[sp.Symbol, tuple[sp.Expr, ...]],
    identify: Mapping[sp.Symbol, sp.Symbol],
    closed: bool,
) -> Balance:
    mechanisms = {in_group(s, e.number, e.groups): m for e in expansions for s, m in e.form.mechanisms}
    mechanisms |= {s: m for e in expansions for s, m in e.form.mechanisms}
    charge = weights[0] * expansions[0].rate_of_current * CURRENT
    charge += sp.Add(
        *(w * (e.charge_coefficient(THETA) * e.along_theta() + e.charge_second_order) for e, w in zip(expansions, weights, strict=True))
    )
    in_charge, factor, terms = {}, {}, {}
    for k, v in momenta.items():
        p = next(i for i, vp in enumerate(v) if vp != 0)
        e = expansions[p]
        before = e.buffers[0][0]
        in_charge[k] = sp.cancel(identify_in(weights[p] * e.charge_coefficient(before) / v[p], identify))
        factor[k] = identify_in(e.buffer_coefficient(before), identify)
        terms[k] = _booked(identify_in(_buffer_terms(expansions, v), identify), mechanisms, default=MOMENTUM)
    booked = _booked(identify_in(charge, identify), mechanisms, default=DISCRETIZATION)
    forms = tuple(e.form for e in expansions)
    return Balance(forms, tuple(weights), tuple(momenta), booked, terms, factor, in_charge, dict(momenta), closed)


def _buffer_terms(expansions: Sequence[_Expansion], v: Sequence[sp.Expr]) -> sp.Expr:
    p = next(i for i, vp in enumerate(v) if vp != 0)  # not the first group where only another one has a buffer
    total = v[p] * expansions[p].buffer_coefficient(GRADIENT) * CURRENT
    return total + sp.Add(
        *(
            vp * (e.buffer_coefficient(THETA) * e.along_theta() + e.buffer_second_order)
            for e, vp in zip(expansions, v, strict=True)
            if vp != 0
        )
    )


def _booked(expression: sp.Expr, mechanisms: Mapping[sp.Symbol, str], default: str) -> dict[str, sp.Expr]:
    """Split a sum by mechanism: the current first, then decay, then what else a term's hyper-parameters say."""
    out: dict[str, sp.Expr] = {}
    for term in sp.Add.make_args(sp.expand(expression)):
        if term == 0:
            continue
        named = {mechanisms[s] for s in term.free_symbols if s in mechanisms}
        mechanism = EXPLICIT if CURRENT in term.free_symbols else next((m for m in ("weight_decay",) if m in named), default)
        out[mechanism] = out.get(mechanism, sp.S.Zero) + term
    return {mechanism: sp.factor(part) for mechanism, part in out.items()}
