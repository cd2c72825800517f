"""The modified equation of a learning rule: the differential equation whose flow its steps follow to any order in the step size.

Backward error analysis. A rule's step is a map of (θ, b). One looks for power series in η: a vector field F(θ) and the buffers B(θ) that
belong to it, such that the flow of F over the time η, with the buffers on B, does what the rule does,

    exp(η D[F]) θ = θ - η u(θ, g, B),        B carried by the flow = b'(θ, g, B),

and finds F and B power by power, for each equation gives one more power of η from those that are known. F with p terms predicts a run at
a fixed time t = η · step to O(η^p). A run that starts with another buffer (at rest, say) falls onto this solution within a few steps, but
beside θ: it is followed by the flow from the point Π(θ, b), which one step of the rule and the flow over η must move alike,

    Π(θ', b') = exp(η D[F]) θ  at  Π(θ, b),        Π(θ, B(θ)) = θ.

Everything is expanded from the rule's update equations; no coefficient is typed in. Source: hairer2006geometric, chapter IX;
miyagawa2022toward for gradient descent; Π: own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache, reduce
from math import factorial
from typing import Any

import sympy as sp

from noetherflow.errors import RuleError
from noetherflow.symbolic.differentials import SHIFT, Differential, Series
from noetherflow.symbolic.pairings import Vector, parts
from noetherflow.symbolic.rules import GRADIENT, STEP, THETA, Form, Number


@dataclass(frozen=True, eq=False)
class ModifiedEquation:
    """θ' = F(θ) with F = Σ η^j field[j], j < order: the flow that the steps of a rule follow with an error O(η^order) at fixed time.

    Attributes
    ----------
    form : Form
        The rule; hyper-parameters that were given as numbers stand in its equations.
    order : int
        Number of terms.
    series : Series
        F.
    buffers : mapping of Vector to Series
        What each buffer is on the flow, before a step at θ.
    """

    form: Form
    order: int
    series: Series
    buffers: Mapping[Vector, Series]

    @cached_property
    def field(self) -> tuple[sp.Expr, ...]:
        """The coefficients of η^0, η^1, ... in θ and elementary differentials."""
        return tuple(self.series.expression(j) for j in range(self.order))

    def buffer(self, vector: Vector) -> tuple[sp.Expr, ...]:
        """The same for one buffer."""
        return tuple(self.buffers[vector].expression(j) for j in range(self.order))

    def start(self, *buffers: sp.Expr) -> tuple[sp.Expr, ...]:
        """The point Π(θ, b) from which the flow follows a run that starts at θ with given buffers.

        Parameters
        ----------
        *buffers : combinations of θ and g
            One for each buffer of the rule; zero (at rest) where none is given.

        Returns
        -------
        tuple of sympy.Expr
            The coefficients of η^0, η^1, ...; their error is O(η^order).

        Raises
        ------
        RuleError
            For a rule with several buffers.
        """
        given = dict(zip((before for before, _ in self.form.buffers), buffers, strict=False))
        values = {v: _series_of(given.get(v, sp.S.Zero), self.form, self.order) for v in self.buffers}
        shadow = self._shadow.substituted(values)
        return tuple(shadow.expression(j) for j in range(self.order))

    @cached_property
    def _shadow(self) -> Series:
        return _shadow(self)

    @property
    def equation(self) -> sp.Eq:
        """The differential equation, with η."""
        t = sp.Symbol("t", nonnegative=True)
        total = sp.Add(*(self.form.rate**j * term for j, term in enumerate(self.field)))
        return sp.Eq(sp.Derivative(sp.Function("theta")(t), t), total)

    def latex(self) -> str:
        """The differential equation, one power of η a line."""
        rows = [rf"{'' if j == 0 else sp.latex(self.form.rate**j)}\left({sp.latex(term)}\right)" for j, term in enumerate(self.field)]
        return r"\begin{aligned}\dot\theta &= " + r"\\ &+ ".join(rows) + r"\end{aligned}"

    def _repr_latex_(self) -> str:
        return rf"$\displaystyle {self.latex()}$"


@lru_cache(maxsize=64)
def modified_equation(form: Form, order: int, **values: Number) -> ModifiedEquation:
    """Derive the modified equation of a rule whose update equations are linear in θ, g and buffers.

    Parameters
    ----------
    form : Form
    order : int
        Number p of terms: 1 is the gradient flow (with the step size that momentum makes of η), each further one adds a power of η.
    **values : numbers
        Hyper-parameters to put in before, by name (``weight_decay=0``), which makes the derivation faster; a float counts as the decimal
        fraction that it is printed as.

    Returns
    -------
    ModifiedEquation
        Truncated: the error of its flow at fixed time is O(η^p).

    Raises
    ------
    RuleError
        If `order` is not a positive integer, a value has no such name, or a buffer does not forget its past (its own coefficient is one).
    NotLinear
        If an update is not linear in the vectors (Adam, signSGD).

    Examples
    --------
    >>> from noetherflow.symbolic.rules import sgd_form
    >>> plain = sgd_form(momentum=False, nesterov=False, maximize=False)
    >>> modified_equation(plain, 3, weight_decay=0).field
    (-g, -H(g)/2, -H(H(g))/3 - D3f(g, g)/12)
    """
    if order < 1 or order != int(order):
        raise RuleError(f"A modified equation needs a positive number of terms; got order={order!r}.", order=order)
    form = _with_values(form, values)
    step = _series_of(resolved(form, STEP), form, order)
    befores = [before for before, _ in form.buffers]
    memory, sources = _recursion(form, order)
    field = step.times(0)
    buffers = dict.fromkeys(befores, field)
    for length in range(1, order + 1):  # each pass makes one more power of η right
        field, buffers = field.kept(length), {b: x.kept(length) for b, x in buffers.items()}
        rests = [s.kept(length) - (buffers[b].carried(field) - buffers[b]) for b, s in zip(befores, sources, strict=True)]
        buffers = {b: _combined(row, rests) for b, row in zip(befores, memory, strict=True)}
        field = step.kept(length).substituted(buffers).times(-1) - _bend(field)
    return ModifiedEquation(form, order, field, buffers)


def _with_values(form: Form, values: Mapping[str, Number]) -> Form:
    known = dict(form.hyperparameters)
    if unknown := [name for name in values if name not in known or name == "lr"]:
        raise RuleError(f"{form.name} has no {unknown} to put in; it has {sorted(known.keys() - {'lr'})}.", unknown=unknown)
    table = {known[name]: sp.Rational(str(value)) for name, value in values.items()}
    return replace(
        form,
        equations=tuple((vector, expression.xreplace(table)) for vector, expression in form.equations),
        hyperparameters=tuple((name, symbol) for name, symbol in form.hyperparameters if name not in values),
    )


def _bend(field: Series) -> Series:
    """(exp(η D[F]) θ - θ - η F) / η = Σ η^(n-1) D[F]^(n-1) F / n!, n > 1."""
    total, term = field.times(0), field
    for n in range(2, field.length + 1):
        term = term.along(field).times(1, power=1)
        total = total + term.times(field.domain.one / factorial(n))
    return total


def _flow_step(field: Series) -> Series:
    """exp(η D[F]) θ - θ = η (F + bend)."""
    return (field + _bend(field)).times(1, power=1)


def _recursion(form: Form, order: int) -> tuple[list[list[Any]], list[Series]]:
    """(1 - C)^-1 and R of b' = C b + R(θ, g)."""
    befores = [before for before, _ in form.buffers]
    rows = [parts(resolved(form, after)) for _, after in form.buffers]
    memory = sp.eye(len(befores)) - sp.Matrix(len(befores), len(befores), lambda i, j: rows[i].get(befores[j], sp.S.Zero))
    if befores and sp.simplify(memory.det()) == 0:
        raise RuleError(f"A buffer of {form.name} never forgets its past, so no flow is approached.", form=form.name)
    domain = _domain(form)
    inverse = [[domain.from_sympy(sp.cancel(x)) for x in row] for row in (memory.inv().tolist() if befores else [])]
    rest = [sp.Add(*(c * v for v, c in row.items() if v not in befores)) for row in rows]
    return inverse, [_series_of(r, form, order) for r in rest]


