"""Which tensors may be rescaled, index by index: the logarithm of a scale obeys linear equations at every primitive.

If every tensor T is multiplied by exp(s_T), with s_T a function of its indices, the network computes the same if

    contract    sum of s over the operands = s of the result, independent of every index that is summed over
    add         s equal for all operands and the result
    apply       s of the result = degree * s of the input (both zero if the function has no degree)
    normalize   s of the input free if constant along the normalised indices; the result keeps its own scale
    turn        s of the result = s of the input, the same for both members of a pair

Source: own (the equations state the invariance of each primitive under exp(s) term by term).
"""

from __future__ import annotations

from fractions import Fraction

from noetherflow.symbolic.axes import AxisTable
from noetherflow.symbolic.equations import Chosen, Statement, each, equal_pieces, pinned, stated, summed, unchanged
from noetherflow.symbolic.linear_systems import Atoms, Systems, Unknown
from noetherflow.symbolic.primitives import Add, Apply, Block, Contract, Join, Normalize, Pin, Program, Turn


def scale_equations(program: Program, wanted: frozenset[Atoms]) -> Systems:
    """All equations on scales of a program."""
    rules: dict[type, Statement] = {
        Contract: _contract,
        Add: _add,
        Apply: _apply,
        Normalize: _normalize,
        Turn: _turn,
        Join: equal_pieces,
        Pin: pinned,
    }
    return stated(program, wanted, rules)


def _contract(systems: Systems, table: AxisTable, step: Contract) -> None:
    labels = {label for label in step.out.labels if label is not None}
    for key, chosen, (out, *operands) in each(systems, table, (step.out, *step.operands)):
        total: list[tuple[Unknown | None, int | Fraction]] = [(u, 1) for u in operands]
        if all(label in labels for label, _ in chosen):
            total.append((out, -1))
        systems.state(key, summed(total))


def _add(systems: Systems, table: AxisTable, step: Add) -> None:
    for key, _, (out, *operands) in each(systems, table, (step.out, *step.operands)):
        for operand in operands:
            systems.state(key, summed([(out, 1), (operand, -1)]))


def _apply(systems: Systems, table: AxisTable, step: Apply) -> None:
    for key, _, (out, x) in each(systems, table, (step.out, step.operand)):
        if step.degree is None:
            systems.state(key, {out: 1})
            systems.state(key, {x: 1})
        else:
            degree = Fraction(int(step.degree.p), int(step.degree.q))
            systems.state(key, summed([(out, 1), (x, -degree)]))


def _normalize(systems: Systems, table: AxisTable, step: Normalize) -> None:
    unchanged(systems, table, step.out)
    constant_along(systems, table, step, free=step.scale)


def _turn(systems: Systems, table: AxisTable, step: Turn) -> None:
    for key, chosen, (out, x) in each(systems, table, (step.out, step.operand)):
        paired = any(label == step.pair for label, _ in chosen)
        systems.state(key, {x: 1} if paired else summed([(out, 1), (x, -1)]))
        if paired:
            systems.state(key, {out: 1})


def constant_along(systems: Systems, table: AxisTable, step: Normalize, *, free: bool) -> None:
    """A change of what is normalised must not depend on the normalised indices, nor differ between their summands; nothing if not free."""
    axes = zip(step.operand.labels, step.operand.value.axes, strict=True)
    summands = frozenset(c for label, axis in axes if label in step.over for segment in table.segments(axis) for c in segment.choices)
    first: dict[tuple[Chosen, Block], Unknown] = {}
    for key, chosen, (x,) in each(systems, table, (step.operand,)):
        if not free or any(label in step.over for label, _ in chosen):
            systems.state(key, {x: 1})
        elif x is not None:
            systems.state(key, summed([(first.setdefault((chosen, x.block - summands), x), 1), (x, -1)]))
