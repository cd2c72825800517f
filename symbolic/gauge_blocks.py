"""Gauge rules of normalisations, attention and recurrent layers: blocks that torch keeps whole, written in primitives."""

from __future__ import annotations

from collections.abc import Sequence

from noetherflow.symbolic.axes import Misaligned
from noetherflow.symbolic.gauge_table import Call, gained, grouped, rule
from noetherflow.symbolic.primitives import Program, Value

# --- normalisation: y = gain * (x - mean) / sqrt(var + eps) + shift, statistics over the batch and the positions of a channel


@rule("batch_norm")
def _batch_norm(program: Program, call: Call) -> Value:
    x = call["input"]
    if not call.get("training", True):
        program.pin(call.node, x)  # frozen statistics: a fixed affine map, whose shift no scale passes
        y = program.value([program.table.like(axis) for axis in x.axes], fixed=True)
    else:
        over = [i for i in range(len(x.axes)) if i != 1]
        y = program.normalize(call.node, x, over, scale=True, shift=True, eps=call.get("eps", 0.0))
    return gained(program, call, y, channel=1)


# LayerNorm and RMSNorm take their statistics along the last axes, one sample and position at a time; RMSNorm does not centre.


@rule("layer_norm", "rms_norm")
def _layer_norm(program: Program, call: Call) -> Value:
    x, dims = call["input"], call.get("dims", 1)
    lead = len(x.axes) - dims
    over = range(lead, len(x.axes))
    y = program.normalize(call.node, x, over, scale=True, shift=call.operation == "layer_norm", eps=call.get("eps", 0.0))
    labels = [str(i) for i in range(len(y.axes))]
    if "weight" in call.values:
        y = program.contract(call.node, [(y, labels), (call["weight"], labels[lead:])], labels)
    return program.add(call.node, [y, call["bias"]]) if "bias" in call.values else y


# GroupNorm takes them over the channels of a group and all positions; InstanceNorm over the positions of a channel.


@rule("group_norm")
def _group_norm(program: Program, call: Call) -> Value:
    split = grouped(program, call["input"], 1, call.get("groups"))
    y = program.normalize(call.node, split, range(2, len(split.axes)), scale=True, shift=True, eps=call.get("eps", 0.0))
    return gained(program, call, program.view(y, [y.axes[0], y.axes[1] + y.axes[2], *y.axes[3:]]), channel=1)


@rule("instance_norm")
def _instance_norm(program: Program, call: Call) -> Value:
    x = call["input"]
    y = program.normalize(call.node, x, range(2, len(x.axes)), scale=True, shift=True, eps=call.get("eps", 0.0))
    return gained(program, call, y, channel=1)


@rule("unit_norm")
def _unit_norm(program: Program, call: Call) -> Value:
    x = call["input"]
    return program.normalize(call.node, x, [call.get("dim", -1) % len(x.axes)], scale=True, shift=False)


# w = g v / |v|, the norm over all axes but one


@rule("weight_norm")
def _weight_norm(program: Program, call: Call) -> Value:
    v, g = call["direction"], call["magnitude"]
    kept = call.get("dim", 0) % len(v.axes)
    unit = program.normalize(call.node, v, [i for i in range(len(v.axes)) if i != kept], scale=True, shift=False)
    labels = [str(i) for i in range(len(v.axes))]
    return program.contract(call.node, [(unit, labels), (g, labels)], labels)


@rule("softmax", "log_softmax")
def _softmax(program: Program, call: Call) -> Value:
    x = call["input"]
    dim = call.get("dim", -1) % len(x.axes)
    y = program.normalize(call.node, x, [dim], scale=False, shift=True)
    if call.operation == "softmax":
        program.probabilities[y.root] = y.axes[dim]
    return y


# --- attention: softmax(q k) v, head by head; a group of query heads shares one head of keys and values
# The probabilities are one in sum, so what all values share passes, unless dropout takes some away.


