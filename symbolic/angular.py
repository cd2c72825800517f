"""The exact law of an angular momentum, derived from a rule's update equations.

An antisymmetric generator ξ(θ) = Aθ has no charge: its one-form is not closed. It has a momentum, K = ⟨ξ(θ), b⟩ with the rule's buffer b;
where a rule has none, D = ⟨ξ(θ), Δ⟩ with the step Δ = -η u itself. One step moves it by

    K' = ⟨ξ(θ + Δ), b'⟩ = ⟨Aθ, b'⟩ - η ⟨A u, b'⟩ .                                                          (1)

b' and u are combinations of θ, g and b, and ⟨A x, y⟩ = -⟨A y, x⟩. So ⟨Aθ, θ⟩ = 0, whence weight decay drops out of the first term;
⟨Aθ, g⟩ = J, zero or a known current; ⟨Aθ, b⟩ = K. Of (1) there remains a multiple of the one pairing ⟨A b, g⟩, which is measured; the
multiple is a two-by-two minor of the coefficients of u and b' and vanishes where these are parallel (heavy ball). No ⟨ξ, g⟩ is measured:
that term is where a wrong symmetry would hide. Where the gradient is that of another point y(θ, b), ⟨Aθ, g⟩ = J - ⟨A(y - θ), g⟩; further
combinations of samples' gradients (natural gradient's F u) are as invariant as g and have no part along Aθ. A step that is not such a
combination stays as it was made: (1) with -η u = Δ.

When a family crosses parameter groups, only the sum of their ⟨ξ, g⟩ is known: the weights of the combination that takes no more than that
are solved for, and whether it closes is seen from the factors of the groups' momenta.

Source: own (the expansion of (1)); heavy ball from rest and its limit in continuous time agree with marcotte2024keep and tanaka2021noether.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any, Final

import sympy as sp

from noetherflow.symbolic.balance import CURRENT, DISCRETIZATION, EXPLICIT, MOMENTUM, identify_in, in_group
from noetherflow.symbolic.pairings import NotLinear, Vector, parts
from noetherflow.symbolic.rules import GRADIENT, STEP, THETA, Form

ANGULAR: Final = sp.Symbol("K", real=True)
CONSTRAINT: Final = sp.Symbol("D", real=True)
DISPLACEMENT: Final = Vector("Delta", r"\Delta")
DECAY: Final = "weight_decay"


class Wedge(sp.Function):  # type: ignore[misc]  # sympy has no type information
    """⟨A x, y⟩ of two vectors, with A antisymmetric.

    Examples
    --------
    >>> x, y = Vector("x"), Vector("y")
    >>> Wedge(y, x), Wedge(x, x)
    (-Wedge(x, y), 0)
    """

    nargs = 2

    @classmethod
    def eval(cls, x: sp.Expr, y: sp.Expr) -> sp.Expr | None:
        """Antisymmetric: arguments in one order, nothing where they are equal."""
        if x == y:
            return sp.S.Zero
        return -cls(y, x) if y.name < x.name else None

    def _latex(self, printer: Any, exp: str | None = None) -> str:
        x, y = (printer.doprint(v) for v in self.args)
        body = rf"\left\langle A {x}, {y}\right\rangle"
        return body if exp is None else rf"{body}^{{{exp}}}"


@dataclass(frozen=True)
class MomentumBalance:
    """One step of an angular momentum, as SymPy expressions split by mechanism.

    Attributes
    ----------
    forms : tuple of Form
        The rule of each parameter group of the family.
    weights : tuple of expressions
        The combination K = Σ weights[p] K_p, equal to one for the first group.
    buffers : tuple of (Vector, Vector) or None
        For each group, the buffer before and after the step; None where K_p is the pairing with the step itself.
    terms : mapping of str to expression
        Mechanism -> its part of K' - K (of K' alone for groups without a buffer, whose pairing does not last).
    closed : bool
        False: no combination closes, for the groups' momenta shrink at different rates; each K_p is measured before the step.
    """

    forms: tuple[Form, ...]
    weights: tuple[sp.Expr, ...]
    buffers: tuple[tuple[Vector, Vector] | None, ...]
    terms: Mapping[str, sp.Expr]
    closed: bool

    @property
    def lasting(self) -> bool:
        """Whether any group has a buffer, so that there is a momentum from step to step."""
        return any(self.buffers)

    @property
    def before(self) -> sp.Expr:
        """What K' is counted from: K, or the combination of the groups' K_p where the law does not close; zero without a buffer."""
        if self.closed:
            return ANGULAR if self.lasting else sp.S.Zero
        held = [w * own(p, len(self.forms)) for p, (w, b) in enumerate(zip(self.weights, self.buffers, strict=True)) if b]
        return sp.Add(*held)

    @property
    def equations(self) -> tuple[sp.Eq, ...]:
        """The law: K', or the constraint on D where no buffer lasts."""
        left = sp.Symbol("K'", real=True) if self.lasting else CONSTRAINT
        whole = _coefficients(sp.expand(self.before + sp.Add(*self.terms.values())))
        return (sp.Eq(left, sp.Add(*(sp.factor(c) * atom for atom, c in whole.items())), evaluate=False),)

    @property
    def sources(self) -> tuple[Wedge, ...]:
        """The pairings that must be measured in every step."""
        found = {pairing for term in self.terms.values() for pairing in term.atoms(Wedge)}
        return tuple(sorted(found, key=str))

    def latex(self) -> str:
        """The equations, aligned."""
        return r"\begin{aligned}" + r"\\ ".join(rf"{sp.latex(e.lhs)} &= {sp.latex(e.rhs)}" for e in self.equations) + r"\end{aligned}"


