"""One gauge rule per operation: how it is written in primitives. Plain operations, element by element, window by window, and losses.

Normalisations, attention and recurrent layers are in `noetherflow.symbolic.gauge_blocks`; what a rule is, in `gauge_table`.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from math import isfinite

import sympy as sp

from noetherflow.symbolic.axes import Misaligned, multiply
from noetherflow.symbolic.gauge_table import Call, aligned_labels, biased, grouped, rational, rule
from noetherflow.symbolic.graph import Shape
from noetherflow.symbolic.primitives import Program, Value

# What is at most this is minus infinity after a softmax: the lowest numbers of the float types are used for it.
LOWEST = -1e4

# --- ends


@rule("input", "constant")
def _data(program: Program, call: Call) -> Value:
    return program.fresh(call.shape, fixed=True)


@rule("parameter")
def _parameter(program: Program, call: Call) -> Value:
    return call["weight"]


@rule("output")
def _output(program: Program, call: Call) -> Value:
    for value in call.values.values():
        program.pin(call.node, value)
    return program.fresh(call.shape, fixed=True)


# --- multilinear operations
# y = W x: scales obey s_y = s_W + s_x on every index that survives and s_W + s_x = 0 on every index summed over; `contract` says just that.


@rule("linear")
def _linear(program: Program, call: Call) -> Value:
    x, batch = call["input"], [f"n{i}" for i in range(len(call["input"].axes) - 1)]
    if len(call["weight"].axes) != 2:
        raise Misaligned("a weight that is not a matrix")
    roles = ["i", "o"] if call.get("transposed") else ["o", "i"]
    y = program.contract(call.node, [(x, [*batch, "i"]), (call["weight"], roles)], [*batch, "o"], uniform=True)
    return biased(program, call, y, len(batch))


# A convolution sums over the input channels of its group, the kernel and (through it) the input positions; output positions are new.
# Channels are regrouped as (group, channel of the group), so that grouped and depthwise convolutions are the same contraction.


@rule("convolution", "transposed_convolution")
def _convolution(program: Program, call: Call) -> Value:
    x, weight, groups = call["input"], call["weight"], call.get("groups", 1)
    dims = len(weight.axes) - 2
    lead = len(x.axes) - dims - 1
    batch, space = [f"n{i}" for i in range(lead)], [f"s{i}" for i in range(dims)]
    kernel, place = [f"k{i}" for i in range(dims)], [f"t{i}" for i in range(dims)]
    channels = grouped(program, x, lead, groups)
    first = grouped(program, weight, 0, groups)
    roles = ["g", "i", "o", *kernel] if call.operation == "transposed_convolution" else ["g", "o", "i", *kernel]
    sizes = dict(zip(place, call.shape[lead + 1 :], strict=True))
    whole = call.operation == "convolution" and not call.get("padded", any(_numbers(call.get("padding", 1))))
    operands = [(channels, [*batch, "g", "i", *space]), (first, roles)]
    y = program.contract(call.node, operands, [*batch, "g", "o", *place], sizes, uniform=whole)
    merged = program.view(y, [*y.axes[:lead], y.axes[lead] + y.axes[lead + 1], *y.axes[lead + 2 :]])
    return biased(program, call, merged, lead)


def _numbers(padding: object) -> list[object]:
    return list(padding) if isinstance(padding, list | tuple) else [padding]


@rule("multiply", "divide")
def _multiply(program: Program, call: Call) -> Value:
    rank = max(len(v.axes) for v in call.values.values())
    other = call["other"] if call.operation == "multiply" else program.apply(call.node, call["other"], sp.S.NegativeOne)
    operands = [(value, aligned_labels(value, rank)) for value in (call["input"], other)]
    return program.contract(call.node, operands, [str(i) for i in range(rank)])


@rule("matmul")
def _matmul(program: Program, call: Call) -> Value:
    a, b = call["input"], call["other"]
    ends = (a, "mk"[-len(a.axes) :]), (b, "kn"[: len(b.axes)])  # a vector has the summed index alone
    rank = max(len(value.axes) - len(end) for value, end in ends)
    left, right = ([*aligned_labels(value, rank + len(end))[: -len(end)], *end] for value, end in ends)
    kept = [*map(str, range(rank)), *(label for label in (*left[-2:], *right[-2:]) if label in ("m", "n"))]
    return program.contract(call.node, [(a, left), (b, right)], kept, uniform=True)


# Every operand has its letters, and what the result lacks is summed: an einsum is a contraction as it stands. What one operand alone has
# and the result lacks is summed first.


@rule("einsum")
def _einsum(program: Program, call: Call) -> Value:
    inputs, _, out = call.get("equation").partition("->")
    letters = inputs.split(",")
    if any(len(set(part)) != len(part) for part in (*letters, out)):
        raise Misaligned("a diagonal")
    operands = []
    for slot, part in zip(sorted(call.values, key=int), letters, strict=True):
        alone = {letter for letter in part if letter not in out and sum(letter in other for other in letters) == 1}
        operands.append(_summed(program, call.node, call[slot], list(part), alone))
    return program.contract(call.node, operands, list(out), uniform=True)


def _summed(program: Program, node: str, x: Value, labels: Sequence[str], over: set[str]) -> tuple[Value, list[str]]:
    """A tensor summed over some labels, and the labels it keeps; a constant comes out as many times as there are summands."""
    kept = [label for label in labels if label not in over]
    if not over:
        return x, kept
    size = multiply([program.table.size(axis) for label, axis in zip(labels, x.axes, strict=True) if label in over])
    multiple = Fraction(size) if isinstance(size, int) else None
    return program.contract(node, [(x, labels)], kept, multiple=multiple), kept


# A table that is read row by row: what is picked by the same tensor of indices keeps the row's number as an index of its own (`picks`).
# torch gives the padding row no gradient: it must not move, nor need to.


@rule("embedding")
def _embedding(program: Program, call: Call) -> Value:
    weight, row = call["weight"], call.get("padding_idx")
    by = [f"n{i}" for i in range(len(call.shape) - 1)]
    if row is not None and row >= 0:
        program.pin(call.node, program.piece(call.node, weight, 0, row, 1))
    return program.pick(call.node, weight, ["v", "d"], "v", _indices(program, call, "input", call.shape[:-1]), by, [*by, "d"])


@rule("index_select")
def _index_select(program: Program, call: Call) -> Value:
    x, rank = call["input"], len(call["input"].axes)
    dim = call.get("dim") % rank
    labels, more = [str(i) for i in range(rank)], len(call.shape) - rank + 1
    by = [f"n{i}" for i in range(more)]
    index = _indices(program, call, "index", call.shape[dim : dim + more])
    return program.pick(call.node, x, labels, labels[dim], index, by, [*labels[:dim], *by, *labels[dim + 1 :]])


# out[i, j] = T[i, index[i, j]]: the indices lie along all axes, those of the table among them


@rule("gather")
def _gather(program: Program, call: Call) -> Value:
    x, dim = call["input"], call.get("dim") % len(call.shape)
    sizes = [program.table.size(axis) for axis in x.axes]
    if len(sizes) != len(call.shape) or any(a != b for i, (a, b) in enumerate(zip(sizes, call.shape, strict=True)) if i != dim):
        raise Misaligned("a part of the axes that are kept")
    labels = [str(i) for i in range(len(sizes))]
    by = [*labels[:dim], "n", *labels[dim + 1 :]]
    return program.pick(call.node, x, labels, labels[dim], _indices(program, call, "index", call.shape), by, by)


def _indices(program: Program, call: Call, slot: str, shape: Shape) -> Value:
    """The tensor of indices; one that nothing else is picked by, where it is not given."""
    index = call.values.get(slot)
    known = index is not None and index.fixed and tuple(map(program.table.size, index.axes)) == tuple(shape)
    return index if index is not None and known else program.fresh(shape, fixed=True)


@rule("sum", "mean")
def _sum(program: Program, call: Call) -> Value:
    x, over = call["input"], {d % len(call["input"].axes) for d in call.get("dims", range(len(call["input"].axes)))}
    labels = [str(i) for i in range(len(x.axes))]
    if call.operation == "sum":
        y, _ = _summed(program, call.node, x, labels, {labels[i] for i in over})
    else:
        y = program.contract(call.node, [(x, labels)], [label for i, label in enumerate(labels) if i not in over], uniform=True)
    return program.reshape(y, call.shape)


@rule("add", "subtract")
def _add(program: Program, call: Call) -> Value:
    sign = 1 if call.operation == "add" else -1
    return program.add(call.node, [call["input"], call["other"]], [1, sign])


@rule("negate", "scale", "identity")
def _scale(program: Program, call: Call) -> Value:
    factor = {"negate": -1, "identity": 1}.get(call.operation, call.get("factor", 1))
    if not factor or not isfinite(factor):
        raise Misaligned(f"a product with {factor}")
    return program.apply(call.node, call["input"], sp.S.One, rational(factor))


# --- functions of every element
# f(c x) = c**k f(x) for all c > 0 carries a scale to k times itself. A bounded or curved f carries none.


@rule("relu", "leaky_relu", "absolute", "dropout")
def _homogeneous(program: Program, call: Call) -> Value:
    if call.operation == "dropout" and call.get("p") == 0:
        return program.apply(call.node, call["input"], sp.S.One, sp.S.One)
    return program.apply(call.node, call["input"], sp.S.One)


@rule("prelu")
def _prelu(program: Program, call: Call) -> Value:
    program.pin(call.node, call["weight"])  # on the positive side f(x) = x whatever the slope: the slope itself cannot change
    return program.apply(call.node, call["input"], sp.S.One)


@rule("power")
def _power(program: Program, call: Call) -> Value:
    return program.apply(call.node, call["input"], rational(call.get("exponent")))


# What is masked becomes zero, which scales, or minus infinity, which also bears a shift. A finite constant bears neither.


@rule("masked")
def _masked(program: Program, call: Call) -> Value:
    x, value = call["input"], call.get("value")
    if value == 0:
        return program.apply(call.node, x, sp.S.One)
    if value > LOWEST:
        raise Misaligned(f"entries are replaced by {value}")
    return program.add(call.node, [x, program.value([program.table.like(axis) for axis in x.axes], fixed=True)])


@rule("maximum", "minimum", "select")
def _choice(program: Program, call: Call) -> Value:
    chosen = [program.apply(call.node, call[slot], sp.S.One) for slot in ("input", "other")]
    return program.add(call.node, chosen)


@rule(
    *("relu6", "tanh", "gelu", "silu", "sigmoid", "softplus", "exponential", "logarithm", "sine", "cosine", "error_function"),
    *("hard_sigmoid", "hard_swish", "elu", "mish", "clamp"),
)
def _curved(program: Program, call: Call) -> Value:
    return program.apply(call.node, call["input"], None)


# --- windows: positions are summed (average) or maximised over, so nothing may depend on them; a constant passes unless padding adds zeros


@rule("max_pool", "adaptive_max_pool", "average_pool", "adaptive_average_pool")
def _pool(program: Program, call: Call) -> Value:
    x = call["input"]
    dims = call.get("dims", len(x.axes) - 2)
    labels = [str(i) for i in range(len(x.axes))]
    kept = labels[: len(labels) - dims]
    sizes = {f"t{i}": size for i, size in enumerate(call.shape[len(kept) :])}
    average = call.operation.endswith("average_pool")
    return program.contract(call.node, [(x, labels)], [*kept, *sizes], sizes, linear=average, uniform=call.get("uniform", True))


# Positions are moved about or mixed along some axes (a roll, a flip, an upsampling, a padding), all others left alone.


@rule("rearrange")
def _rearrange(program: Program, call: Call) -> Value:
    x, moved = call["input"], {d % len(call.shape) for d in call.get("dims")}
    if len(x.axes) != len(call.shape):
        raise Misaligned("a rearrangement that changes the number of axes")
    labels = [str(i) for i in range(len(x.axes))]
    out = [f"t{i}" if i in moved else str(i) for i in range(len(x.axes))]
    sizes = {f"t{i}": call.shape[i] for i in moved}
    return program.contract(call.node, [(x, labels)], out, sizes, uniform=call.get("uniform", False))


# --- shapes


# Where the new boundaries do not fit the old ones (56 = 8 * 7 here and 28 * 2 there), the axes between those that stay are moved about.


@rule("reshape")
def _reshape(program: Program, call: Call) -> Value:
    x, state = call["input"], program.table.snapshot()
    try:
        return program.reshape(x, call.shape)
    except Misaligned:
        program.table.restore(state)
    before, after = [program.table.size(axis) for axis in x.axes], list(call.shape)
    left = next((i for i, (a, b) in enumerate(zip(before, after, strict=False)) if a != b), 0)
    right = next((i for i, (a, b) in enumerate(zip(before[:left:-1], after[:left:-1], strict=False)) if a != b), 0)
    if not left + right:
        raise Misaligned("a boundary of the new shape cuts an index")
    start, end = [f"l{i}" for i in range(left)], [f"r{i}" for i in range(right)]
    gone = [f"s{i}" for i in range(len(before) - left - right)]
    new = {f"t{i}": size for i, size in enumerate(after[left : len(after) - right])}
    return program.contract(call.node, [(x, [*start, *gone, *end])], [*start, *new, *end], new, uniform=True)


@rule("permute")
def _permute(program: Program, call: Call) -> Value:
    x = call["input"]
    return program.view(x, [x.axes[d] for d in call.get("dims")])


@rule("expand")
def _expand(program: Program, call: Call) -> Value:
    x, rank = call["input"], len(call.shape)
    labels = aligned_labels(x, rank)
    carried = {label for label, axis in zip(labels, x.axes, strict=True) if axis}
    sizes = {str(i): size for i, size in enumerate(call.shape) if str(i) not in carried}
    return program.contract(call.node, [(x, labels)], [str(i) for i in range(rank)], sizes, uniform=True)


@rule("slice")
def _slice(program: Program, call: Call) -> Value:
    axis = call.get("dim") % len(call.shape)
    return program.piece(call.node, call["input"], axis, call.get("start"), call.get("length"))


@rule("concatenate")
def _concatenate(program: Program, call: Call) -> Value:
    pieces = [call[slot] for slot in sorted(call.values, key=int)]
    if any(len(piece.axes) != len(call.shape) for piece in pieces):
        raise Misaligned("pieces of different rank")
    return program.concatenate(call.node, pieces, call.get("dim") % len(call.shape))


# --- losses


@rule("cross_entropy")
def _cross_entropy(program: Program, call: Call) -> Value:
    x = call["input"]
    axis = call.get("axis", 1 if len(x.axes) > 2 else -1) % len(x.axes)
    for slot in ("target", "weight"):
        if slot in call.values:
            program.pin(call.node, call[slot])
    program.normalize(call.node, x, [axis], scale=False, shift=True)
    return program.fresh(call.shape, fixed=True)


@rule("mean_square")
def _mean_square(program: Program, call: Call) -> Value:
    for value in call.values.values():
        program.pin(call.node, value)
    return program.fresh(call.shape, fixed=True)
