"""Equations of two terms, taken out of a linear system before it is solved: they say that one unknown is a multiple of another.

Most equations are of this kind (what a tensor does, the next one does too), and a chain of them is one unknown, however long: what is
left for elimination does not grow with depth.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from fractions import Fraction
from typing import Generic, TypeVar

U = TypeVar("U", bound=Hashable)

ONE = Fraction(1)


class Ties(Generic[U]):
    """Classes of unknowns that are multiples of one another.

    Parameters
    ----------
    ordered : sequence of unknowns
        Those that come first, in order: the first of them in a class stands for the class.

    Examples
    --------
    >>> ties = Ties(["a", "b"])
    >>> ties.take([{"b": ONE, "c": -2 * ONE}, {"c": ONE, "a": ONE, "d": ONE}])
    [{'b': Fraction(1, 2), 'a': Fraction(1, 1), 'd': Fraction(1, 1)}]
    >>> ties.spread({"a": ONE, "b": -2 * ONE, "d": ONE * 0})
    {'a': Fraction(1, 1), 'b': Fraction(-2, 1), 'd': Fraction(0, 1), 'c': Fraction(-1, 1)}
    """

    def __init__(self, ordered: Iterable[U]) -> None:
        self._order = {u: i for i, u in enumerate(ordered)}
        self._above: dict[U, tuple[U, Fraction]] = {}  # u = ratio * what is above it
        self._classes: dict[U, list[tuple[U, Fraction]]] | None = None

    def first(self, u: U) -> tuple[U, Fraction]:
        """What stands for the class of an unknown, and the ratio of the unknown to it."""
        ratio, here = ONE, u
        while here in self._above:
            here, factor = self._above[here]
            ratio = _product(ratio, factor)
        if here is not u and self._above[u][0] is not here:
            self._above[u] = here, ratio
        return here, ratio

    def take(self, equations: Sequence[Mapping[U, Fraction]]) -> list[dict[U, Fraction]]:
        """Tie what equations of two terms tie, until none is left; the others, in what stands for each class, each once."""
        left: list[dict[U, Fraction]] = [dict(equation) for equation in equations]
        tied = True
        while tied:
            tied = False
            remaining = []
            for equation in left:
                rewritten = self._rewritten(equation)
                if len(rewritten) == 2:
                    tied = True
                    self._tie(*rewritten.items())
                elif rewritten:
                    remaining.append(rewritten)
            left = remaining
        return list({frozenset(equation.items()): equation for equation in left}.values())

    def spread(self, vector: Mapping[U, Fraction]) -> dict[U, Fraction]:
        """A solution in what stands for the classes, with every unknown of them."""
        if self._classes is None:
            self._classes = defaultdict(list)
            for u in self._above:
                first, ratio = self.first(u)
                self._classes[first].append((u, ratio))
        out = dict(vector)
        for first, value in vector.items():
            out.update((u, _product(value, ratio)) for u, ratio in self._classes.get(first, ()))
        return out

    def _rewritten(self, equation: dict[U, Fraction]) -> dict[U, Fraction]:
        if self._above.keys().isdisjoint(equation):
            return equation
        out: dict[U, Fraction] = {}
        for u, c in equation.items():
            first, ratio = self.first(u)
            total = out.get(first, 0) + _product(c, ratio)
            if total:
                out[first] = Fraction(total)
            else:
                out.pop(first, None)
        return out

    def _tie(self, one: tuple[U, Fraction], other: tuple[U, Fraction]) -> None:
        (u, a), (v, b) = one, other
        if self._place(v) < self._place(u):
            u, a, v, b = v, b, u, a
        self._above[v] = u, ONE if a == -b else -a / b
        self._classes = None

    def _place(self, u: U) -> int:
        return self._order.get(u, len(self._order))


def _product(a: Fraction, b: Fraction) -> Fraction:
    return b if a is ONE else a if b is ONE else a * b
