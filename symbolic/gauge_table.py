"""What a gauge rule is, and the table of all of them.

A rule is a function ``rule(program, call) -> Value`` registered under the operation's standard name. It writes the operation in primitives,
and so says which changes of its inputs and parameters an operation carries to its output. What a rule cannot write exactly it must refuse
by raising `Misaligned`: the operation is then opaque, nothing passes it, and the result names it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Final

import sympy as sp

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


# --- pieces that rules share


def rational(number: float) -> sp.Rational:
    """The simplest rational that rounds to a number (0.7 is 7/10), or the number's binary digits."""
    simple = Fraction(number).limit_denominator(10**6)
    return sp.Rational(simple.numerator, simple.denominator) if float(simple) == number else sp.Rational(number)


def biased(program: Program, call: Call, y: Value, channel: int) -> Value:
    """Add a bias that runs along one axis."""
    if "bias" not in call.values:
        return y
    bias = call["bias"]
    return program.add(call.node, [y, along(program, bias, len(y.axes) - channel - 1)])


def gained(program: Program, call: Call, y: Value, channel: int) -> Value:
    """Multiply by a gain and add a bias, both along one axis."""
    trailing = len(y.axes) - channel - 1
    if "weight" in call.values:
        labels = [str(i) for i in range(len(y.axes))]
        gain = (call["weight"], [str(channel)])
        y = program.contract(call.node, [(y, labels), gain], labels)
    return program.add(call.node, [y, along(program, call["bias"], trailing)]) if "bias" in call.values else y


def along(program: Program, vector: Value, trailing: int) -> Value:
    """A vector as a tensor with axes of size one behind it."""
    return program.view(vector, [*vector.axes, *[()] * trailing])


def grouped(program: Program, value: Value, axis: int, groups: Size) -> Value:
    """The same tensor with one axis split into (group, member of the group)."""
    size = program.table.size(value.axes[axis])
    per_group = size // groups if isinstance(size, int) else size / groups
    split = program.table.regroup([value.axes[axis]], [groups, per_group])
    return program.view(value, [*value.axes[:axis], *split, *value.axes[axis + 1 :]])


def aligned_labels(value: Value, rank: int) -> list[str]:
    """Labels by which values of different rank broadcast: axes are numbered from the right."""
    return [str(i + rank - len(value.axes)) for i in range(len(value.axes))]
