"""Where in a network a family is felt: from the tensors that it moves to the nodes of the graph that make or read them.

A law compares gradients with one another that pass there. Rounding at any other node changes what comes in from behind, which a law holds
for whatever it is.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator

from noetherflow.symbolic.graph import ArchitectureGraph
from noetherflow.symbolic.linear_systems import Vector
from noetherflow.symbolic.primitives import Add, Apply, Contract, Join, Normalize, Primitive, Program, Turn, read_by
from noetherflow.symbolic.symmetries import Reach


class Reaches:
    """The nodes that make or read each tensor of a program.

    Parameters
    ----------
    program : Program
    """

    def __init__(self, program: Program) -> None:
        self._made: dict[int, list[str]] = defaultdict(list)
        self._readers: dict[int, list[Primitive]] = defaultdict(list)
        for node, root in program.made.items():
            self._made[root].append(node)
        for step in program.steps:
            for root in dict.fromkeys(read_by(step)):
                self._readers[root].append(step)
        self._normalising = {step.node for step in program.steps if isinstance(step, Normalize)}

    def of_tensors(self, roots: Iterable[int]) -> Reach:
        """The reach of a change of these tensors and no others."""
        return self._of(roots)

    def of_scale(self, vector: Vector) -> Reach:
        """The reach of a change of the tensors that a solution names."""
        return self._of({unknown.root for unknown, coefficient in vector.items() if coefficient})

    def of_shift(self, vector: Vector) -> Reach:
        """The same of a shift: what it does behind a product may depend on the data, and goes on unnamed to whatever ignores it."""
        moved = {unknown.root for unknown, coefficient in vector.items() if coefficient}
        products = (step for root in moved for step in self._readers[root] if isinstance(step, Contract))
        todo = [step.out.value.root for step in products if step.out.value.root not in moved]
        while todo:
            root = todo.pop()
            if root not in moved:
                moved.add(root)
                todo += [out for step in self._readers[root] for out in _passed_on(step)]
        return self._of(moved)

    def _of(self, moved: Iterable[int]) -> Reach:
        passed: set[str] = set()
        absorbed: set[str] = set()
        for root in moved:
            passed.update(self._made[root])
            for step in self._readers[root]:
                (absorbed if isinstance(step, Normalize) else passed).add(step.node)
        return Reach(frozenset(passed), frozenset(absorbed))

    def behind(self, graph: ArchitectureGraph, parameter: str) -> Reach:
        """From the normalisations in front of whatever reads a parameter to those readers, both included."""
        found = {node for node, _ in graph.uses_of(parameter)}
        todo = list(found)
        while todo:
            new = [producer for producer in graph.predecessors(todo.pop()) if producer not in found]
            found.update(new)
            todo += [producer for producer in new if producer not in self._normalising]
        return Reach(frozenset(found - self._normalising), frozenset(found & self._normalising))


def _passed_on(step: Primitive) -> Iterator[int]:
    """The tensors that move if what a primitive reads does."""
    match step:
        case Contract() | Add() | Apply() | Turn():
            yield step.out.value.root
        case Join():
            yield from (value.root for value in (step.whole, *step.pieces) if value is not None)
