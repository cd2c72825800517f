"""Update equations that are not linear in the state: which vectors of a form still are, and what each other one follows.

Vectors are sorted by their equations alone. *Linear* ones are linear combinations of θ, g, linear buffers and what was made before;
pairings with them expand. Every other made vector is an *atom* d, about which nothing is known but its *companion* L: the linear
combination that is left when its nonlinear factors and functions are taken away,

    d = m / (√v + ε)      L = m             d = sign(β m + (1 - β) g)     L = β m + (1 - β) g       d = g²      L = 0 .

For any number κ, ⟨ξ, d⟩ = κ ⟨ξ, L⟩ + ⟨ξ, d - κ L⟩. The first term is known without measuring a gradient, the second is the source that
kinetic symmetry breaking makes; so any companion is as true as any other, and the one that d follows best leaves the smallest source.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import sympy as sp

from noetherflow.symbolic.forms import GRADIENT, THETA, Form
from noetherflow.symbolic.pairings import NotLinear, Vector, parts


class Sign(sp.Function):  # type: ignore[misc]  # sympy has no type information
    """The sign of each entry."""

    nargs = 1

    def fdiff(self, argindex: int = 1) -> sp.Expr:
        """Zero but at zero."""
        return sp.S.Zero

    def _latex(self, printer: Any, exp: str | None = None) -> str:
        return rf"\operatorname{{sign}}\left({printer.doprint(self.args[0])}\right)"


class Magnitude(sp.Function):  # type: ignore[misc]
    """The absolute value of each entry."""

    nargs = 1

    def fdiff(self, argindex: int = 1) -> sp.Expr:
        """The sign."""
        return Sign(self.args[0])

    def _latex(self, printer: Any, exp: str | None = None) -> str:
        return rf"\left|{printer.doprint(self.args[0])}\right|"


class Larger(sp.Function):  # type: ignore[misc]
    """The larger of two vectors, entry by entry."""

    nargs = 2

    def fdiff(self, argindex: int = 1) -> sp.Expr:
        """At most one."""
        return sp.S.One

    def _latex(self, printer: Any, exp: str | None = None) -> str:
        return rf"\max\left({printer.doprint(self.args[0])}, {printer.doprint(self.args[1])}\right)"


class Orthogonal(sp.Function):  # type: ignore[misc]
    """The orthogonal factor of a matrix, as an optimizer approximates it; no function of single entries."""

    nargs = 1

    def fdiff(self, argindex: int = 1) -> sp.Expr:
        """Not used: an orthogonal factor is taken as it was computed."""
        return sp.S.Zero

    def _latex(self, printer: Any, exp: str | None = None) -> str:
        return rf"\operatorname{{orth}}\left({printer.doprint(self.args[0])}\right)"


@dataclass(frozen=True)
class Structure:
    """The vectors of a form, sorted.

    Attributes
    ----------
    linear : mapping of Vector to expression
        Made vectors that are linear combinations of θ, g, linear buffers, atoms and each other.
    atoms : mapping of Vector to expression
        All other made vectors -> their companions, in linear vectors.
    buffers : tuple of (Vector, Vector)
        Buffers (before, after) that are linear.
    """

    linear: Mapping[Vector, sp.Expr]
    atoms: Mapping[Vector, sp.Expr]
    buffers: tuple[tuple[Vector, Vector], ...]


@lru_cache(maxsize=256)
def structure(form: Form) -> Structure:
    """Sort the vectors of a form.

    Examples
    --------
    >>> from noetherflow.symbolic.rules_adaptive import adam_form
    >>> found = structure(adam_form(decoupled=True))
    >>> found.atoms, found.buffers
    ({v': 0, d: m'}, ((m, m'),))
    """
    buffers = form.buffers
    while True:  # a buffer whose equation is not linear is no linear vector, and neither is what needs it
        found = _sorted(form, frozenset(before for before, _ in buffers))
        left = tuple((before, after) for before, after in buffers if after in found.linear)
        if left == buffers:
            return Structure(found.linear, found.atoms, buffers)
        buffers = left


def is_linear(form: Form) -> bool:
    """Whether the step and all buffers of a form are linear in θ, g and the buffers before, and g is taken at θ."""
    return not structure(form).atoms and form.point == THETA and not form.invariant


def _sorted(form: Form, befores: frozenset[Vector]) -> Structure:
    known: set[Vector] = {THETA, GRADIENT, *form.invariant, *befores}
    linear: dict[Vector, sp.Expr] = {}
    atoms: dict[Vector, sp.Expr] = {}
    for vector, expression in form.equations:
        if _linear_in(expression, known | atoms.keys()):
            linear[vector] = expression
            known.add(vector)
        else:
            atoms[vector] = _plain(companion(expression, known))
    return Structure(linear, atoms, ())


def _linear_in(expression: sp.Expr, vectors: Set[Vector]) -> bool:
    try:
        return parts(expression).keys() <= vectors
    except NotLinear:
        return False


def companion(expression: sp.Expr, linear: Set[Vector]) -> sp.Expr:
    """What is left of an expression without its nonlinear factors and functions: a linear combination, zero if nothing is.

    Examples
    --------
    >>> m, v, e = Vector("m"), Vector("v"), sp.Symbol("epsilon")
    >>> companion(3 * m / (sp.sqrt(v) + e), {m}), companion(Sign(m + v), {m, v}), companion(m**2, {m})
    (3*m, m + v, 0)
    """
    if isinstance(expression, Vector):
        return expression if expression in linear else sp.S.Zero
    if isinstance(expression, sp.Add):
        return sp.Add(*(companion(term, linear) for term in expression.args))
    if isinstance(expression, sp.Mul):
        moving = [factor for factor in expression.args if factor.atoms(Vector)]
        found = [x for factor in moving if (x := companion(factor, linear)) != 0]
        fixed = sp.Mul(*(factor for factor in expression.args if factor not in moving))
        return fixed * found[0] if len(found) == 1 else sp.S.Zero
    if isinstance(expression, sp.Function) and len(expression.args) == 1:
        return companion(expression.args[0], linear)
    return sp.S.Zero


def _plain(combination: sp.Expr) -> sp.Expr:
    """A multiple of one vector as the vector itself: the factor is anyone's choice."""
    found = parts(combination)
    return next(iter(found)) if len(found) == 1 else combination
