"""Axis classes: which axes of which tensors share one index.

An *atom* is an index set that the network never looks inside. Axes are products of atoms: `reshape` regroups them and splits an atom into
a product when it must, `concatenate` and `slice` refine an atom into a disjoint sum, and contractions, additions and element-wise
operations *unify* atoms (union-find). All of it is lazy: an axis names occurrences of atoms, and `segments` says what they have become.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import count, product
from typing import Any

import sympy as sp

from noetherflow.symbolic.graph import Size

Identity = tuple[Size | str, ...]


class Misaligned(Exception):
    """Two axes that must share an index have structures that do not fit; the caller treats the operation as opaque."""


@dataclass(frozen=True, slots=True)
class Occurrence:
    """One appearance of an atom in a tensor; reshaping and permuting keep its identity.

    A factor of a split atom is known by where the atom appeared and by its stride there. Neither depends on the order in which factors
    were split off, so a tensor and all its views mean the same index by the same identity.
    """

    atom: int
    path: Identity
    stride: Size = 1

    @property
    def identity(self) -> Identity:
        """The name of this appearance."""
        return (*self.path, self.stride)


Axis = tuple[Occurrence, ...]


@dataclass(frozen=True, slots=True)
class Leaf:
    """A finally resolved index of a segment: its atom, identity, size, and stride in elements of the axis it came from."""

    atom: int
    identity: Identity
    size: Size
    stride: Size


@dataclass(frozen=True, slots=True)
class Segment:
    """One summand of an axis: where it starts, the product of indices it is, and the choices of summands that lead to it."""

    offset: Size
    leaves: tuple[Leaf, ...]
    choices: frozenset[tuple[Identity, int]]


def multiply(sizes: Sequence[Size]) -> Size:
    """Product of sizes; integers stay integers."""
    return reduce(lambda a, b: a * b, sizes, 1)


def divide(size: Size, by: Size) -> Size | None:
    """The quotient if `by` divides `size` (exactly, also for symbols), else None."""
    if isinstance(size, int) and isinstance(by, int):
        return size // by if by and size % by == 0 else None
    quotient = sp.cancel(sp.sympify(size) / by)
    return quotient if sp.denom(quotient) == 1 else None


class AxisTable:
    """The atoms of one graph, with union-find over them and their refinements."""

    def __init__(self) -> None:
        self._parent: list[int] = []
        self._size: list[Size] = []
        self._product: dict[int, tuple[int, ...]] = {}
        self._sum: dict[int, tuple[tuple[int, ...], ...]] = {}
        self._serial = count()
        self._changes = 0
        self._known: dict[Any, Any] = {}
        self._state: tuple[int, ...] = ()

    # --- making axes

    def new_atom(self, size: Size) -> int:
        """A fresh index set."""
        self._parent.append(len(self._parent))
        self._size.append(size)
        return len(self._parent) - 1

    def snapshot(self) -> tuple[Any, ...]:
        """The present state, for `restore`."""
        return list(self._parent), list(self._size), dict(self._product), dict(self._sum)

    def restore(self, state: tuple[Any, ...]) -> None:
        """Forget what was unified and refined since a snapshot: an operation that turns out opaque must leave no trace."""
        self._parent, self._size, self._product, self._sum = state

    def new(self, size: Size) -> Axis:
        """A fresh axis of one atom; an axis of size one is the empty product."""
        return () if size == 1 else (Occurrence(self.new_atom(size), (next(self._serial),)),)

    def occurrence(self, atoms: Sequence[int]) -> Axis:
        """A fresh axis over atoms that exist."""
        return tuple(Occurrence(atom, (next(self._serial),)) for atom in atoms)

    def like(self, axis: Axis) -> Axis:
        """A fresh axis over the same atoms."""
        return self.occurrence([o.atom for o in axis])

    def size(self, axis: Axis) -> Size:
        """Number of values the axis runs over."""
        return multiply([self._size[self.find(o.atom)] for o in axis])

    def atom_size(self, atom: int) -> Size:
        """Size of one atom."""
        return self._size[self.find(atom)]

    def factors(self, axis: Axis) -> Axis:
        """The indices that an axis is a product of, as far as it is split by now."""
        return tuple(self._factor_occurrences(axis))

    def parts(self, atom: int) -> tuple[tuple[int, ...], ...]:
        """What an atom is made of one step down: its summands, each a product of atoms; itself if it is not refined."""
        root = self.find(atom)
        if root in self._product:
            return (tuple(map(self.find, self._product[root])),)
        return tuple(tuple(map(self.find, atoms)) for atoms in self._sum[root]) if root in self._sum else ((root,),)

    # --- union-find with refinement

    def find(self, atom: int) -> int:
        """The representative of an atom's class."""
        while self._parent[atom] != atom:
            self._parent[atom] = self._parent[self._parent[atom]]
            atom = self._parent[atom]
        return atom

    def unify(self, left: Axis, right: Axis) -> None:
        """Make two axes share their indices.

        Raises
        ------
        Misaligned
            If their factor structures cannot be brought together.
        """
        self._unify([o.atom for o in left], [o.atom for o in right])

    def _unify(self, left: Sequence[int], right: Sequence[int]) -> None:
        a, b = list(reversed(self._factors(left))), list(reversed(self._factors(right)))
        while a and b:
            ours, theirs = self._factors([a.pop()]), self._factors([b.pop()])
            if len(ours) > 1 or len(theirs) > 1:  # split since they were listed: an atom can occur twice
                a.extend(reversed(ours))
                b.extend(reversed(theirs))
                continue
            (x,), (y,) = ours, theirs
            if self._size[x] == self._size[y]:
                self._union(x, y)
            elif (rest := divide(self._size[x], self._size[y])) is not None:
                a.extend(reversed(self._split(x, self._size[y], rest)))
                b.append(y)
            elif (rest := divide(self._size[y], self._size[x])) is not None:
                b.extend(reversed(self._split(y, self._size[x], rest)))
                a.append(x)
            else:
                raise Misaligned(f"sizes {self._size[x]} and {self._size[y]} share no factor structure")
        if a or b:
            raise Misaligned("axes of different sizes")

    def _union(self, x: int, y: int) -> None:
        x, y = self.find(x), self.find(y)
        if x == y:
            return
        if (x in self._product) != (y in self._product) and (x in self._sum or y in self._sum):
            raise Misaligned("an axis is cut into a sum here and into a product there")
        factors = self._product.get(x), self._product.get(y)
        summands = self._sum.get(x), self._sum.get(y)
        self._parent[y] = x
        self._changes += 1
        for table, (mine, other) in ((self._product, factors), (self._sum, summands)):
            if mine is None and other is not None:
                table[x] = other  # type: ignore[assignment]  # the two tables have different value types
        if factors[0] and factors[1]:
            self._unify(factors[0], factors[1])
        if summands[0] and summands[1]:
            self._unify_sums(x, summands[0], summands[1])

    def _unify_sums(self, atom: int, left: tuple[tuple[int, ...], ...], right: tuple[tuple[int, ...], ...]) -> None:
        a, b, out = list(reversed(left)), list(reversed(right)), []
        while a and b:
            x, y = a.pop(), b.pop()
            m, n = (multiply([self._size[self.find(i)] for i in s]) for s in (x, y))
            if m == n:
                self._unify(x, y)
                out.append(x)
            elif isinstance(m, int) and isinstance(n, int):
                longer, shorter, size, stack = (x, y, n, a) if m > n else (y, x, m, b)
                head, tail = self._cut(longer, size)
                self._unify(head, shorter)
                out.append(head)
                stack.append(tail)
            else:
                raise Misaligned("summands of symbolic size do not line up")
        self._sum[self.find(atom)] = tuple(out)
        self._changes += 1

    def _cut(self, atoms: tuple[int, ...], size: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        if len(atoms) != 1 or self.find(atoms[0]) in self._product:
            raise Misaligned("a product of indices cannot be cut into a sum")
        atom = self.find(atoms[0])
        head, tail = self._atoms(size), self._atoms(self._size[atom] - size)
        if atom in self._sum:
            self._unify_sums(atom, self._sum[atom], (head, tail))
        else:
            self._sum[atom] = (head, tail)
        return head, tail

    def _atoms(self, size: Size) -> tuple[int, ...]:
        return () if size == 1 else (self.new_atom(size),)

    def _factors(self, atoms: Sequence[int]) -> list[int]:
        out: list[int] = []
        for atom in map(self.find, atoms):
            out.extend(self._factors(self._product[atom]) if atom in self._product else [atom])
        return out

    def _split(self, atom: int, leading: Size, trailing: Size) -> list[int]:
        if atom in self._sum:
            raise Misaligned("a sum of indices cannot be split into a product")
        self._product[atom] = (self.new_atom(leading), self.new_atom(trailing))
        return list(self._product[atom])

    # --- regrouping

    def regroup(self, axes: Sequence[Axis], sizes: Sequence[Size]) -> list[Axis]:
        """The axes that a row-major reshape to `sizes` has; atoms are split into products where a new boundary falls inside one.

        Raises
        ------
        Misaligned
            If a boundary cuts an atom where its size does not divide.
        """
        pending = [o for axis in axes for o in self._factor_occurrences(axis)]
        pending.reverse()
        out: list[Axis] = []
        for size in sizes:
            group: list[Occurrence] = []
            while size != 1:
                if not pending:
                    raise Misaligned("the new shape has more elements")
                occurrence, *rest_of_it = self._factor_occurrences((pending.pop(),))  # an atom that occurs twice may be split by now
                pending.extend(reversed(rest_of_it))
                have = self.atom_size(occurrence.atom)
                if (rest := divide(size, have)) is not None:
                    group.append(occurrence)
                    size = rest
                elif (rest := divide(have, size)) is not None:
                    self._split(self.find(occurrence.atom), size, rest)
                    pending.extend(reversed(self._factor_occurrences((occurrence,))))
                else:
                    raise Misaligned(f"a boundary of the new shape cuts an index of size {have}")
            out.append(tuple(group))
        if pending:
            raise Misaligned("the new shape has fewer elements")
        return out

    def _factor_occurrences(self, axis: Axis) -> list[Occurrence]:
        out: list[Occurrence] = []
        for o in axis:
            atom = self.find(o.atom)
            if atom in self._product:
                out.extend(self._factor_occurrences(self._strided(self._product[atom], o.path, o.stride)))
            else:
                out.append(o)
        return out

    def _strided(self, atoms: Sequence[int], path: Identity, stride: Size = 1) -> Axis:
        """The factors of one appearance, each with its stride in it."""
        sizes = [self.atom_size(a) for a in atoms]
        return tuple(Occurrence(a, path, stride * multiply(sizes[i + 1 :])) for i, a in enumerate(atoms))

    def concatenated(self, axes: Sequence[Axis]) -> Axis:
        """A fresh axis that is the disjoint sum of the given ones.

        Raises
        ------
        Misaligned
            If one of them is empty.
        """
        if any(self.size(axis) == 0 for axis in axes):
            raise Misaligned("an empty piece")
        if len(axes) == 1:
            return self.like(axes[0])
        total = sum((self.size(axis) for axis in axes), start=0)
        joined = self.new(total)
        self._sum[joined[0].atom] = tuple(tuple(o.atom for o in axis) for axis in axes)
        return joined

    def cut(self, axis: Axis, sizes: Sequence[int]) -> list[Axis]:
        """Refine an axis into consecutive summands of the given sizes; returns them as fresh axes.

        Raises
        ------
        Misaligned
            If the axis is a product of indices, or has symbolic size.
        """
        if len(axis) != 1 or not isinstance(self.size(axis), int):
            raise Misaligned("only a single index of known size can be cut")
        summands = tuple(map(self._atoms, sizes))
        probe = self.new_atom(self.size(axis))
        self._sum[probe] = summands
        self._union(self.find(axis[0].atom), probe)
        return [self.occurrence(atoms) for atoms in summands]

    # --- reading the result

    def segments(self, axis: Axis) -> list[Segment]:
        """The summands of an axis, each a product of leaves, in order."""
        found: list[Segment] = self.kept(axis) or self.keep(axis, self._segments(axis))
        return found

    def kept(self, key: Any) -> Any:
        """What was kept under a key since the table last changed, or None."""
        state = (len(self._parent), len(self._sum), len(self._product), self._changes)
        if state != self._state:  # an atom was made, joined or refined since
            self._known, self._state = {}, state
        return self._known.get(key)

    def keep(self, key: Any, result: Any) -> Any:
        """Keep what was read from the table; returns it."""
        self._known[key] = result
        return result

    def _segments(self, axis: Axis) -> list[Segment]:
        parts = [self._occurrence_segments(o) for o in axis]
        sizes = [self._size[self.find(o.atom)] for o in axis]
        strides = [multiply(sizes[i + 1 :]) for i in range(len(sizes))]
        return [_joined(combination, strides) for combination in product(*parts)]

    def _occurrence_segments(self, o: Occurrence) -> list[Segment]:
        atom = self.find(o.atom)
        if atom in self._product:
            return self.segments(self._strided(self._product[atom], o.path, o.stride))
        if atom in self._sum:
            return list(self._summands(o, self._sum[atom]))
        return [Segment(0, (Leaf(atom, o.identity, self._size[atom], 1),), frozenset())]

    def _summands(self, o: Occurrence, summands: tuple[tuple[int, ...], ...]) -> Iterator[Segment]:
        start: Size = 0
        for j, atoms in enumerate(summands):
            axis = self._strided(atoms, (*o.identity, "+", j))
            for s in self.segments(axis):
                yield Segment(start + s.offset, s.leaves, s.choices | {(o.identity, j)})
            start = start + self.size(axis)


def _joined(parts: Sequence[Segment], strides: Sequence[Size]) -> Segment:
    offset: Size = 0
    leaves: list[Leaf] = []
    choices: frozenset[tuple[Identity, int]] = frozenset()
    for segment, stride in zip(parts, strides, strict=True):
        offset = offset + segment.offset * stride
        leaves.extend(Leaf(leaf.atom, leaf.identity, leaf.size, leaf.stride * stride) for leaf in segment.leaves)
        choices |= segment.choices
    return Segment(offset, tuple(leaves), choices)
