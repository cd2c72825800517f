"""Sizes that operations tie together or hold fast, beyond the indices that gauge rules share.

A gauge rule says what a symmetry may do, so it need not say that a table of angles is as wide as the heads it turns, or that four gates of
an LSTM are four times its state. A network with other sizes must keep such relations (`noetherflow.symbolic.twin_sizes`). What is said
here is said in the same table of axes: indices are unified, or their sizes held.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from noetherflow.symbolic.axes import Axis, Misaligned
from noetherflow.symbolic.graph import ArchitectureGraph
from noetherflow.symbolic.primitives import Program, Value
from noetherflow.symbolic.steps import Contract

VIEWS: Final = ("identity", "reshape", "expand", "permute")
POOLS: Final = ("max_pool", "average_pool", "adaptive_max_pool", "adaptive_average_pool")


class Tied:
    """The slots of one node, and what they tie.

    Parameters
    ----------
    program : Program
        Of the whole graph.
    graph : ArchitectureGraph
    node : str
    held : set of int
        Atoms whose sizes must stay; added to.
    """

    def __init__(self, program: Program, graph: ArchitectureGraph, node: str, held: set[int]) -> None:
        self.program, self.table, self.held = program, program.table, held
        data = graph.nodes[node]
        self.node, self.operation, self.attributes = node, data["operation"], data["attributes"]
        self.out = program.values[node]
        self._known = {slot for slot, n in graph.inputs_of(node).items() if "value" in graph.nodes[source(graph, n)]["attributes"]}
        self.slots: Mapping[str, Value] = {slot: program.values[n] for slot, n in graph.inputs_of(node).items()} | {
            slot: program.parameters[name] for slot, name in data["parameters"].items()
        }

    def known(self, slot: str) -> bool:
        """Whether a slot is computed from numbers that the graph holds."""
        return slot in self._known

    def hold(self, *axes: Axis) -> None:
        """Keep the sizes of some axes."""
        self.held.update(o.atom for axis in axes for o in axis)

    def same(self, left: Axis, right: Axis) -> None:
        """Let two axes share their index if they are equally long; where that cannot be, hold both."""
        if left and right and self.table.size(left) == self.table.size(right):
            state = self.table.snapshot()
            try:
                self.table.unify(left, right)
            except Misaligned:
                self.table.restore(state)
                self.hold(left, right)

    def fixed(self, size: int) -> Axis:
        """A new axis whose size stays."""
        axis = self.table.new(size)
        self.hold(axis)
        return axis


def source(graph: ArchitectureGraph, node: str) -> str:
    """Where a tensor comes from, looking through views."""
    while graph.nodes[node]["operation"] in VIEWS and graph.inputs_of(node):
        node = graph.inputs_of(node)["input"]
    return node


def numbered(program: Program, graph: ArchitectureGraph) -> Iterator[tuple[int, Axis]]:
    """Rows of tables that are read by a constant which the graph does not hold, numbers of positions, and the axis of these positions."""
    for node in program.values:
        data, inputs = graph.nodes[node], graph.inputs_of(node)
        if data["operation"] == "embedding" and "input" in inputs:
            below = graph.nodes[source(graph, inputs["input"])]
            rows, index = program.parameters[data["parameters"]["weight"]].axes[0], program.values[inputs["input"]].axes
            if below["operation"] == "constant" and "value" not in below["attributes"] and len(rows) == 1 and index:
                yield rows[0].atom, index[-1]


def tie(program: Program, graph: ArchitectureGraph) -> set[int]:
    """Tie what operations tie; returns the atoms whose sizes must stay."""
    held: set[int] = set()
    moved = {step.node for step in program.steps if isinstance(step, Contract) and graph.nodes[step.node]["operation"] == "reshape"}
    for node in program.values:
        tied = Tied(program, graph, node, held)
        if node in program.unread or node in moved:
            _unread(tied)
        elif tied.operation in TIES:
            TIES[tied.operation](tied)
    return held


def _unread(t: Tied) -> None:
    """What has no rule keeps its sizes, or, if all it reads has its shape, is taken to act on every element."""
    sizes = [t.table.size(axis) for axis in t.out.axes]
    for value in t.slots.values():
        if [t.table.size(axis) for axis in value.axes] == sizes:
            for pair in zip(value.axes, t.out.axes, strict=True):
                t.same(*pair)
        else:
            t.hold(*value.axes, *t.out.axes)


def _constant(t: Tied) -> None:
    if "value" in t.attributes:
        t.hold(*t.out.axes)


def _convolution(t: Tied) -> None:
    """Kernels stay, and what they slide over; patches that do not overlap are a product of patch and place."""
    kernel = t.slots["weight"].axes[2:]
    x, y = t.slots["input"].axes[-len(kernel) :], t.out.axes[-len(kernel) :]
    for number, sides in enumerate(zip(x, kernel, y, strict=True)):
        if not (t.operation == "convolution" and _is_patch(t, number, *sides)):
            t.hold(*sides)
            continue
        whole, patch, place = sides
        t.same(whole, (*place, *patch))


def _is_patch(t: Tied, number: int, whole: Axis, patch: Axis, place: Axis) -> bool:
    stride, padding, dilation = (numbers(t.attributes.get(name, d), number) for name, d in (("stride", 1), ("padding", 0), ("dilation", 1)))
    size = t.table.size
    return size(patch) == stride and not padding and dilation == 1 and size(whole) == size(patch) * size(place) and size(patch) != 1


def numbers(value: Any, number: int) -> Any:
    """An attribute along one axis of positions: one number for all, or one each."""
    return value[number if len(value) > 1 else 0] if isinstance(value, list | tuple) else value


def _pool(t: Tied) -> None:
    dims = t.attributes.get("dims", len(t.out.axes) - 2)
    gone = t.operation.startswith("adaptive") and all(axis == () for axis in t.out.axes[-dims:])
    t.hold(*(() if gone else t.slots["input"].axes[-dims:]), *t.out.axes[-dims:])


def _rearrange(t: Tied) -> None:
    x = t.slots["input"].axes
    for d in t.attributes["dims"]:
        old, new = t.table.size(x[d]), t.table.size(t.out.axes[d])
        times = new // old if isinstance(new, int) and isinstance(old, int) and old else 0
        if times > 1 and t.attributes.get("repeats") == times:
            t.same(t.out.axes[d], (*x[d], *t.fixed(times)))
        elif times > 1 and t.attributes.get("tiled"):
            t.same(t.out.axes[d], (*t.fixed(times), *x[d]))
        else:
            t.hold(x[d], t.out.axes[d])


def _rotary(t: Tied) -> None:
    """A table of angles is as wide as the head, or as half of it."""
    x = t.slots["input"].axes
    first, second = t.table.factors(x[-1])[:1], t.table.factors(x[-1])[1:]
    pair, half = (first, second) if t.attributes.get("pairing", "halves") == "halves" else (second, first)
    t.hold(pair)
    for slot in ("cosine", "sine"):
        for own, other in zip(reversed(t.slots[slot].axes[:-1]), reversed(x[:-1]), strict=False):
            t.same(own, other)
        for atom in _leaves(t, t.slots[slot].axes[-1]):
            t.same(t.table.occurrence([atom]), x[-1])
            t.same(t.table.occurrence([atom]), half)


def _leaves(t: Tied, axis: Axis) -> Iterator[int]:
    todo = [o.atom for o in axis]
    while todo:
        atom = todo.pop()
        yield atom
        parts = t.table.parts(atom)
        todo += [] if parts == ((t.table.find(atom),),) else [a for part in parts for a in part]


def _recurrent(t: Tied) -> None:
    """Gates side by side, each as wide as the state."""
    gates = {"lstm_layer": 4, "gru_layer": 3, "rnn_layer": 1}[t.operation]
    state = t.out.axes[-1]
    for slot, value in t.slots.items():
        if slot == "input":
            for pair in zip(value.axes[:-1], t.out.axes[:-1], strict=True):
                t.same(*pair)
            continue
        if slot in ("hidden", "memory"):
            t.same(value.axes[-1], state)
            t.same(value.axes[0], t.out.axes[0 if t.attributes["batch_first"] else 1])
            continue
        parts = t.table.parts(value.axes[0][0].atom)
        if gates == 3 and len(parts) == 2:
            t.same(t.table.occurrence(parts[0]), (*t.fixed(2), *state))
            t.same(t.table.occurrence(parts[1]), state)
        else:
            t.same(value.axes[0], (*t.fixed(gates), *state) if gates > 1 else state)
        if slot == "weight_hh":
            t.same(value.axes[1], state)


def _prelu(t: Tied) -> None:
    if len(t.out.axes) > 1:
        t.same(t.slots["weight"].axes[0], t.out.axes[1])


def _loss(t: Tied) -> None:
    x = t.slots["input"].axes
    at = t.attributes.get("axis", 1 if len(x) > 2 else -1) % max(1, len(x))
    for slot in ("target", "weight"):
        if slot in t.slots:
            other = t.slots[slot].axes
            kept = x if len(other) == len(x) else [axis for i, axis in enumerate(x) if i != at]
            for pair in zip(other, [x[at]] if slot == "weight" else kept, strict=False):
                t.same(*pair)


def _picked(t: Tied) -> None:
    """Indices that the graph holds must find what they pick."""
    for slot, of in (("input", "weight"), ("index", "input")):
        if slot in t.slots and of in t.slots and t.known(slot):
            t.hold(*t.slots[of].axes[: 1 if of == "weight" else None])


TIES: Final[dict[str, Callable[[Tied], None]]] = {
    "constant": _constant,
    "convolution": _convolution,
    "transposed_convolution": _convolution,
    **dict.fromkeys(POOLS, _pool),
    **dict.fromkeys(("embedding", "index_select", "gather"), _picked),
    "rearrange": _rearrange,
    "rotary": _rotary,
    "lstm_layer": _recurrent,
    "gru_layer": _recurrent,
    "rnn_layer": _recurrent,
    "prelu": _prelu,
    "cross_entropy": _loss,
    "mean_square": _loss,
}
