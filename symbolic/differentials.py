"""Elementary differentials: the vectors that a Taylor expansion of gradients is made of, and power series in the step size over them.

With all derivatives taken at θ, ∇^{k+1}f [x_1, ..., x_k] is a vector again, symmetric and linear in its arguments; nested, these are
rooted trees (a node with k branches). Nothing is known of f, so they are independent: a series in them holds for every loss. The only
operation that analysis needs is the derivative along a vector, which grafts it on every node,

    D(∇^{k+1}f [x_1, ..., x_k]) [v] = ∇^{k+2}f [x_1, ..., x_k, v] + Σ_i ∇^{k+1}f [..., D x_i [v], ...],        Dθ[v] = v.

Coefficients are exact rational functions of the hyper-parameters. Source: hairer2006geometric, chapters III and IX (trees and B-series).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import factorial
from typing import Any

import sympy as sp

from noetherflow.symbolic.pairings import Vector
from noetherflow.symbolic.rules import THETA

SHIFT = Vector("delta", r"\delta")


class Differential(sp.Expr):  # type: ignore[misc]  # sympy has no type information
    """∇^{k+1}f [x_1, ..., x_k] at θ: the gradient g without arguments, H x with one, D3f(x, y) with two.

    Examples
    --------
    >>> g = Differential()
    >>> Differential(Differential(g)), Differential(g, Differential(g)) == Differential(Differential(g), g)
    (H(H(g)), True)
    """

    is_commutative = True

    def __new__(cls, *arguments: sp.Expr) -> Differential:
        """Symmetric: arguments in one order."""
        made: Differential = super().__new__(cls, *sorted(arguments, key=sp.default_sort_key))
        return made

    @property
    def name(self) -> str:
        """What it is printed as; pairings order their arguments by it."""
        arguments = ", ".join(argument.name for argument in self.args)
        tensor = {0: "g", 1: "H"}.get(len(self.args), f"D{len(self.args) + 1}f")
        return f"{tensor}({arguments})" if arguments else tensor

    def _sympystr(self, _printer: Any) -> str:
        return self.name

    def _latex(self, printer: Any) -> str:
        shown = [printer.doprint(argument) for argument in self.args]
        if len(shown) < 2:
            return "H " + shown[0] if shown else "g"
        return rf"\nabla^{{{len(shown) + 1}}}f\left[{', '.join(shown)}\right]"


@lru_cache(maxsize=65536)
def grafted(tree: sp.Expr, branch: sp.Expr) -> tuple[tuple[sp.Expr, int], ...]:
    """D(tree)[branch] as pairs of tree and multiplicity: θ becomes the branch, other vectors do not depend on θ.

    Examples
    --------
    >>> g = Differential()
    >>> grafted(Differential(g), g)
    ((D3f(g, g), 1), (H(H(g)), 1))
    """
    if tree == THETA:
        return ((branch, 1),)
    if not isinstance(tree, Differential):
        return ()
    out = {Differential(*tree.args, branch): 1}
    for i, argument in enumerate(tree.args):
        for changed, count in grafted(argument, branch):
            new = Differential(*tree.args[:i], changed, *tree.args[i + 1 :])
            out[new] = out.get(new, 0) + count
    return tuple(out.items())


Terms = dict[tuple[int, sp.Expr], Any]


@dataclass(frozen=True)
class Series:
    """A sum of c η^n T over powers n < length and trees T, with exact coefficients; what is of higher order is dropped.

    Attributes
    ----------
    domain : sympy domain
        Of the coefficients: rational functions of the hyper-parameters.
    length : int
        Number of powers of η that are kept.
    terms : dict of (power, tree) to domain element
        Without zeros.

    Examples
    --------
    >>> theta = Series.of(sp.QQ, 3, {(0, THETA): 1})
    >>> minus_g = Series.of(sp.QQ, 3, {(0, Differential()): -1})
    >>> theta.along(minus_g).along(minus_g).expression(0)
    H(g)
    """

    domain: Any
    length: int
    terms: Terms

    @classmethod
    def of(cls, domain: Any, length: int, terms: Mapping[tuple[int, sp.Expr], Any]) -> Series:
        """Make a series of SymPy or Python numbers."""
        return cls._summed(domain, length, ((key, domain.from_sympy(sp.sympify(value))) for key, value in terms.items()))

    @classmethod
    def _summed(cls, domain: Any, length: int, terms: Iterable[tuple[tuple[int, sp.Expr], Any]]) -> Series:
        out: Terms = {}
        for key, value in terms:
            if key[0] < length:
                out[key] = out.get(key, domain.zero) + value
        return cls(domain, length, {key: value for key, value in out.items() if value})

    def _with(self, terms: Iterable[tuple[tuple[int, sp.Expr], Any]]) -> Series:
        return self._summed(self.domain, self.length, terms)

    def __add__(self, other: Series) -> Series:
        return self._with([*self.terms.items(), *other.terms.items()])

    def __sub__(self, other: Series) -> Series:
        return self + other.times(-1)

    def times(self, factor: Any, power: int = 0) -> Series:
        """The series times a number and η to a power."""
        number = self.domain.convert(factor)
        return self._with(((n + power, tree), number * value) for (n, tree), value in self.terms.items())

    def kept(self, length: int) -> Series:
        """The same series with another number of powers kept; those that were dropped count as zero."""
        return self._summed(self.domain, length, self.terms.items())

    def only(self, power: int) -> Series:
        """The part with one power of η."""
        return self._with((key, value) for key, value in self.terms.items() if key[0] == power)

    def along(self, field: Series) -> Series:
        """The derivative along a vector field, D(self)[field]."""
        return self._with(
            ((n + m, new), count * value * other)
            for (n, tree), value in self.terms.items()
            for (m, branch), other in field.terms.items()
            if n + m < self.length
            for new, count in grafted(tree, branch)
        )

    def carried(self, field: Series) -> Series:
        """The series at the point that the field's flow reaches in the time η: Σ (η D[field])^n / n!."""
        return self._exponential(lambda term: term.along(field).times(1, power=1))

    def shifted(self) -> Series:
        """The series at θ + δ, for a δ that is of first order in η and does not depend on θ."""
        delta = Series.of(self.domain, self.length, {(0, SHIFT): 1})
        return self._exponential(lambda term: term.along(delta))

    def _exponential(self, derivative: Any) -> Series:
        total = term = self
        for n in range(1, self.length):
            term = derivative(term)
            total = total + term.times(self.domain.one / factorial(n))
        return total

    def substituted(self, values: Mapping[Vector, Series]) -> Series:
        """Vectors replaced by series, at the same θ."""
        out = self._with(())
        for (n, tree), value in self.terms.items():
            out = out + self._image(tree, values).times(value, power=n)
        return out

    def _image(self, tree: sp.Expr, values: Mapping[Vector, Series]) -> Series:
        if not isinstance(tree, Differential):
            return values.get(tree, self._with([((0, tree), self.domain.one)]))
        products: Terms = {(0, ()): self.domain.one}
        for argument in tree.args:
            image = self._image(argument, values)
            products = _times(products, image)
        return self._with(((n, Differential(*arguments)), value) for (n, arguments), value in products.items())

    def expression(self, power: int) -> sp.Expr:
        """What multiplies one power of η, as a SymPy expression."""
        return sp.Add(*(sp.factor(self.domain.to_sympy(value)) * tree for (n, tree), value in self.terms.items() if n == power))


def _times(products: Terms, image: Series) -> Terms:
    """Lists of arguments, one argument longer."""
    out: Terms = {}
    for (n, arguments), value in products.items():
        for (m, tree), other in image.terms.items():
            if n + m < image.length:
                key = (n + m, (*arguments, tree))
                out[key] = out.get(key, image.domain.zero) + value * other
    return out
