"""The bilinear algebra of state vectors.

Vectors of a learning rule (θ, g, buffers, the step u) are symbols; an update is a linear combination of them. With a generator
ξ(θ) = Aθ + a, A symmetric, three scalars are all that a law needs:

    Along(x)     = ⟨ξ(θ), x⟩             first order: for x = g it is zero by invariance, or the current J of an explicit breaking
    Inner(x, y)  = ⟨x, A y⟩              second order, symmetric
    Q            = ½⟨θ, Aθ⟩ + ⟨a, θ⟩     the charge

`along` and `inner` expand linear combinations; nothing else is known about the vectors.
"""

from __future__ import annotations

from typing import Any

import sympy as sp


class Vector(sp.Symbol):  # type: ignore[misc]  # sympy has no type information
    """A state vector of a learning rule, as a symbol."""

    def __new__(cls, name: str, latex: str = "") -> Vector:
        """Make a symbol that knows how it is shown in LaTeX."""
        symbol: Vector = super().__new__(cls, name)
        symbol.shown = latex or name
        return symbol

    def _latex(self, _printer: Any) -> str:
        return str(self.shown)


class Inner(sp.Function):  # type: ignore[misc]
    """⟨x, A y⟩ of two vectors."""

    nargs = 2

    @classmethod
    def eval(cls, x: sp.Expr, y: sp.Expr) -> sp.Expr | None:
        """Symmetric: arguments in one order."""
        return cls(y, x) if y.name < x.name else None

    def _latex(self, printer: Any, exp: str | None = None) -> str:
        x, y = (printer.doprint(v) for v in self.args)
        body = rf"\left\langle {x}, A {y}\right\rangle"
        return body if exp is None else rf"{body}^{{{exp}}}"


class Along(sp.Function):  # type: ignore[misc]
    """⟨ξ(θ), x⟩ of a vector."""

    nargs = 1

    def _latex(self, printer: Any, exp: str | None = None) -> str:
        body = rf"\left\langle \xi(\theta), {printer.doprint(self.args[0])}\right\rangle"
        return body if exp is None else rf"{body}^{{{exp}}}"


class NotLinear(Exception):
    """An update is not linear in the state vectors, so pairings do not expand."""


def parts(combination: sp.Expr) -> dict[Vector, sp.Expr]:
    """Coefficients of a linear combination of vectors.

    Raises
    ------
    NotLinear
        If it is not one.

    Examples
    --------
    >>> x, y, c = Vector("x"), Vector("y"), sp.Symbol("c")
    >>> parts(c * (x + 2 * y))
    {x: c, y: 2*c}
    """
    expanded = sp.expand(combination)
    vectors = sorted((s for s in expanded.free_symbols if isinstance(s, Vector)), key=lambda v: v.name)
    out = {v: expanded.coeff(v, 1) for v in vectors}
    rest = sp.expand(expanded - sp.Add(*(c * v for v, c in out.items())))
    if rest != 0 or any(c.free_symbols & set(vectors) for c in out.values()):
        raise NotLinear(f"{combination} is not linear in {vectors}")
    return out


def along(combination: sp.Expr) -> sp.Expr:
    """⟨ξ(θ), combination⟩, expanded."""
    return sp.Add(*(c * Along(v) for v, c in parts(combination).items()))


def inner(left: sp.Expr, right: sp.Expr) -> sp.Expr:
    """⟨left, A right⟩, expanded bilinearly."""
    a, b = parts(left), parts(right)
    return sp.Add(*(c * d * Inner(x, y) for x, c in a.items() for y, d in b.items()))