def own(number: int, groups: int) -> sp.Symbol:
    """The momentum of one group."""
    return ANGULAR if groups == 1 else sp.Symbol(f"{ANGULAR.name}_{number}", real=True)


@lru_cache(maxsize=256)
def derive_momentum(forms: tuple[Form, ...], same_momentum: bool) -> MomentumBalance:
    """Derive the law of the angular momentum of a family that crosses the given groups.

    Parameters
    ----------
    forms : tuple of Form
        One per parameter group.
    same_momentum : bool
        Whether hyper-parameters other than the step size and the decay are equal in all groups, now and later.

    Returns
    -------
    MomentumBalance
        Exact: no order in η is dropped.

    Raises
    ------
    NotLinear
        If neither a buffer nor the step is a linear combination of state vectors.

    Examples
    --------
    >>> from noetherflow.symbolic.rules import sgd_form
    >>> derive_momentum((sgd_form(momentum=True, nesterov=False, maximize=False),), True).equations
    (Eq(K', J*(1 - tau) + K*mu),)
    >>> derive_momentum((sgd_form(momentum=True, nesterov=True, maximize=False),), True).sources
    (Wedge(b, g),)
    """
    groups = [_Group(form, p, len(forms)) for p, form in enumerate(forms)]
    shared = _shared(forms) if same_momentum else {}
    moved = [sp.expand(identify_in(group.moved, shared)) for group in groups]
    rates = [m.coeff(CURRENT, 1) for m in moved]
    weights = tuple(sp.cancel(rates[0] / rate) for rate in rates)
    names = [own(p, len(forms)) for p in range(len(forms))]
    factors = [m.coeff(name, 1) for m, name in zip(moved, names, strict=True)]
    closed = _closes(groups, factors, weights)
    total = rates[0] * CURRENT + sp.Add(*(w * (m - r * CURRENT) for w, m, r in zip(weights, moved, rates, strict=True)))
    if closed:
        total += factors[0] * ANGULAR - sp.Add(*(w * f * name for w, f, name in zip(weights, factors, names, strict=True)))
    empty = MomentumBalance(forms, weights, tuple(group.buffer for group in groups), {}, closed)
    decays = {s for g in groups for symbol, m in g.form.mechanisms if m == DECAY for s in (symbol, in_group(symbol, g.number, g.groups))}
    return replace(empty, terms=_booked(sp.expand(total - empty.before), decays))


def _closes(groups: Sequence[_Group], factors: Sequence[sp.Expr], weights: Sequence[sp.Expr]) -> bool:
    """Whether the combination is carried on by itself: equal factors, and weights that no hyper-parameter can change."""
    if not any(group.buffer for group in groups):
        return True
    equal = all(sp.expand(f - factors[0]) == 0 and w == 1 for f, w in zip(factors, weights, strict=True))
    return equal and all(group.buffer for group in groups)


