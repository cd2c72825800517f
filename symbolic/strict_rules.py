"""Rules read strictly: what a rule for scales may leave out, but a permutation has to respect.

A mask, a slope per channel, or a class that a target names does not matter to a scale; it tells the values of an index apart. Operations
whose usual rule leaves such a thing out are read here with it, or with a fixed tensor along all axes where it is not known.
"""

from __future__ import annotations

from typing import Final

from noetherflow.symbolic.centring import centred_rule, centres
from noetherflow.symbolic.choosing import choosing_rules
from noetherflow.symbolic.gauge_blocks import gates
from noetherflow.symbolic.gauge_table import RULES, Call, Rule, along
from noetherflow.symbolic.graph import ArchitectureGraph
from noetherflow.symbolic.primitives import Program, Value
from noetherflow.symbolic.told_apart import repeated, repeats, told_apart


def strict(graph: ArchitectureGraph) -> dict[str, Rule]:
    """Node -> the rule by which it is read for discrete symmetries, where that is not the usual one."""
    found = {node: STRICT[data["operation"]] for node, data in graph.nodes(data=True) if data["operation"] in STRICT}
    found |= dict.fromkeys(centres(graph), centred_rule)
    return found | {node: repeated for node in graph if repeats(graph, node)} | choosing_rules(graph)


def _times_unknown(program: Program, call: Call, x: Value) -> Value:
    labels = [str(i) for i in range(len(x.axes))]
    return program.contract(call.node, [(x, labels), (told_apart(program, call, x), labels)], labels)


def _masked(program: Program, call: Call) -> Value:
    if call.get("value") == 0:
        return _times_unknown(program, call, call["input"])
    return program.add(call.node, [call["input"], told_apart(program, call, call["input"])])


def _select(program: Program, call: Call) -> Value:
    return program.add(call.node, [_times_unknown(program, call, call[slot]) for slot in ("input", "other")])


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


def _recurrent(program: Program, call: Call) -> Value:
    """A layer's equations for one step, whose state is alike before and after it: what holds for a state of zeros holds for all later ones.

    Any other initial state is data, which tell units apart. So does the order of time, and the batch may hold it.
    """
    if "hidden" in call.values:
        return _pinned(program, call)
    x, node = call["input"], call.node
    lead = [f"n{i}" for i in range(len(x.axes) - 1)]
    order = program.value([program.table.like(axis) for axis in x.axes[:-1]], fixed=True)
    told = program.contract(node, [(x, [*lead, "i"]), (order, lead)], [*lead, "i"])
    hidden, memory = (_state(program, call) for _ in range(2))
    above, beside = gates(program, call, told, lead, "ih"), gates(program, call, hidden, lead, "hh")
    new = STEPS[call.operation](program, call, (above, beside), (hidden, memory))
    program.add(node, [new, hidden])  # alike
    return memory if call.get("gives") == "memory" else new


def _state(program: Program, call: Call) -> Value:
    return program.value([*(program.table.like(axis) for axis in call["input"].axes[:-1]), program.table.new(call.shape[-1])])


def _lstm_step(program: Program, call: Call, sides: tuple[Value, Value], state: tuple[Value, Value]) -> Value:
    i, f, g, o = _cut(program, call, program.add(call.node, sides), 4)
    i, f, o = (program.apply(call.node, gate, None) for gate in (i, f, o))
    kept, added = _times(program, call, f, state[1]), _times(program, call, i, program.apply(call.node, g, None, odd=True))
    memory = program.add(call.node, [kept, added])
    program.add(call.node, [memory, state[1]])  # alike
    return _times(program, call, o, program.apply(call.node, memory, None, odd=True))


def _plain_step(program: Program, call: Call, sides: tuple[Value, Value], state: tuple[Value, Value]) -> Value:
    return program.apply(call.node, program.add(call.node, sides), None, odd=True)


def _gru_step(program: Program, call: Call, sides: tuple[Value, Value], state: tuple[Value, Value]) -> Value:
    (r, z, n), (hr, hz, hn) = (_cut(program, call, side, 3) for side in sides)
    reset, update = (program.apply(call.node, program.add(call.node, pair), None) for pair in ((r, hr), (z, hz)))
    new = program.apply(call.node, program.add(call.node, [n, _times(program, call, reset, hn)]), None, odd=True)
    rest = program.apply(call.node, update, None)  # 1 - z
    return program.add(call.node, [_times(program, call, rest, new), _times(program, call, update, state[0])])


def _cut(program: Program, call: Call, x: Value, parts: int) -> list[Value]:
    width = call.shape[-1]
    return [program.piece(call.node, x, len(x.axes) - 1, k * width, width) for k in range(parts)]


def _times(program: Program, call: Call, x: Value, y: Value) -> Value:
    labels = [str(i) for i in range(len(x.axes))]
    return program.contract(call.node, [(x, labels), (y, labels)], labels)


STEPS: Final = {"lstm_layer": _lstm_step, "gru_layer": _gru_step, "rnn_layer": _plain_step}

STRICT: Final[dict[str, Rule]] = {
    "masked": _masked,
    "select": _select,
    "prelu": _prelu,
    "attention": _attention,
    "rotary": _rotary,
    "cross_entropy": _pinned,
    "mean_square": _pinned,
    "lstm_layer": _recurrent,
    "gru_layer": _recurrent,
    "rnn_layer": _recurrent,
}