def _combined(row: list[Any], series: list[Series]) -> Series:
    return reduce(Series.__add__, (s.times(factor) for factor, s in zip(row, series, strict=True)))


def resolved(form: Form, vector: Vector) -> sp.Expr:
    """A vector in terms of θ, g and the buffers as a step finds them."""
    table = dict(form.equations)
    out = table[vector]
    while made := [v for v in out.free_symbols if v in table]:
        out = sp.expand(out.xreplace({v: table[v] for v in made}))
    return out


def _domain(form: Form) -> Any:
    symbols = [s for _, s in form.hyperparameters if s != form.rate]
    return sp.QQ.frac_field(*symbols) if symbols else sp.QQ


def _series_of(combination: sp.Expr, form: Form, order: int) -> Series:
    """A linear combination of θ, g and buffers, with coefficients polynomial in η."""
    terms = {}
    for vector, coefficient in parts(combination).items():
        tree = Differential() if vector == GRADIENT else vector
        for (power,), value in sp.Poly(coefficient, form.rate).terms():
            terms[power, tree] = sp.cancel(value)
    return Series.of(_domain(form), order, terms)


def _shadow(equation: ModifiedEquation) -> Series:
    """Π(θ, b), power by power."""
    form, length = equation.form, equation.order
    theta, step = (_series_of(x, form, length) for x in (THETA, resolved(form, STEP)))
    if not form.buffers:
        return theta
    if len(form.buffers) > 1:
        raise RuleError(f"Where a run of {form.name} starts on its flow is derived for rules with one buffer.", buffers=len(form.buffers))
    before, after = next(iter(form.buffers))
    made, flowed = _series_of(resolved(form, after), form, length), theta + _flow_step(equation.series)
    out = theta
    for power in range(1, length):
        start, point, new = theta.kept(power + 1), out.kept(power + 1), made.kept(power + 1)
        moves = {before: new, SHIFT: step.kept(power + 1).times(-1, power=1)}
        displaced = flowed.kept(power + 1).shifted().substituted({SHIFT: point - start})
        missing = (displaced - point.shifted().substituted(moves)).only(power)
        part = _undone(missing, before, new)
        offset = (point + part).substituted(equation.buffers).only(power)
        out = out + part - offset
    return out


def _undone(missing: Series, before: Vector, made: Series) -> Series:
    """X with X(b') - X(b) = missing: a step multiplies d factors b by the d-th power of the buffer's memory; d from high to low."""
    memory = made.terms.get((0, before), made.domain.zero)
    total = missing.times(0)
    for degree in range(missing.length, 0, -1):
        top = {key: v / (memory**degree - 1) for key, v in missing.terms.items() if _count(key[1], before) == degree}
        part = Series(missing.domain, missing.length, top)
        total = total + part
        missing = missing - (part.substituted({before: made}) - part)
    if missing.terms:
        raise AssertionError("The flow does not carry the points of its own buffers: the modified equation is wrong.")
    return total


def _count(tree: sp.Expr, leaf: Vector) -> int:
    return sum(_count(a, leaf) for a in tree.args) if isinstance(tree, Differential) else int(tree == leaf)