@dataclass(frozen=True)
class _Group:
    """One parameter group: (1) over θ, g and its buffer."""

    form: Form
    number: int
    groups: int

    @cached_property
    def buffer(self) -> tuple[Vector, Vector] | None:
        """The first buffer that averages gradients: one that is a combination of θ, g and itself."""
        for before, after in self.form.buffers:
            found = combination(self.form, after)
            if found is not None and found.keys() <= {THETA, GRADIENT, before} and GRADIENT in found:
                return before, after
        return None

    @property
    def moved(self) -> sp.Expr:
        """K' of this group (or D), its symbols numbered."""
        return in_group(sp.expand(self._moved), self.number, self.groups)

    @property
    def _moved(self) -> sp.Expr:
        step = combination(self.form, STEP)
        if self.buffer is None:
            if step is None:
                raise NotLinear(f"The rule '{self.form.name}' keeps no running average of gradients, and its step is not linear in them.")
            return -self.form.rate * self._paired({THETA: sp.S.One}, step)
        after = combination(self.form, self.buffer[1]) or {}
        if step is None or not step.keys() <= {THETA, GRADIENT, self.buffer[0], *self.form.invariant}:
            return self._paired({THETA: sp.S.One}, after) + Wedge(DISPLACEMENT, self.buffer[1])
        return self._paired({THETA: sp.S.One}, after) - self.form.rate * self._paired(step, after)

    def _paired(self, x: Mapping[Vector, sp.Expr], y: Mapping[Vector, sp.Expr]) -> sp.Expr:
        return sp.Add(*(c * d * self._pair(a, b) for a, c in x.items() for b, d in y.items()))

    def _pair(self, x: Vector, y: Vector) -> sp.Expr:
        """⟨A x, y⟩ as far as it is known."""
        known = {GRADIENT: CURRENT - self._ahead} | ({self.buffer[0]: ANGULAR} if self.buffer else {})
        known |= dict.fromkeys(self.form.invariant, sp.S.Zero)
        if x == THETA and y in known:
            return known[y]
        if y == THETA and x in known:
            return -known[x]
        return Wedge(x, y)

    @property
    def _ahead(self) -> sp.Expr:
        """⟨A(y - θ), g⟩, with y where the gradient is taken."""
        return sp.Add(*(c * Wedge(v, GRADIENT) for v, c in parts(sp.expand(self.form.point - THETA)).items()))


def combination(form: Form, vector: Vector) -> dict[Vector, sp.Expr] | None:
    """A vector over θ, g and the buffers before the step; None where it is no linear combination of them."""
    table = dict(form.equations)
    out = table[vector]
    while made := [v for v in out.free_symbols if v in table]:
        out = sp.expand(out.xreplace({v: table[v] for v in made}))
    try:
        return parts(out)
    except NotLinear:
        return None


def _shared(forms: Sequence[Form]) -> dict[sp.Symbol, sp.Symbol]:
    """Numbered hyper-parameters that all groups have in common -> one symbol."""
    if len(forms) == 1:
        return {}
    named = [(p, symbol) for p, form in enumerate(forms) for name, symbol in form.hyperparameters if name not in ("lr", DECAY)]
    return {in_group(symbol, p, len(forms)): symbol for p, symbol in named}


def _booked(change: sp.Expr, decays: Collection[sp.Symbol]) -> dict[str, sp.Expr]:
    """Split by mechanism: currents, what second-order pairings bring, what decay brings; the rest is how momentum shrinks."""
    out: dict[str, sp.Expr] = {}
    for atom, coefficient in _coefficients(change).items():
        without = sp.cancel(coefficient.xreplace(dict.fromkeys(decays, sp.S.Zero)))
        plain = EXPLICIT if atom == CURRENT else DISCRETIZATION if isinstance(atom, Wedge) else MOMENTUM
        for mechanism, part in ((plain, without), (DECAY, sp.cancel(coefficient - without))):
            if part != 0:
                out[mechanism] = out.get(mechanism, sp.S.Zero) + sp.factor(part) * atom
    return out


def _coefficients(expression: sp.Expr) -> dict[sp.Expr, sp.Expr]:
    """What multiplies each momentum, current and pairing of an expression that is linear in them."""
    momenta = {s for s in expression.free_symbols if s == ANGULAR or s.name.startswith(f"{ANGULAR.name}_")}
    atoms = sorted({*momenta, *expression.atoms(Wedge), *({CURRENT} & expression.free_symbols)}, key=str)
    return {atom: expression.coeff(atom, 1) for atom in atoms}
