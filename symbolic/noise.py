"""The drift of a charge under mini-batch noise: the expectation of its exact balance law over the mini-batches that may be drawn.

A mini-batch gradient is g = ḡ + ε, the mean over S of N per-sample gradients g_i, with E ε = 0 and covariance κΣ, Σ that of the g_i:

    κ = 1/S with replacement,        κ = (N - S) / (S (N - 1)) without.

A balance law is a polynomial of degree two in g, so its expectation given θ and the buffers is exact, and asks for second moments only:

    E⟨g, A g⟩ = ⟨ḡ, A ḡ⟩ + κ Tr[AΣ],        E⟨b, A g⟩ = ⟨b, A ḡ⟩,        E J = mean current.

Each sample's loss has the symmetry, ⟨ξ, g_i⟩ = 0, hence Σξ = 0: no term of order η fluctuates, a charge has no martingale part in the limit
of a stochastic differential equation. With momentum ⟨b, A b⟩ joins the state; its recursion closes but for ⟨b, A ḡ⟩, the correlation of
the buffer with the mean gradient, which is named in `Drift.open`.

Source: own (the expansion); its limit of small steps is ziyin2024implicit, for products of weights ziyin2023law.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, TypeAlias

import sympy as sp

from noetherflow.errors import RuleError
from noetherflow.symbolic.balance import CHARGE, CURRENT, DISCRETIZATION, EXPLICIT, MOMENTUM, Balance, in_group
from noetherflow.symbolic.pairings import Inner, NotLinear, Vector, inner
from noetherflow.symbolic.rules import GRADIENT, THETA, Form

NOISE: Final = "noise"
MEAN: Final = Vector("gbar", r"\bar g")
FLUCTUATION: Final = Vector("epsilon", r"\varepsilon")
BATCH: Final = sp.Symbol("S", positive=True)
TEMPERATURE: Final = sp.Symbol("T", positive=True)

Count: TypeAlias = int | sp.Expr


class Spread(sp.Function):  # type: ignore[misc]  # sympy has no type information
    """Tr[AΣ], the pairing of the covariance of per-sample gradients (over N, not N - 1) with a generator."""

    nargs = 1

    def _latex(self, printer: Any, exp: str | None = None) -> str:
        body = r"\operatorname{Tr}\left[A\Sigma\right]"
        return body if exp is None else rf"{body}^{{{exp}}}"


def sampling_factor(batch: Count = BATCH, population: Count | None = None) -> sp.Expr:
    """κ, the covariance of a mini-batch gradient over that of per-sample gradients.

    Parameters
    ----------
    batch : int or expression
        Samples in a mini-batch, S.
    population : int or expression, optional
        Samples there are, N, if each mini-batch is drawn without replacement; with replacement (or from a stream) if absent.

    Examples
    --------
    >>> sampling_factor(), sampling_factor(4, 10), sampling_factor(10, 10)
    (1/S, 1/6, 0)
    """
    s: Any = sp.sympify(batch)
    n: Any = None if population is None else sp.sympify(population)
    if s.is_positive is False or (n is not None and ((n - s).is_negative or n == 1)):
        raise RuleError(f"No mini-batch of {batch} samples can be drawn from {population}.", batch=batch, population=population)
    return 1 / s if n is None else (n - s) / (s * (n - 1))


@dataclass(frozen=True)
class Drift:
    """The expected step of a charge, and of the pairings that it needs, given θ and the buffers.

    Attributes
    ----------
    balance : Balance
        The exact law that it is the expectation of.
    factor : sympy.Expr
        κ (see `sampling_factor`).
    expected : mapping of sympy.Expr to sympy.Expr
        State -> its expectation after the step: Q, each K, and ⟨b, A b⟩ where there is a buffer. Exact.
    fluctuation : sympy.Expr
        Q' - E[Q'], in ε = g - ḡ, for an exact symmetry: nothing of order η.
    """

    balance: Balance
    factor: sp.Expr
    expected: Mapping[sp.Expr, sp.Expr]
    fluctuation: sp.Expr

    @cached_property
    def change(self) -> sp.Expr:
        """E[Q'] - Q."""
        return sp.expand(self.expected[CHARGE] - CHARGE)

    @cached_property
    def terms(self) -> Mapping[str, sp.Expr]:
        """Mechanism -> its part of E[Q'] - Q; what mini-batches add is 'noise'."""
        mechanisms = {in_group(s, p, len(self.balance.forms)): m for p, f in enumerate(self.balance.forms) for s, m in f.mechanisms}
        out: dict[str, sp.Expr] = {}
        for term in sp.Add.make_args(self.change):
            name = _mechanism(term, mechanisms)
            out[name] = out.get(name, sp.S.Zero) + term
        return {name: sp.factor(part) for name, part in out.items() if part != 0}

    @property
    def equations(self) -> tuple[sp.Eq, ...]:
        """E[x'] = ... for each x of the state."""
        return tuple(sp.Eq(sp.Symbol(f"E[{sp.sstr(x)}']"), value, evaluate=False) for x, value in self.expected.items())

    @property
    def sources(self) -> tuple[sp.Expr, ...]:
        """What must be known of the gradients: ⟨ḡ, A ḡ⟩, Tr[AΣ], the mean current, and the open pairings."""
        known = set(self.expected)
        found = {a for value in self.expected.values() for a in value.atoms(Inner, Spread, sp.Symbol)}
        wanted = {a for a in found if isinstance(a, Inner | Spread) or a == CURRENT}
        return tuple(sorted(wanted - known, key=str))

    @property
    def open(self) -> tuple[Inner, ...]:
        """Pairings that neither a recursion nor the gradients at θ give: of a buffer with the mean gradient."""
        buffers = {before for before, _ in _buffers(self.balance)}
        return tuple(s for s in self.sources if isinstance(s, Inner) and buffers & set(s.args))

    def latex(self) -> str:
        """The expected steps, aligned."""
        rows = [rf"\mathbb E\left[{sp.latex(x)}'\right] &= {sp.latex(value)}" for x, value in self.expected.items()]
        return r"\begin{aligned}" + r"\\ ".join(rows) + r"\end{aligned}"

    def _repr_latex_(self) -> str:
        return rf"$\displaystyle {self.latex()}$"


def derive_drift(balance: Balance, batch: Count = BATCH, population: Count | None = None) -> Drift:
    """Derive the expected step of a balance law.

    Parameters
    ----------
    balance : Balance
    batch, population
        As for `sampling_factor`.

    Returns
    -------
    Drift
        Exact: no order in η is dropped, and nothing is assumed of the distribution of the gradients.

    Raises
    ------
    RuleError
        If the rule's update is not linear in the gradient (its expectation then needs more than second moments), or the mini-batch
        cannot be drawn.

    Examples
    --------
    >>> from noetherflow.symbolic.balance import derive_balance
    >>> from noetherflow.symbolic.rules import sgd_form
    >>> plain = derive_balance((sgd_form(momentum=False, nesterov=False, maximize=False),), False, True)
    >>> drift = derive_drift(plain)
    >>> drift.terms["discretization"], drift.terms["noise"]
    (eta**2*Inner(gbar, gbar)/2, eta**2*Spread(g)/(2*S))
    >>> sp.factor(drift.expected[CHARGE].subs(CURRENT, 0).coeff(CHARGE))
    (eta*lambda - 1)**2
    """
    factor = sampling_factor(batch, population)
    groups = len(balance.forms)
    try:
        table = [_in_state(form, p, groups) for p, form in enumerate(balance.forms)]
        exact = {CHARGE: balance.equations[0].rhs}
        exact |= {k: equation.rhs for k, equation in zip(balance.momenta, balance.equations[1:], strict=False)}
        if balance.closed and any(e.atoms(Inner) for e in exact.values()):
            exact |= {Inner(before, before): Inner(after, after) for before, after in _buffers(balance)}
        stepped = {x: _reduced(_expanded(value, table), balance) for x, value in exact.items()}
    except NotLinear as error:
        raise RuleError(f"The drift of a charge needs an update that is linear in the gradient: {error}.") from error
    expected = {x: sp.expand(_averaged(value, factor, groups)) for x, value in stepped.items()}
    return Drift(balance, factor, expected, _fluctuation(stepped[CHARGE], factor, groups))


def _in_state(form: Form, number: int, groups: int) -> dict[Vector, sp.Expr]:
    """Every vector that a step makes in θ, g and the buffers before it, named by its group."""
    out: dict[Vector, sp.Expr] = {}
    for vector, value in form.equations:
        out[in_group(vector, number, groups)] = sp.expand(in_group(value, number, groups).xreplace(out))
    return out


def _expanded(expression: sp.Expr, table: list[dict[Vector, sp.Expr]]) -> sp.Expr:
    made = {vector: value for own in table for vector, value in own.items()}
    return sp.expand(expression.replace(Inner, lambda x, y: inner(made.get(x, x), made.get(y, y))))


def _reduced(expression: sp.Expr, balance: Balance) -> sp.Expr:
    """Pairings with θ are charges and momenta: ⟨θ, Aθ⟩ = 2Q, ⟨b, Aθ⟩ = K, ⟨g, Aθ⟩ = J. Across groups only the first is known of each."""
    groups = len(balance.forms)
    known: dict[sp.Expr, sp.Expr] = {}
    for p in range(groups):
        theta = in_group(THETA, p, groups)
        known[Inner(theta, theta)] = 2 * (CHARGE if groups == 1 else sp.Symbol(f"Q_{p}", real=True))
    if groups == 1:
        known[Inner(GRADIENT, THETA)] = CURRENT
        known |= {Inner(before, THETA): k for k, (before, _) in zip(balance.momenta, _buffers(balance), strict=True)}
    return sp.expand(expression.xreplace(known))


def _averaged(expression: sp.Expr, factor: sp.Expr, groups: int) -> sp.Expr:
    """The expectation of an expression that is quadratic in g."""

    def mean(x: Vector, y: Vector) -> sp.Expr:
        gradients = {in_group(GRADIENT, p, groups): in_group(MEAN, p, groups) for p in range(groups)}
        paired = Inner(gradients.get(x, x), gradients.get(y, y))
        return paired + factor * Spread(x) if x == y and x in gradients else paired

    return expression.replace(Inner, mean)


def _fluctuation(expression: sp.Expr, factor: sp.Expr, groups: int) -> sp.Expr:
    """What is left of an expression after its expectation, with g = ḡ + ε and ⟨ξ, ε⟩ = 0."""
    noisy = {in_group(GRADIENT, p, groups): in_group(MEAN, p, groups) + in_group(FLUCTUATION, p, groups) for p in range(groups)}
    whole = expression.replace(Inner, lambda x, y: inner(noisy.get(x, x), noisy.get(y, y)))
    return sp.collect(sp.expand(whole - _averaged(expression, factor, groups)), sp.Symbol("eta", real=True))


def _buffers(balance: Balance) -> tuple[tuple[Vector, Vector], ...]:
    n = len(balance.forms)
    return tuple((in_group(b, p, n), in_group(a, p, n)) for p, form in enumerate(balance.forms) for b, a in form.buffers)


def _mechanism(term: sp.Expr, mechanisms: Mapping[sp.Symbol, str]) -> str:
    named = {mechanisms[s] for s in term.free_symbols if s in mechanisms}
    if term.has(Spread):
        return NOISE
    if CURRENT in term.free_symbols:
        return EXPLICIT
    remembered = any(s.name == "mu" or s.name.startswith("mu_") for s in term.free_symbols)
    return "weight_decay" if "weight_decay" in named else MOMENTUM if remembered else DISCRETIZATION
