"""Other sizes for a network, the same graph: which indices are widths, and what every axis becomes when they change.

The axes of a lowered graph are products and disjoint sums of *atoms* (`noetherflow.symbolic.axes`). Give every atom that is neither a
product nor a sum a new size, and every axis has one: heads times head size, pieces behind one another. So contractions, additions, slices
and reshapes fit again by construction. Kernels and what they slide over keep theirs (`noetherflow.symbolic.twin_ties`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from noetherflow.errors import GraphError
from noetherflow.symbolic.axes import Axis, AxisTable, multiply
from noetherflow.symbolic.gauge import lower
from noetherflow.symbolic.graph import ArchitectureGraph
from noetherflow.symbolic.primitives import Normalize, Program
from noetherflow.symbolic.twin_ties import numbered, tie

POSITIONS: Final = 4
"""Samples, or positions that no parameter has an axis for, are cut down to so many: they bear no symmetry."""


IMAGES: Final = 2
"""The same for images in a batch, which cost most."""
NORMALISED: Final = 4
"""Axes that a normalisation runs along keep so many: centred and of length one, three numbers are an angle, and two are a sign."""


class Sizes:
    """The atoms of one graph, and what may become of their sizes.

    Parameters
    ----------
    graph : ArchitectureGraph
        With integer sizes.

    Attributes
    ----------
    widths : tuple of int
        Different sizes of the atoms that parameters have and that may change, in ascending order.

    Examples
    --------
    >>> graph = ArchitectureGraph()
    >>> _ = graph.add_parameter("w", (90, 30)), graph.add_operation("x", "input", shape=(64, 30))
    >>> _ = graph.add_operation("h", "linear", {"input": "x"}, {"weight": "w"}, shape=(64, 90))
    >>> _ = graph.add_operation("y", "slice", {"input": "h"}, shape=(64, 60), dim=1, start=30, length=60)
    >>> sizes = Sizes(graph)
    >>> sizes.widths
    (30, 60)
    >>> smaller = sizes.chosen([2, 3])
    >>> [smaller.of(axis) for axis in sizes.program.values["h"].axes]
    [4, 5]
    """

    def __init__(self, graph: ArchitectureGraph) -> None:
        self.graph, self.program = graph, lower(graph)
        self.table: AxisTable = self.program.table
        held = tie(self.program, graph)
        self._held = {leaf for atom in held for leaf in self.leaves(atom)}
        images = [value.axes[0] for node, value in self.program.values.items() if _is_image(graph, node)]
        self._images = {leaf for axis in images for o in axis for leaf in self.leaves(o.atom)}
        self._numbered = {leaf: axis for atom, axis in numbered(self.program, graph) for leaf in self.leaves(atom)}
        parameters = [axis for value in self.program.parameters.values() for axis in value.axes]
        self._normalised = {leaf for axis in _normalised(self.program) for o in axis for leaf in self.leaves(o.atom)}
        self._widths = {leaf for axis in parameters for o in axis for leaf in self.leaves(o.atom)}
        self.widths = tuple(sorted({self.size(leaf) for leaf in self._widths - self._held if self.size(leaf) > 1}))

    def leaves(self, atom: int) -> Iterator[int]:
        """The atoms that one is made of in the end."""
        root = self.table.find(atom)
        parts = self.table.parts(root)
        if parts == ((root,),):
            yield root
        else:
            yield from (leaf for part in parts for a in part for leaf in self.leaves(a))

    def size(self, atom: int) -> int:
        """What an atom has in the graph as it is."""
        size = self.table.atom_size(atom)
        if not isinstance(size, int):
            raise GraphError(f"The graph has a symbolic size, {size}; a twin is made of one with numbers. Substitute some.")
        return size

    def chosen(self, widths: Sequence[int]) -> Chosen:
        """New sizes: one number for each of `widths`, none larger than it was."""
        return Chosen(self, dict(zip(self.widths, widths, strict=True)))

    def first(self, atom: int, widths: dict[int, int]) -> int:
        """The new size of an atom that is not made of others."""
        size = self.size(atom)
        if atom in self._held:
            return size
        if atom in self._numbered:  # a row more than there are positions would never be read
            rows = 1
            for leaf in (leaf for o in self._numbered[atom] for leaf in self.leaves(o.atom)):
                rows *= self.first(leaf, widths)
            return min(size, rows)
        new = widths.get(size, size) if atom in self._widths else IMAGES if atom in self._images else POSITIONS
        return min(size, max(new, NORMALISED) if atom in self._normalised else new)


def _is_image(graph: ArchitectureGraph, node: str) -> bool:
    data = graph.nodes[node]
    return bool(data["operation"] == "input" and len(data["shape"]) > 3)


def _normalised(program: Program) -> Iterator[Axis]:
    for step in program.steps:
        if isinstance(step, Normalize) and step.scale:
            term = step.operand
            yield from (axis for axis, label in zip(term.value.axes, term.labels, strict=False) if label in step.over)


class Chosen:
    """New sizes of all axes."""

    def __init__(self, sizes: Sizes, widths: dict[int, int]) -> None:
        self._sizes, self._table, self._widths = sizes, sizes.table, widths

    def of(self, axis: Axis) -> int:
        """What an axis becomes."""
        size = multiply([self._atom(o.atom) for o in axis])
        assert isinstance(size, int)
        return size

    def _atom(self, atom: int) -> int:
        root = self._table.find(atom)
        parts = self._table.parts(root)
        if parts == ((root,),):
            return self._sizes.first(root, self._widths)
        return sum(self._product(part) for part in parts)

    def _product(self, atoms: Sequence[int]) -> int:
        size = 1
        for atom in atoms:
            size *= self._atom(atom)
        return size

    def behind(self, axis: Axis, offset: int) -> int:
        """Where a boundary inside an axis comes to lie.

        Raises
        ------
        GraphError
            If it cuts an index.
        """
        return self._behind([o.atom for o in self._table.factors(axis)], offset)

    def _behind(self, atoms: Sequence[int], offset: int) -> int:
        if offset == 0:
            return 0
        sizes = [self._sizes.size(a) for a in atoms]  # two halves of one thing
        if offset == multiply(sizes):
            return self._product(atoms)
        if not atoms or offset > int(multiply(sizes)):
            raise GraphError(f"A boundary at {offset} lies outside its axis of size {multiply(sizes)}.")
        inner = int(multiply(sizes[1:]))
        if len(atoms) > 1 and offset % inner == 0:
            return self._behind(atoms[:1], offset // inner) * self._product(atoms[1:])
        parts, new = self._table.parts(atoms[0]), 0
        for part in parts if len(atoms) == 1 and parts != ((self._table.find(atoms[0]),),) else ():
            size = int(multiply([self._sizes.size(a) for a in part]))
            if offset <= size:
                return new + self._behind(part, offset)
            new, offset = new + self._product(part), offset - size
        raise GraphError(f"A boundary at {offset} cuts an index of size {sizes[0]}, so the network cannot be made smaller there.")

    def leading(self, axis: Axis, count: int) -> int:
        """The new number of groups that an axis begins with.

        Raises
        ------
        GraphError
            If the axis is not known to have them.
        """
        have, new = 1, 1
        for o in self._table.factors(axis):
            if have == count:
                break
            have, new = have * self._sizes.size(o.atom), new * self._atom(o.atom)
        if have != count:
            raise GraphError(f"An axis in {count} groups is not known to consist of them, so the network cannot be made smaller there.")
        return new