@rule("attention")
def _attention(program: Program, call: Call) -> Value:
    q, k, v = call["query"], call["key"], call["value"]
    lead = [f"b{i}" for i in range(len(q.axes) - 2)]
    group: list[str] = []
    if call.get("grouped"):
        heads = program.table.size(k.axes[-3])
        q, group = grouped(program, q, len(q.axes) - 3, heads), ["r"]
    queries = (q, [*lead, *group, "m", "e"])
    scores = program.contract(call.node, [queries, (k, [*lead, "n", "e"])], [*lead, *group, "m", "n"])
    if "mask" in call.values:
        scores = _masked(program, call, scores, len(lead), group)
    p = program.normalize(call.node, scores, [len(scores.axes) - 1], scale=False, shift=True)
    if not call.get("dropout"):
        program.probabilities[p.root] = p.axes[-1]
    weights = (p, [*lead, *group, "m", "n"])
    y = program.contract(call.node, [weights, (v, [*lead, "n", "f"])], [*lead, *group, "m", "f"])
    heads_at = len(lead) - 1
    return program.view(y, [*y.axes[:heads_at], y.axes[heads_at] + y.axes[heads_at + 1], *y.axes[heads_at + 2 :]]) if group else y


def _masked(program: Program, call: Call, scores: Value, lead: int, group: Sequence[str]) -> Value:
    mask = call["mask"]
    if group and len(mask.axes) == lead + 2:
        kept = program.table.size(scores.axes[lead - 1])
        mask = program.view(mask, [*mask.axes[: lead - 1], (), (), *mask.axes[-2:]]) if mask.axes[lead - 1] == () else mask
        mask = grouped(program, mask, lead - 1, kept) if len(mask.axes) == lead + 2 else mask
    return program.add(call.node, [scores, mask])


# RoPE turns pairs of entries of a head by angles that grow with the position: (x_j, x_{j + n/2}), or (x_{2j}, x_{2j + 1}).


@rule("rotary")
def _rotary(program: Program, call: Call) -> Value:
    x = call["input"]
    if any(not call[slot].fixed for slot in ("cosine", "sine") if slot in call.values):
        raise Misaligned("angles that depend on a parameter")
    last, halves = len(x.axes) - 1, call.get("pairing", "halves") == "halves"
    size = program.table.size(x.axes[last])
    half = size // 2 if isinstance(size, int) else size / 2
    first, second = program.table.regroup([x.axes[last]], [2, half] if halves else [half, 2])
    turned = program.turn(call.node, program.view(x, [*x.axes[:last], first, second]), last if halves else last + 1)
    return program.view(turned, [*turned.axes[:last], turned.axes[last] + turned.axes[last + 1]])


# --- recurrence: the state fed back is bounded by its gates, so nothing moves it; the two biases of a gate are added
# LSTM, and a plain layer with tanh: all read W x + b + U h + c. GRU: the last one reads W x + b + r (U h + c), so there b and c are apart.


@rule("lstm_layer", "gru_layer", "rnn_layer")
def _recurrent(program: Program, call: Call) -> Value:
    x = call["input"]
    batch = [f"n{i}" for i in range(len(x.axes) - 1)]
    hidden = program.value([program.table.like(axis) for axis in x.axes[:-1]] + [program.table.new(call.shape[-1])], fixed=True)
    inner = [gates(program, call, x, batch, "ih"), gates(program, call, hidden, batch, "hh")]
    if call.operation != "gru_layer":
        program.apply(call.node, program.add(call.node, inner), None)
    else:
        cut = [(0, 2 * call.shape[-1]), (2 * call.shape[-1], call.shape[-1])]
        (a, c), (b, d) = ([program.piece(call.node, gate, len(batch), *where) for where in cut] for gate in inner)
        program.apply(call.node, program.add(call.node, [a, b]), None)
        program.apply(call.node, c, None)
        program.apply(call.node, d, None)
    return program.fresh(call.shape, fixed=True)


def gates(program: Program, call: Call, x: Value, batch: Sequence[str], name: str) -> Value:
    """What the gates of a recurrent layer read of one of their two inputs."""
    y = program.contract(call.node, [(x, [*batch, "i"]), (call[f"weight_{name}"], ["o", "i"])], [*batch, "o"], uniform=True)
    return program.add(call.node, [y, call[f"bias_{name}"]]) if f"bias_{name}" in call.values else y
