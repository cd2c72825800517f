"""Rules read strictly: what a rule for scales may leave out, but a permutation has to respect.

A mask, a slope per channel, or a class that a target names does not matter to a scale; it tells the values of an index apart. Operations
whose usual rule leaves such a thing out are read here with it, or with a fixed tensor along all axes where it is not known.
"""

from __future__ import annotations

from typing import Final

from noetherflow.symbolic.gauge_table import RULES, Call, Rule, along
from noetherflow.symbolic.graph import ArchitectureGraph
from noetherflow.symbolic.primitives import Program, Value


def strict(graph: ArchitectureGraph) -> dict[str, Rule]:
    """Node -> the rule by which it is read for discrete symmetries, where that is not the usual one."""
    return {node: STRICT[data["operation"]] for node, data in graph.nodes(data=True) if data["operation"] in STRICT}


def _told_apart(program: Program, x: Value) -> Value:
    """A fixed tensor along all axes of a value."""
    return program.value([program.table.like(axis) for axis in x.axes], fixed=True)


def _times_unknown(program: Program, node: str, x: Value) -> Value:
    labels = [str(i) for i in range(len(x.axes))]
    return program.contract(node, [(x, labels), (_told_apart(program, x), labels)], labels)


def _masked(program: Program, call: Call) -> Value:
    if call.get("value") == 0:
        return _times_unknown(program, call.node, call["input"])
    return program.add(call.node, [call["input"], _told_apart(program, call["input"])])


def _select(program: Program, call: Call) -> Value:
    return program.add(call.node, [_times_unknown(program, call.node, call[slot]) for slot in ("input", "other")])


def _prelu(program: Program, call: Call) -> Value:
    x, slope = call["input"], call["weight"]
    trailing = max(0, len(x.axes) - 2) if len(slope.axes) == 1 else 0
    return program.apply(call.node, program.add(call.node, [x, along(program, slope, trailing)]), None)


def _attention(program: Program, call: Call) -> Value:
    if not call.get("causal"):
        return RULES["attention"](program, call)
    ordered = [_in_order(program, call, slot) for slot in ("query", "key", "value")]
    values = {**call.values, **dict(zip(("query", "key", "value"), ordered, strict=True))}
    return RULES["attention"](program, Call(call.node, call.operation, values, call.attributes, call.shape))


def _in_order(program: Program, call: Call, slot: str) -> Value:
    """A causal mask, which is not in the graph, tells positions apart."""
    x = call[slot]
    position = program.value([program.table.like(x.axes[-2]), ()], fixed=True)
    labels = [str(i) for i in range(len(x.axes))]
    return program.contract(call.node, [(x, labels), (position, labels[-2:])], labels)


def _rotary(program: Program, call: Call) -> Value:
    """The angles differ between pairs, and between all else that their table has an index for, but not within a pair."""
    x, last, halves = call["input"], len(call["input"].axes) - 1, call.get("pairing", "halves") == "halves"
    size = program.table.size(x.axes[last])
    half = size // 2 if isinstance(size, int) else size / 2
    first, second = program.table.regroup([x.axes[last]], [2, half] if halves else [half, 2])
    split = program.view(x, [*x.axes[:last], first, second])
    labels, pair = [str(i) for i in range(last + 2)], last if halves else last + 1
    angles = call.values.get("cosine")
    lead = [*[()] * (last + 1 - len(angles.axes)), *angles.axes[:-1]] if angles is not None else list(x.axes[:last])
    kept = [program.table.like(axis) for axis in (*lead, second if halves else first)]
    told = program.value(kept, fixed=True), [label for i, label in enumerate(labels) if i != pair]
    turned = program.contract(call.node, [(split, labels), told], labels)
    whole = program.view(turned, [*turned.axes[:last], turned.axes[last] + turned.axes[last + 1]])
    return RULES["rotary"](program, Call(call.node, call.operation, {**call.values, "input": whole}, call.attributes, call.shape))


def _pinned(program: Program, call: Call) -> Value:
    for value in call.values.values():
        program.pin(call.node, value)
    return program.fresh(call.shape, fixed=True)


STRICT: Final[dict[str, Rule]] = {
    "masked": _masked,
    "select": _select,
    "prelu": _prelu,
    "attention": _attention,
    "rotary": _rotary,
    "cross_entropy": _pinned,
    "mean_square": _pinned,
    "lstm_layer": _pinned,
    "gru_layer": _pinned,
    "rnn_layer": _pinned,
}
