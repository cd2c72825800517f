"""A graph written again with other sizes: shapes of parameters and tensors, and the attributes that hold sizes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from noetherflow.errors import GraphError
from noetherflow.symbolic.graph import ArchitectureGraph, Parameter
from noetherflow.symbolic.primitives import Value
from noetherflow.symbolic.twin_sizes import Chosen, Sizes
from noetherflow.symbolic.twin_ties import numbers

UNUSED: Final = 2
"""Axes of parameters that nothing reads are cut down to this."""

Slots = Mapping[str, Value]


def resized(sizes: Sizes, chosen: Chosen) -> ArchitectureGraph:
    """The same operations, parameters and wiring; nodes that reach no output are left out.

    Raises
    ------
    GraphError
        If an attribute cannot follow.

    Examples
    --------
    >>> graph = ArchitectureGraph()
    >>> _ = graph.add_parameter("w", (90, 30)), graph.add_operation("x", "input", shape=(64, 30))
    >>> _ = graph.add_operation("h", "linear", {"input": "x"}, {"weight": "w"}, shape=(64, 90))
    >>> _ = graph.add_operation("y", "slice", {"input": "h"}, shape=(64, 60), dim=1, start=30, length=60)
    >>> sizes = Sizes(graph)
    >>> small = resized(sizes, sizes.chosen([2, 3]))
    >>> small.parameters["w"].shape, small.nodes["y"]["shape"], small.nodes["y"]["attributes"]["start"]
    ((5, 2), (4, 3), 2)
    """
    graph, program, small = sizes.graph, sizes.program, ArchitectureGraph()
    for p in graph.parameters.values():
        small.add_parameter(p.name, _parameter_shape(p, program.parameters.get(p.name), chosen), p.dtype, p.trainable)
    small.aliases.update(graph.aliases)
    for node in graph.topological_order():
        if node not in program.values:
            continue
        data, inputs, value = graph.nodes[node], graph.inputs_of(node), program.values[node]
        slots = {slot: program.values[n] for slot, n in inputs.items()}
        slots |= {slot: program.parameters[name] for slot, name in data["parameters"].items()}
        attributes = dict(data["attributes"])
        if data["operation"] in REWRITTEN:
            attributes |= REWRITTEN[data["operation"]](attributes, slots, value, chosen)
        keep = {"dtype": data["dtype"], "module": data["module"], "shape": tuple(map(chosen.of, value.axes))}
        small.add_operation(node, data["operation"], inputs, data["parameters"], **keep, **attributes)
    small.validate()
    return small


def _parameter_shape(parameter: Parameter, value: Value | None, chosen: Chosen) -> tuple[int, ...]:
    if value is None:
        return tuple(min(int(size), UNUSED) for size in parameter.shape)
    return tuple(map(chosen.of, value.axes))


def _slice(a: Mapping[str, Any], slots: Slots, out: Value, chosen: Chosen) -> dict[str, Any]:
    start = chosen.behind(slots["input"].axes[a["dim"]], a["start"])
    return {"start": start, "length": chosen.of(out.axes[a["dim"]])}


def _groups_of(axis: int) -> Callable[[Mapping[str, Any], Slots, Value, Chosen], dict[str, Any]]:
    def rewritten(a: Mapping[str, Any], slots: Slots, out: Value, chosen: Chosen) -> dict[str, Any]:
        return {"groups": chosen.leading(slots["input"].axes[axis], a.get("groups", 1))}

    return rewritten


def _convolution(a: Mapping[str, Any], slots: Slots, out: Value, chosen: Chosen) -> dict[str, Any]:
    """Groups, and the stride of patches: it is their size."""
    kernel = slots["weight"].axes[2:]
    found: dict[str, Any] = {"groups": chosen.leading(slots["input"].axes[-len(kernel) - 1], a.get("groups", 1))}
    strides = [numbers(a.get("stride", 1), i) for i in range(len(kernel))]
    shapes = [tuple(map(chosen.of, value.axes[-len(kernel) :])) for value in (slots["input"], slots["weight"], out)]
    new = [k if whole == k * place and stride > 1 else stride for whole, k, place, stride in zip(*shapes, strides, strict=True)]
    return found | ({"stride": new} if new != strides else {})


def _embedding(a: Mapping[str, Any], slots: Slots, out: Value, chosen: Chosen) -> dict[str, Any]:
    row = a.get("padding_idx")
    return {} if row is None else {"padding_idx": chosen.behind(slots["weight"].axes[0], row)}


def _rearranged(a: Mapping[str, Any], slots: Slots, out: Value, chosen: Chosen) -> dict[str, Any]:
    for d in a["dims"]:
        before, after = chosen.of(slots["input"].axes[d]), chosen.of(out.axes[d])
        if "repeats" in a and after != before * a["repeats"]:
            raise GraphError(f"An axis repeated {a['repeats']} times would go from {before} to {after}.")
    return {}


REWRITTEN: Final[dict[str, Callable[[Mapping[str, Any], Slots, Value, Chosen], dict[str, Any]]]] = {
    "slice": _slice,
    "convolution": _convolution,
    "transposed_convolution": _groups_of(1),
    "group_norm": _groups_of(1),
    "embedding": _embedding,
    "rearrange": _rearranged,
}
