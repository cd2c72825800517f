"""Looking back through a graph: what a value was computed from, with nodes that change nothing left out."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, Final

from noetherflow.bridge.folding import moving_nodes
from noetherflow.bridge.origins import Origin
from noetherflow.bridge.precisions import note_inside
from noetherflow.symbolic.graph import ArchitectureGraph

DEPTH: Final = 12  # how far back two computations are compared before they are taken for different
# Operations whose result is a function of their slots and attributes alone: no mask or index beside them, nothing random.
DETERMINED: Final = frozenset(
    {
        *("add", "subtract", "multiply", "divide", "negate", "scale", "sum", "mean", "power", "exponential", "logarithm", "sine", "cosine"),
        *("reshape", "permute", "expand", "slice", "concatenate", "constant", "clamp", "matmul", "absolute"),
    }
)


class Matcher:
    """Questions about the nodes of a graph, asked by those who look for chains."""

    def __init__(self, graph: ArchitectureGraph) -> None:
        self.graph = graph
        self.moving = moving_nodes(graph)
        self.origins: dict[str, Origin] = {}  # of normalisations that were gathered
        self._positions = {node: i for i, node in enumerate(graph)}

    def operation(self, node: str) -> str:
        """The operation of a node."""
        return str(self.graph.nodes[node]["operation"])

    def attribute(self, node: str, name: str, default: Any = None) -> Any:
        """An attribute of a node, or its default."""
        return self.graph.nodes[node]["attributes"].get(name, default)

    def shape(self, node: str) -> tuple[Any, ...]:
        """The shape of what a node gives."""
        return tuple(self.graph.nodes[node]["shape"])

    def source(self, node: str) -> str:
        """The node behind identities (casts, copies, dropout that drops nothing)."""
        while self.operation(node) == "identity" and not self.graph.nodes[node]["parameters"]:
            (node,) = self.graph.predecessors(node)
        return node

    def made_by(self, node: str, operation: str, **attributes: Any) -> dict[str, str] | None:
        """The sources of a value by slot, if it comes from an operation with these attributes; None if not."""
        node = self.source(node)
        if self.operation(node) != operation or any(self.attribute(node, name) != value for name, value in attributes.items()):
            return None
        return {slot: self.source(producer) for slot, producer in self.graph.inputs_of(node).items()}

    def pairs(self, node: str, operation: str) -> Iterator[tuple[str, str]]:
        """The two operands of an operation of two tensors, in both orders where order does not matter."""
        slots = self.made_by(node, operation) or {}
        if set(slots) == {"input", "other"}:
            yield slots["input"], slots["other"]
            if operation in ("add", "multiply"):
                yield slots["other"], slots["input"]

    def number(self, node: str) -> float | None:
        """The number a constant stands for, if it is known."""
        value = self.attribute(node, "value") if self.operation(node) == "constant" else None
        return None if value is None else float(value)

    def same(self, first: str, second: str, depth: int = DEPTH) -> bool:
        """Whether two values are computed in the same way from the same values."""
        first, second = self.source(first), self.source(second)
        if first == second:
            return True
        a, b = self.graph.nodes[first], self.graph.nodes[second]
        if not depth or a["operation"] not in DETERMINED or any(a[k] != b[k] for k in ("operation", "attributes", "parameters", "shape")):
            return False
        left, right = self.graph.inputs_of(first), self.graph.inputs_of(second)
        if not left and not a["parameters"]:
            return self.number(first) is not None  # two inputs, or two unknown constants, are not one
        return set(left) == set(right) and all(self.same(left[slot], right[slot], depth - 1) for slot in left)

    def origin(self, node: str, *, written: bool = False) -> Origin:
        """Where the values of a normalisation are made: at this node, if it was not gathered from others."""
        data = self.graph.nodes[node]
        known = Origin(node, data["module"], self._positions.get(node, -1), dict(data["parameters"]), written)
        return self.origins.get(node, known)

    def used_once(self, node: str) -> bool:
        """Whether one operation alone reads a value, identities not counted."""
        return self._uses(node) == 1

    def _uses(self, node: str) -> int:
        readers = list(self.graph.out_edges(node, keys=True))
        return sum(self._uses(reader) if self.operation(reader) == "identity" else 1 for _, reader, _ in readers)

    def replace(
        self,
        node: str,
        operation: str,
        inputs: Mapping[str, str],
        parameters: Mapping[str, str] | None = None,
        normalizing: Collection[str] = (),
        **attributes: Any,
    ) -> None:
        """Let a node be another operation on other values; what it was computed from stays until nothing reads it.

        Where that was computed in a coarser type than the node has, the node tells (`precisions`); `normalizing` are the nodes among it
        whose type matters to what is normalised only.
        """
        graph, gathered = self.graph, self.between(node, inputs.values())
        graph.remove_edges_from(list(graph.in_edges(node, keys=True)))
        graph.nodes[node].update(operation=operation, attributes=attributes, parameters=dict(parameters or {}))
        note_inside(graph, node, gathered - set(normalizing), gathered & set(normalizing))
        for slot, producer in inputs.items():
            graph.add_edge(producer, node, key=slot, shape=graph.nodes[producer]["shape"], dtype=graph.nodes[producer]["dtype"])

    def between(self, node: str, sources: Iterable[str]) -> set[str]:
        """A node and what it is computed from, back to some sources (without these) and to what depends on no parameter."""
        stops, found, todo = set(sources), {node}, [node]
        while todo:
            new = [n for n in self.graph.predecessors(todo.pop()) if n in self.moving and n not in found and n not in stops]
            found.update(new)
            todo += new
        return found
