"""What tells the values of an index apart: constants and masks, along those axes only along which they are known to change.

A constant that is the same for all heads lets heads be interchanged; so does a mask that all heads share. A graph keeps the entries of
small constants, an axis without changes as one of size one; of a large mask it keeps whether it is open or causal, and of one that the user
gives its shape. What is known of none of these changes along all axes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from noetherflow.symbolic.gauge_table import Call
from noetherflow.symbolic.graph import ArchitectureGraph
from noetherflow.symbolic.primitives import Program, Value

# What reads a constant element by element: it broadcasts, so that no axis of a constant need be known to be fixed.
ELEMENTWISE: Final = frozenset({"add", "subtract", "multiply", "divide", "attention", "select", "maximum", "minimum"})


def changes(attributes: Mapping[str, Any], rank: int) -> list[bool]:
    """For each axis of a tensor whether a constant may change along it.

    Parameters
    ----------
    attributes : mapping
        ``entries``, or a mask's ``kind``.
    rank : int
        Of the tensor; the constant may have fewer axes, which are the last ones.

    Examples
    --------
    >>> changes({"entries": [[[1.0, 2.0]]]}, 4), changes({"kind": "causal"}, 3), changes({}, 2)
    ([False, False, False, True], [False, True, True], [True, True])
    """
    if "kind" in attributes:
        return [attributes["kind"] != "open" and axis >= rank - 2 for axis in range(rank)]
    return _broadcast(sizes_of(attributes["entries"]), rank) if "entries" in attributes else [True] * rank


def _broadcast(sizes: Sequence[Any], rank: int) -> list[bool]:
    return [False] * (rank - len(sizes)) + [size != 1 for size in sizes] if len(sizes) <= rank else [True] * rank


def sizes_of(entries: Any) -> list[int]:
    """The shape of nested lists."""
    sizes = []
    while isinstance(entries, list):
        sizes.append(len(entries))
        entries = entries[0]
    return sizes


def told_apart(program: Program, call: Call, x: Value) -> Value:
    """A fixed tensor along those axes of a value along which an operation's mask may change."""
    rank = len(x.axes)
    varying = _broadcast(call.get("mask_shape"), rank) if call.get("mask_shape") is not None else changes(call.get("mask", {}), rank)
    return program.value([program.table.like(axis) if told else () for axis, told in zip(x.axes, varying, strict=True)], fixed=True)


def repeats(graph: ArchitectureGraph, node: str) -> bool:
    """Whether a node is a constant that is the same along some axis, and only broadcast."""
    data = graph.nodes[node]
    if data["operation"] != "constant" or not {graph.nodes[n]["operation"] for n in graph.successors(node)} <= ELEMENTWISE:
        return False
    return any(size != 1 and not told for size, told in zip(data["shape"], _varying(data["attributes"], data["shape"]), strict=True))


def repeated(program: Program, call: Call) -> Value:
    """A constant of its own changes only, repeated along the other axes: it is not fixed along those."""
    varying, labels = _varying(call.attributes, call.shape), [str(i) for i in range(len(call.shape))]
    held = program.value([program.table.new(size) if told else () for size, told in zip(call.shape, varying, strict=True)])
    program.pin(call.node, held)
    sizes = {label: size for label, size, told in zip(labels, call.shape, varying, strict=True) if not told}
    return program.contract(call.node, [(held, labels)], labels, sizes, uniform=True)


def _varying(attributes: Mapping[str, Any], shape: Sequence[Any]) -> list[bool]:
    return changes({key: value for key, value in attributes.items() if key in ("entries", "kind")}, len(shape))
