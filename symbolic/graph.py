"""The architecture graph: operations as nodes, tensors as edges, parameters by name.

An `ArchitectureGraph` is what a symmetry is derived from. It is drawn by hand (`add_parameter`, `add_operation`), read from JSON, or
traced from a torch module (`noetherflow.bridge.trace`). Sizes may be integers or SymPy symbols, so that a law can be stated for width n.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import networkx as nx
import sympy as sp

from noetherflow.errors import GraphError
from noetherflow.symbolic.operations import OPERATIONS

Size: TypeAlias = int | sp.Expr
Shape: TypeAlias = tuple[Size, ...]

FORMAT = 1
SIZE_PARTS: Final = ("Symbol", "Integer", "Rational", "Add", "Mul", "Pow")


@dataclass(frozen=True, slots=True)
class Parameter:
    """A named parameter tensor.

    Parameters
    ----------
    name : str
        As in ``named_parameters()``; a tensor with several names carries the first.
    shape : tuple of int or sympy.Expr
    dtype : str
        Name of the element type without a library prefix ("float32").
    trainable : bool
        A frozen parameter may not move, so no symmetry moves it.
    """

    name: str
    shape: Shape
    dtype: str = "float32"
    trainable: bool = True


class ArchitectureGraph(nx.MultiDiGraph):  # type: ignore[misc]  # networkx has no type information
    """A network as a directed multigraph of operations.

    Nodes carry ``operation`` (a standard name, see `noetherflow.symbolic.operations`), ``attributes``, ``parameters`` (slot -> parameter
    name), ``shape``, ``dtype`` and ``module`` (dotted path of the module it came from). An edge is one tensor; its key is the slot of the
    consumer that it fills.

    Examples
    --------
    >>> graph = ArchitectureGraph()
    >>> _ = graph.add_operation("x", "input", shape=(8, 3))
    >>> _ = graph.add_parameter("w", (4, 3))
    >>> _ = graph.add_operation("y", "linear", {"input": "x"}, {"weight": "w"}, shape=(8, 4))
    >>> graph.nodes["y"]["operation"], graph.parameters["w"].shape
    ('linear', (4, 3))
    """

    @property
    def parameters(self) -> dict[str, Parameter]:
        """All parameters by name."""
        found: dict[str, Parameter] = self.graph.setdefault("parameters", {})
        return found

    @property
    def aliases(self) -> dict[str, str]:
        """Further names of shared parameters -> the name they are kept under."""
        found: dict[str, str] = self.graph.setdefault("aliases", {})
        return found

    def add_parameter(self, name: str, shape: Shape, dtype: str = "float32", trainable: bool = True) -> str:
        """Declare a parameter; returns its name."""
        if name in self.parameters:
            raise GraphError(
                f"Parameter '{name}' is already in the graph. Give every parameter one name; share it by using that name twice."
            )
        self.parameters[name] = Parameter(name, tuple(shape), dtype, trainable)
        return name

    def add_operation(
        self,
        name: str,
        operation: str,
        inputs: Mapping[str, str] | None = None,
        parameters: Mapping[str, str] | None = None,
        *,
        shape: Shape = (),
        dtype: str = "float32",
        module: str = "",
        **attributes: Any,
    ) -> str:
        """Add one operation and the edges into it.

        Parameters
        ----------
        name : str
            Node name, unique in the graph.
        operation : str
            A standard operation name; one that is not in the vocabulary is kept and treated as opaque.
        inputs, parameters : mapping
            Slot -> producing node, and slot -> parameter name.
        shape, dtype
            Of the tensor the operation produces.
        module : str
            Dotted path of the module it came from.
        **attributes
            What the operation's rule needs (``eps=1e-5``, ``groups=2``, ...); JSON values.

        Raises
        ------
        GraphError
            If the name is taken, a slot is unknown, or an input or parameter does not exist.
        """
        inputs, parameters = dict(inputs or {}), dict(parameters or {})
        self._check(name, operation, inputs, parameters)
        self.add_node(
            name, operation=operation, attributes=attributes, parameters=parameters, shape=tuple(shape), dtype=dtype, module=module
        )
        for slot, producer in inputs.items():
            source = self.nodes[producer]
            self.add_edge(producer, name, key=slot, shape=source["shape"], dtype=source["dtype"])
        return name

    def _check(self, name: str, operation: str, inputs: Mapping[str, str], parameters: Mapping[str, str]) -> None:
        if name in self:
            raise GraphError(f"Node '{name}' is already in the graph; node names are unique.", node=name)
        vocabulary = OPERATIONS.get(operation)
        slots = (*inputs, *parameters)
        if vocabulary is not None and not vocabulary.accepts(slots):
            raise GraphError(
                f"Operation '{operation}' at '{name}' got the slots {sorted(slots)}; it takes {vocabulary.describe()}.", node=name
            )
        for producer in inputs.values():
            if producer not in self:
                raise GraphError(f"'{name}' reads from '{producer}', which is not in the graph; add operations in order.", node=name)
        for parameter in parameters.values():
            if parameter not in self.parameters:
                raise GraphError(f"'{name}' holds parameter '{parameter}', which is not declared; call add_parameter first.", node=name)

    def inputs_of(self, node: str) -> dict[str, str]:
        """Slot -> producing node, in the order the slots were given."""
        return {slot: producer for producer, _, slot in self.in_edges(node, keys=True)}

    def uses_of(self, parameter: str) -> Iterator[tuple[str, str]]:
        """(node, slot) of every use of a parameter."""
        for node, data in self.nodes(data=True):
            for slot, name in data["parameters"].items():
                if name == parameter:
                    yield node, slot

    def topological_order(self) -> list[str]:
        """Nodes in an order in which every producer comes before its consumers."""
        return list(nx.lexicographical_topological_sort(self, key={n: i for i, n in enumerate(self)}.__getitem__))

    def validate(self) -> None:
        """Raise `GraphError` unless the graph is acyclic and every edge joins existing nodes with equal shapes."""
        if not nx.is_directed_acyclic_graph(self):
            cycle = nx.find_cycle(self)
            raise GraphError(f"The graph has a cycle: {cycle}. Unroll recurrent connections; share their parameters by name.", cycle=cycle)
        for producer, consumer, data in self.edges(data=True):
            if data["shape"] != self.nodes[producer]["shape"]:
                raise GraphError(
                    f"The edge {producer} -> {consumer} has shape {data['shape']}, its producer {self.nodes[producer]['shape']}."
                )

    def to_json(self) -> str:
        """The whole graph as JSON text; `from_json` is its inverse."""
        nodes = [{"name": n, **d, "shape": _sizes_out(d["shape"]), "inputs": self.inputs_of(n)} for n, d in self._ordered()]
        parameters = [
            {"name": p.name, "shape": _sizes_out(p.shape), "dtype": p.dtype, "trainable": p.trainable} for p in self.parameters.values()
        ]
        return json.dumps({"format": FORMAT, "parameters": parameters, "aliases": self.aliases, "nodes": nodes}, indent=1)

    @classmethod
    def from_json(cls, text: str) -> ArchitectureGraph:
        """Rebuild a graph from `to_json`.

        Raises
        ------
        GraphError
            If the text is not such a graph.
        """
        try:
            data = json.loads(text)
            if data.get("format") != FORMAT:
                raise GraphError(f"Graph format {data.get('format')} found, {FORMAT} expected; write it again with this version.")
            graph = cls()
            for p in data["parameters"]:
                graph.add_parameter(p["name"], _sizes_in(p["shape"]), p["dtype"], p["trainable"])
            graph.aliases.update(data["aliases"])
            for n in data["nodes"]:
                keep = {"shape": _sizes_in(n["shape"]), "dtype": n["dtype"], "module": n["module"]}
                graph.add_operation(n["name"], n["operation"], n["inputs"], n["parameters"], **keep, **n["attributes"])
        except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as err:
            raise GraphError(f"This is not the JSON of an architecture graph: {err!r}. Write it with ArchitectureGraph.to_json.") from err
        return graph

    def _ordered(self) -> list[tuple[str, dict[str, Any]]]:
        return [(n, self.nodes[n]) for n in self.topological_order()]


def _sizes_out(shape: Shape) -> list[int | str]:
    return [size if isinstance(size, int) else sp.srepr(size) for size in shape]


def _sizes_in(shape: list[int | str]) -> Shape:
    return tuple(size if isinstance(size, int) else _expression(size) for size in shape)


def _expression(text: str) -> sp.Expr:
    """A size from what `srepr` writes of it. Read as a tree, never evaluated: a graph file may come from a stranger."""
    try:
        return _built(ast.parse(text, mode="eval").body)
    except (SyntaxError, TypeError, ValueError) as err:
        raise GraphError(f"The size {text!r} is not an expression in symbols and numbers, as sympy.srepr writes it.", size=text) from err


def _built(node: ast.AST) -> Any:
    match node:
        case ast.Constant(value=bool() | int() | str() as value):
            return value
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() as value)):
            return -value
        case ast.Call(func=ast.Name(id=name), args=arguments, keywords=options) if name in SIZE_PARTS:
            return getattr(sp, name)(*map(_built, arguments), **{str(o.arg): _built(o.value) for o in options})
        case _:
            raise ValueError(f"{ast.dump(node)} has no place in a size")
