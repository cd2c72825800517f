"""One gauge rule per operation: how it is written in primitives.

A rule is a function ``rule(program, call) -> Value`` registered under the operation's standard name. It says, through the primitives it
emits, which changes of its inputs and parameters an operation carries to its output. What a rule cannot write exactly it must refuse by
raising `Misaligned`: the operation is then opaque, nothing passes it, and the result names it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from math import isfinite
from typing import Any, Final

import sympy as sp

from noetherflow.symbolic.axes import Misaligned
from noetherflow.symbolic.graph import Shape, Size
from noetherflow.symbolic.operations import OPERATIONS
from noetherflow.symbolic.primitives import Program, Value


@dataclass(frozen=True, slots=True)
class Call:
    """One node as its rule sees it: values by slot, attributes with defaults, the shape of the result."""

    node: str
    operation: str
    values: Mapping[str, Value]
    attributes: Mapping[str, Any]
    shape: Shape

    def __getitem__(self, slot: str) -> Value:
        return self.values[slot]

    def get(self, name: str, default: Any = None) -> Any:
        """An attribute, or its default."""
        return self.attributes.get(name, default)


Rule = Callable[[Program, Call], Value]
RULES: Final[dict[str, Rule]] = {}


def rule(*operations: str) -> Callable[[Rule], Rule]:
    """Register a gauge rule for operations of the vocabulary."""

    def register(function: Rule) -> Rule:
        for operation in operations:
            if operation not in OPERATIONS:
                raise ValueError(f"'{operation}' is not in the vocabulary; add it to noetherflow.symbolic.operations first.")
            RULES[operation] = function
        return function

    return register


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
    y = program.contract(call.node, [(x, [*batch, "i"]), (call["weight"], ["o", "i"])], [*batch, "o"])
    return _biased(program, call, y, len(batch))


# A convolution sums over the input channels of its group, the kernel and (through it) the input positions; output positions are new.
# Channels are regrouped as (group, channel of the group), so that grouped and depthwise convolutions are the same contraction.


@rule("convolution", "transposed_convolution")
def _convolution(program: Program, call: Call) -> Value:
    x, weight, groups = call["input"], call["weight"], call.get("groups", 1)
    dims = len(weight.axes) - 2
    lead = len(x.axes) - dims - 1
    batch, space = [f"n{i}" for i in range(lead)], [f"s{i}" for i in range(dims)]
    kernel, place = [f"k{i}" for i in range(dims)], [f"t{i}" for i in range(dims)]
    channels = _grouped(program, x, lead, groups)
    first = _grouped(program, weight, 0, groups)
    roles = ["g", "i", "o", *kernel] if call.operation == "transposed_convolution" else ["g", "o", "i", *kernel]
    sizes = dict(zip(place, call.shape[lead + 1 :], strict=True))
    y = program.contract(call.node, [(channels, [*batch, "g", "i", *space]), (first, roles)], [*batch, "g", "o", *place], sizes)
    merged = program.view(y, [*y.axes[:lead], y.axes[lead] + y.axes[lead + 1], *y.axes[lead + 2 :]])
    return _biased(program, call, merged, lead)


@rule("multiply")
def _multiply(program: Program, call: Call) -> Value:
    rank = max(len(v.axes) for v in call.values.values())
    operands = [(call[slot], _aligned_labels(call[slot], rank)) for slot in ("input", "other")]
    return program.contract(call.node, operands, [str(i) for i in range(rank)])


@rule("matmul")
def _matmul(program: Program, call: Call) -> Value:
    a, b = call["input"], call["other"]
    if min(len(a.axes), len(b.axes)) < 2:
        raise Misaligned("a product with a vector")
    rank = max(len(a.axes), len(b.axes)) - 2
    left, right = ([*_aligned_labels(v, rank + 2)[:-2], *ends] for v, ends in ((a, "mk"), (b, "kn")))
    return program.contract(call.node, [(a, left), (b, right)], [*map(str, range(rank)), "m", "n"])


@rule("sum", "mean")
def _sum(program: Program, call: Call) -> Value:
    x, over = call["input"], {d % len(call["input"].axes) for d in call.get("dims", range(len(call["input"].axes)))}
    labels = [str(i) for i in range(len(x.axes))]
    kept = [label for i, label in enumerate(labels) if i not in over]
    y = program.contract(call.node, [(x, labels)], kept, uniform=call.operation == "mean")
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
    return program.apply(call.node, call["input"], sp.S.One, _rational(factor))


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
    return program.apply(call.node, call["input"], _rational(call.get("exponent")))


@rule("relu6", "tanh", "gelu", "silu", "sigmoid", "softplus")
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
    return _gained(program, call, y, channel=1)


@rule("softmax", "log_softmax")
def _softmax(program: Program, call: Call) -> Value:
    x = call["input"]
    return program.normalize(call.node, x, [call.get("dim", -1) % len(x.axes)], scale=False, shift=True)


# --- shapes


@rule("reshape")
def _reshape(program: Program, call: Call) -> Value:
    return program.reshape(call["input"], call.shape)


@rule("permute")
def _permute(program: Program, call: Call) -> Value:
    x = call["input"]
    return program.view(x, [x.axes[d] for d in call.get("dims")])


@rule("expand")
def _expand(program: Program, call: Call) -> Value:
    x, rank = call["input"], len(call.shape)
    labels = _aligned_labels(x, rank)
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


# --- pieces of rules


def _rational(number: float) -> sp.Rational:
    """The simplest rational that rounds to a number (0.7 is 7/10), or the number's binary digits."""
    simple = Fraction(number).limit_denominator(10**6)
    return sp.Rational(simple.numerator, simple.denominator) if float(simple) == number else sp.Rational(number)


def _biased(program: Program, call: Call, y: Value, channel: int) -> Value:
    if "bias" not in call.values:
        return y
    bias = call["bias"]
    return program.add(call.node, [y, _along(program, bias, len(y.axes) - channel - 1)])


def _gained(program: Program, call: Call, y: Value, channel: int) -> Value:
    trailing = len(y.axes) - channel - 1
    if "weight" in call.values:
        labels = [str(i) for i in range(len(y.axes))]
        gain = (call["weight"], [str(channel)])
        y = program.contract(call.node, [(y, labels), gain], labels)
    return program.add(call.node, [y, _along(program, call["bias"], trailing)]) if "bias" in call.values else y


def _along(program: Program, vector: Value, trailing: int) -> Value:
    return program.view(vector, [*vector.axes, *[()] * trailing])


def _grouped(program: Program, value: Value, axis: int, groups: Size) -> Value:
    size = program.table.size(value.axes[axis])
    per_group = size // groups if isinstance(size, int) else size / groups
    split = program.table.regroup([value.axes[axis]], [groups, per_group])
    return program.view(value, [*value.axes[:axis], *split, *value.axes[axis + 1 :]])


def _aligned_labels(value: Value, rank: int) -> list[str]:
    return [str(i + rank - len(value.axes)) for i in range(len(value.axes))]
