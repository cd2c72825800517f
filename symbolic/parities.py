"""Linear algebra over the field of two elements: which sets of unknowns may change sign together."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from typing import Generic, TypeVar

U = TypeVar("U", bound=Hashable)


class Span(Generic[U]):
    """A space of sets, with the symmetric difference as sum.

    Examples
    --------
    >>> span = Span()
    >>> span.add({"a", "b"}), span.add({"b", "c"}), span.add({"a", "c"})
    (True, True, False)
    >>> {"a", "c"} in span, {"a"} in span
    (True, False)
    """

    def __init__(self) -> None:
        self._bits: dict[U, int] = {}
        self._rows: dict[int, int] = {}  # highest bit -> row

    def add(self, vector: Iterable[U]) -> bool:
        """Add a vector; whether it is independent of those before."""
        left = self._reduced(self._mask(vector))
        if left:
            self._rows[left.bit_length()] = left
        return bool(left)

    def __contains__(self, vector: Iterable[U]) -> bool:
        return not self._reduced(self._mask(vector))

    def _mask(self, vector: Iterable[U]) -> int:
        return sum(1 << self._bits.setdefault(u, len(self._bits)) for u in set(vector))

    def _reduced(self, mask: int) -> int:
        left = 0
        while mask:
            row = self._rows.get(mask.bit_length())
            if row is None:
                left |= 1 << (mask.bit_length() - 1)
                mask ^= 1 << (mask.bit_length() - 1)
            else:
                mask ^= row
        return left


def kernel(equations: Sequence[Iterable[U]], targets: Sequence[U]) -> list[frozenset[U]]:
    """Sets of targets that meet every equation an even number of times, given a fit choice of the other unknowns: a basis.

    Parameters
    ----------
    equations : sequence of sets
        Each says that the sum of its unknowns is zero.
    targets : sequence of unknowns

    Examples
    --------
    >>> kernel([{"a", "x"}, {"x", "b", "c"}], ["a", "b", "c", "d"]) == [frozenset("d"), frozenset("ac"), frozenset("bc")]
    True
    """
    ties = _Ties[U]()
    left = ties.take(equations)
    classes: dict[U, list[U]] = {}
    for u in dict.fromkeys(targets):
        first = ties.first(u)
        if first is not None:
            classes.setdefault(first, []).append(u)
    solved = _solved(left, list(classes))
    held = {u for equation in left for u in equation}
    free = [frozenset({u}) for u in classes if u not in held]
    return [frozenset(u for first in vector for u in classes[first]) for vector in free + solved]


def _solved(equations: Sequence[frozenset[U]], targets: Sequence[U]) -> list[frozenset[U]]:
    """The kernel of equations, projected to those targets that they hold."""
    held = dict.fromkeys(u for equation in equations for u in equation)
    wanted = [u for u in targets if u in held]
    order = wanted + [u for u in held if u not in set(wanted)]  # the others are eliminated first: they have the highest bits
    bit = {u: 1 << i for i, u in enumerate(order)}
    pivots: dict[int, int] = {}
    for equation in equations:
        row = sum(bit[u] for u in equation)
        while row and (above := pivots.get(row.bit_length())) is not None:
            row ^= above
        if row:
            pivots[row.bit_length()] = row
    for length in sorted(pivots):
        row = pivots[length]
        for lower in sorted(pivots, reverse=True):
            if lower < length and row >> (lower - 1) & 1:
                row ^= pivots[lower]
        pivots[length] = row
    free = [i for i in range(len(wanted)) if i + 1 not in pivots]
    return [frozenset({wanted[i], *(wanted[p - 1] for p, row in pivots.items() if p <= len(wanted) and row >> i & 1)}) for i in free]


class _Ties(Generic[U]):
    """Unknowns that are equal, or zero."""

    def __init__(self) -> None:
        self._above: dict[U, U | None] = {}

    def first(self, u: U) -> U | None:
        """What stands for an unknown; None for zero."""
        way = []
        here: U | None = u
        while here is not None and here in self._above:
            way.append(here)
            here = self._above[here]
        for passed in way:
            self._above[passed] = here
        return here

    def take(self, equations: Sequence[Iterable[U]]) -> list[frozenset[U]]:
        """Take out equations of one or two unknowns until there are none; the others, in what stands for their unknowns."""
        left: list[frozenset[U]] = [frozenset(equation) for equation in equations]
        tied = True
        while tied:
            tied, remaining = False, []
            for equation in left:
                rewritten = self._rewritten(equation)
                if len(rewritten) > 2:
                    remaining.append(rewritten)
                elif rewritten:
                    tied = True
                    u, *others = rewritten
                    self._above[u] = others[0] if others else None
            left = remaining
        return list(dict.fromkeys(left))

    def _rewritten(self, equation: frozenset[U]) -> frozenset[U]:
        odd: set[U] = set()
        for u in equation:
            first = self.first(u)
            if first is not None:
                odd ^= {first}
        return frozenset(odd)
